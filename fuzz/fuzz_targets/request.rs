//! A search as JSON. An answer must be possible whatever is asked: the id is read, the error is a sentence.

#![no_main]

use feedlens::query::request::SearchRequest;
use feedlens_fuzz::CONFIG;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let config = &CONFIG.query;
    match SearchRequest::from_json(data, config).request {
        Ok(request) => assert!((1..=config.max_top_k).contains(&request.top_k)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
