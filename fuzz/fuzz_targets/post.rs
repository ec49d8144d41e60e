//! A message of the posts topic: its value alone, or its key, a zero byte and the value. What is accepted must survive its
//! way into the payload.

#![no_main]

use feedlens::post::{Post, point_id, post_id_from_key};
use feedlens_fuzz::CONFIG;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (key, value) = match data.iter().position(|byte| *byte == 0) {
        Some(end) => (Some(&data[..end]), &data[end + 1..]),
        None => (None, data),
    };
    let _ = post_id_from_key(key);
    let limits = &CONFIG.posts;
    let Ok(post) = Post::parse(value, key, limits) else { return };
    assert!(!post.post_id.is_empty());
    assert!(post.caption.as_ref().is_none_or(|caption| caption.len() as u64 <= limits.max_caption_bytes));
    assert!(post.tags.len() <= limits.max_tags);
    let _ = feedlens::captions::clean(post.caption.as_deref().unwrap_or_default());
    let _ = point_id(&post.post_id);
    let payload = post.payload("model", Default::default(), None);
    serde_json::to_vec(&payload).expect("a payload is JSON");
});
