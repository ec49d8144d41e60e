//! The headers of a message in the dead-letter topic, and of one that was sent again: lines of `name:value`.

#![no_main]

use std::sync::Arc;

use feedlens::kafka::dead_letter::Letter;
use feedlens::kafka::{Message, Position};
use feedlens::post::tombstone_version;
use feedlens::text::escaped;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let header = |line: &[u8]| {
        let end = line.iter().position(|byte| *byte == b':');
        let name = String::from_utf8_lossy(&line[..end.unwrap_or(line.len())]).into_owned();
        (name, end.map(|end| line[end + 1..].to_vec()))
    };
    let headers = data.split(|byte| *byte == b'\n').map(header).collect::<Vec<_>>();
    let _ = tombstone_version(&headers);
    let position = Position { topic: Arc::from("posts.dlq"), partition: 0, offset: 7 };
    let bytes = data.len() as u64;
    let letter =
        Letter::read(Message { key: None, payload: None, headers: headers.clone(), timestamp: None, position, bytes });
    // What was not ours is left as it came and in its order.
    let mut all = headers.iter();
    assert!(letter.headers.iter().all(|kept| all.any(|header| header == kept)));
    assert!(letter.headers.len() + 8 >= headers.len());
    assert!(!escaped(&letter.detail, 200).chars().any(char::is_control));
});
