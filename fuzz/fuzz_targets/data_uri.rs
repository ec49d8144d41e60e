//! The base64 of a picture that a post or a request brings along, plain or as a data URI.

#![no_main]

use std::sync::LazyLock;

use feedlens::image::fetch::ImageFetcher;
use feedlens_fuzz::CONFIG;
use libfuzzer_sys::fuzz_target;

static FETCHER: LazyLock<ImageFetcher> = LazyLock::new(|| ImageFetcher::new(&CONFIG.images).expect("a fetcher"));

fuzz_target!(|text: &str| {
    let share = futures::executor::block_on(FETCHER.reserve(2 * text.len() as u64));
    let Ok(bytes) = FETCHER.inline(text, share) else { return };
    assert!(bytes.len() as u64 <= CONFIG.images.max_bytes);
    assert!(bytes.len() <= text.len());
});
