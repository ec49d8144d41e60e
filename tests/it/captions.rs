//! `captions.clean` on its way through the workers: what is tokenised is cleaned, what is stored is not.

use serde_json::{Value, json};

use crate::ingest_support::Bench;
use crate::query_support;

/// As it stands in a feed, and what is left of it.
const POSTED: &str = "#苹果#！！！[doge] @水果店 http://t.cn/A6xYz12";
const CLEANED: &str = "苹果！";

#[tokio::test(flavor = "multi_thread")]
async fn captions_are_tokenised_clean_and_stored_as_they_came() {
    for (clean, alike) in [("captions.clean=true", true), ("captions.clean=false", false)] {
        let bench = Bench::new(&[clean]).await;
        let worker = bench.work();
        bench.post("posted", POSTED).await;
        bench.post("cleaned", CLEANED).await;
        worker.wait_for(2).await;
        let posted = bench.stored("posted").await.expect("stored");
        let cleaned = bench.stored("cleaned").await.expect("stored");
        assert_eq!(posted.payload["caption"], POSTED);
        let (posted, cleaned) = (posted.caption.expect("a vector"), cleaned.caption.expect("a vector"));
        let cosine = posted.iter().zip(&cleaned).map(|(left, right)| left * right).sum::<f32>();
        assert_eq!(cosine > 0.99999, alike, "{clean}: {cosine}");
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_of_searches_are_cleaned_as_captions_are() {
    for (clean, alike) in [("captions.clean=true", true), ("captions.clean=false", false)] {
        let worker = query_support::Worker::start(&[clean]).await;
        let scores = async |topic: &str| {
            let (status, answer) =
                worker.ask(&json!({"topic": topic, "target": "image", "top_k": 5, "min_score": "none"})).await;
            let hits: &Vec<Value> = answer["hits"].as_array().expect("hits");
            (status, hits.iter().map(|hit| hit["score"].as_f64().expect("a score")).collect::<Vec<_>>())
        };
        let (posted, cleaned) = (scores(POSTED).await, scores(CLEANED).await);
        assert!(posted.0 == 200 && posted.1.len() == 5 && cleaned.1.len() == 5);
        let near = posted.1.iter().zip(&cleaned.1).all(|(left, right)| (left - right).abs() < 1e-5);
        assert_eq!(near, alike, "{clean}: {posted:?} {cleaned:?}");
    }
}
