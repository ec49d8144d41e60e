//! Relevance over HTTP, on the real model: the same cases on the embedded store and, where there is one, a Qdrant server.

use feedlens::post::Post;
use image::ImageFormat;
use serde_json::{Value, json};

use crate::query_support::{
    DRAWINGS, Worker, client, config, drawing, drawing_base64, encoder, post_ids, post_of, read,
};
use crate::store_support::{Bench, on_each_store};

on_each_store!(
    pages_follow_one_another_without_a_gap_or_a_repeat,
    copies_of_a_picture_are_one_hit,
    hidden_posts_are_never_shown,
    labels_filter_and_are_shown,
    a_threshold_cuts_every_way_of_searching,
    nothing_fits_is_an_empty_list,
    freshness_brings_new_posts_forward,
    fusion_is_chosen_by_the_request,
);

/// A worker over this store with the posts of all drawings.
async fn worker(bench: &mut Bench, set: &[&str]) -> Worker {
    let worker = empty(bench, set).await;
    for (index, (code, caption)) in DRAWINGS.iter().enumerate() {
        worker.index(&post_of(index, code, caption)).await;
    }
    worker
}

async fn empty(bench: &mut Bench, set: &[&str]) -> Worker {
    let bundle = encoder().bundle;
    bench.stamp = feedlens::store::ModelStamp { model: bundle.id.clone(), dimension: bundle.dimension };
    Worker::over(&config(set), bench.open().await).await
}

/// A post of a drawing as another program sent it on: on white, resized, encoded anew.
pub fn copy_of(id: &str, code: &str, scale: f32, format: ImageFormat) -> Post {
    let original = image::open(drawing(code)).expect("a drawing").to_rgba8();
    let mut ground = image::RgbImage::from_pixel(original.width(), original.height(), image::Rgb([255; 3]));
    for (to, from) in ground.pixels_mut().zip(original.pixels()) {
        let alpha = f32::from(from[3]) / 255.0;
        for channel in 0..3 {
            to[channel] = (f32::from(from[channel]) * alpha + 255.0 * (1.0 - alpha)).round() as u8;
        }
    }
    let size = |side: u32| (side as f32 * scale).round() as u32;
    let (width, height) = (size(ground.width()), size(ground.height()));
    let resized = image::imageops::resize(&ground, width, height, image::imageops::FilterType::CatmullRom);
    let mut bytes = std::io::Cursor::new(Vec::new());
    resized.write_to(&mut bytes, format).expect("encodes");
    let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes.into_inner());
    let mut post = post_of(0, code, &format!("转发 {id}"));
    (post.post_id, post.image) = (id.to_owned(), Some(feedlens::post::ImageSource::Base64(base64)));
    post
}

async fn ask(worker: &Worker, request: Value) -> Value {
    let (status, answer) = worker.ask(&request).await;
    assert_eq!(status, 200, "{request}: {answer}");
    answer
}

fn with(mut request: Value, more: &Value) -> Value {
    request.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    request
}

async fn pages_follow_one_another_without_a_gap_or_a_repeat(mut bench: Bench) {
    // Few candidates, so that pages lie in several blocks.
    let worker = worker(&mut bench, &["query.candidates=3"]).await;
    for index in 0..6 {
        let copy = copy_of(&format!("copy{index}"), "1f34e", 1.0 + index as f32 / 10.0, ImageFormat::Png);
        worker.index(&copy).await;
    }
    for options in [
        json!({}),
        json!({"fold": false}),
        json!({"target": "both"}),
        json!({"target": "both", "fusion": "weighted", "transform": "sine"}),
        json!({"target": "caption", "freshness": {"half_life": "2h", "weight": 0.5}}),
        json!({"target": "both", "freshness": {"half_life": "2h"}, "min_score": 0.1}),
    ] {
        let request = |offset: usize, top_k: usize| {
            with(json!({"topic": "红苹果", "min_score": "none", "offset": offset, "top_k": top_k}), &options)
        };
        let whole = ask(&worker, request(0, 50)).await;
        let all = post_ids(&whole);
        let (mut turned, mut offset) = (Vec::new(), 0);
        for size in [1, 4, 2, 7, 5, 10] {
            let page = ask(&worker, request(offset, size)).await;
            assert_eq!(page["offset"], json!(offset));
            for (place, hit) in page["hits"].as_array().expect("hits").iter().enumerate() {
                assert_eq!(hit["rank"], json!(offset + place + 1));
                assert_eq!(hit["probability"], whole["hits"][offset + place]["probability"], "{options}");
            }
            turned.extend(post_ids(&page));
            offset += size;
        }
        assert_eq!(turned, all, "{options}");
        assert!(all.len() >= 10, "{options}: {all:?}");
    }
    assert!(post_ids(&ask(&worker, json!({"topic": "红苹果", "offset": 900})).await).is_empty());
}

async fn copies_of_a_picture_are_one_hit(mut bench: Bench) {
    let worker = worker(&mut bench, &["query.candidates=8"]).await;
    // More copies than candidates, of a drawing on white as the first of them.
    let formats = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP];
    for index in 0..15 {
        let scale = [1.0, 0.8, 1.5, 2.0, 3.0][index % 5];
        worker.index(&copy_of(&format!("copy{index:02}"), "1f34c", scale, formats[index % 3])).await;
    }
    let request = json!({"image": {"base64": drawing_base64("1f34c")}, "top_k": 5});
    let folded = ask(&worker, request.clone()).await;
    let hits = folded["hits"].as_array().expect("hits");
    assert_eq!(hits.len(), 5, "distinct hits are looked for until there are enough: {folded}");
    let banana = &hits[0];
    assert_eq!(banana["folded"], 15, "the original and its copies, whatever their size and format: {folded}");
    let named = banana["folded_post_ids"].as_array().expect("ids");
    assert!(named.len() == 10 && !named.contains(&banana["post_id"]), "{banana}");
    assert!(hits[1..].iter().all(|hit| hit["folded"] == 0), "other drawings are other pictures: {folded}");
    let apart = ask(&worker, with(request, &json!({"fold": false}))).await;
    assert!(post_ids(&apart).iter().all(|id| id.starts_with("copy") || id == "demo:1f34c"), "{apart}");
    assert!(apart["hits"].as_array().expect("hits").iter().all(|hit| hit["folded"] == 0), "{apart}");
}

/// Stores a post with further payload, as ingest does with labels, or with a picture that is pending.
pub async fn index_with(worker: &Worker, post: &Post, more: Value) {
    worker.index(post).await;
    let id = feedlens::post::point_id(&post.post_id);
    let stored = worker.store.get(&[id]).await.expect("reads").remove(0);
    let mut payload = stored.payload;
    for field in ["version", "source", "deleted"] {
        payload.remove(field);
    }
    payload.extend(more.as_object().expect("an object").clone());
    let source = feedlens::store::Origin { topic: "posts".to_owned(), partition: 0, offset: 1, timestamp: 0 };
    let order = feedlens::store::Order { version: Some(2), source };
    let (image, caption) = (stored.image, stored.caption);
    let image_pending = more["image_pending"] == json!(true);
    let point = feedlens::store::Point { id, order, image, caption, image_pending, payload };
    worker.store.write(vec![feedlens::store::Write::Upsert(point)]).await.expect("the store takes the post");
}

async fn hidden_posts_are_never_shown(mut bench: Bench) {
    let worker = worker(&mut bench, &[]).await;
    let (code, caption) = DRAWINGS[0];
    index_with(&worker, &post_of(0, code, caption), json!({"hidden": true, "labels": ["risk/ad"]})).await;
    let id = format!("demo:{code}");
    for target in ["image", "caption", "both"] {
        for filter in [json!({}), json!({"labels_any": ["risk/ad"]}), json!({"author": "甲"})] {
            let request =
                json!({"topic": caption, "target": target, "top_k": 50, "min_score": "none", "filter": filter});
            assert!(!post_ids(&ask(&worker, request).await).contains(&id), "{target} {filter}");
        }
    }
    assert_eq!(worker.ask(&json!({"image": {"post_id": id}})).await.0, 422);
    assert_eq!(worker.get(&format!("/v1/thumbnail?post_id={id}")).await.0, 422);
}

async fn labels_filter_and_are_shown(mut bench: Bench) {
    let worker = empty(&mut bench, &[]).await;
    for (index, (code, caption)) in DRAWINGS.iter().enumerate() {
        let labels = if index < 8 { json!(["主题/水果"]) } else { json!([]) };
        index_with(&worker, &post_of(index, code, caption), json!({ "labels": labels })).await;
    }
    let count = async |filter: Value| {
        let answer = ask(&worker, json!({"topic": "香蕉", "top_k": 50, "min_score": "none", "filter": filter})).await;
        let hits = answer["hits"].as_array().expect("hits").clone();
        (hits.len(), hits.iter().filter(|hit| hit["labels"] == json!(["主题/水果"])).count())
    };
    assert_eq!(count(json!({"labels_any": ["主题/水果"]})).await, (8, 8));
    assert_eq!(count(json!({"labels_none": ["主题/水果"]})).await, (DRAWINGS.len() - 8, 0));
    assert_eq!(count(json!({"labels_any": ["主题/水果"], "not_author": ["甲"]})).await, (4, 4));
    let query = "q=香蕉&top_k=50&min_score=none&label=主题/水果&not_author=甲&tag_all=水果";
    let (_, by_url) = worker.get(&format!("/v1/search?{query}")).await;
    assert_eq!(post_ids(&by_url).len(), 4, "{by_url}");
}

async fn a_threshold_cuts_every_way_of_searching(mut bench: Bench) {
    let worker = worker(&mut bench, &[]).await;
    for target in ["image", "caption", "both"] {
        let all = ask(&worker, json!({"topic": "水果", "target": target, "top_k": 50, "min_score": "none"})).await;
        assert_eq!((&all["min_score"], post_ids(&all).len()), (&Value::Null, DRAWINGS.len()));
        let cut = ask(&worker, json!({"topic": "水果", "target": target, "top_k": 50, "min_score": 0.3})).await;
        let hits = cut["hits"].as_array().expect("hits");
        assert!(!hits.is_empty() && hits.len() < DRAWINGS.len(), "{target}: {cut}");
        assert!(hits.iter().all(|hit| hit["score"].as_f64().expect("a score") >= 0.3), "{target}: {cut}");
        assert!((cut["min_score"].as_f64().expect("a number") - 0.3).abs() < 1e-6);
        assert_eq!(cut["candidates"], all["candidates"], "what is considered stays");
    }
}

async fn nothing_fits_is_an_empty_list(mut bench: Bench) {
    let worker = worker(&mut bench, &[]).await;
    let (mut topics, mut answered) = (0, Vec::new());
    for file in ["unmatched_zh.jsonl", "unmatched_en.jsonl"] {
        let lines = std::fs::read_to_string(crate::binary::root().join("demo").join(file)).expect("reads");
        for line in lines.lines() {
            let topic = serde_json::from_str::<Value>(line).expect("JSON")["text"].clone();
            let answer = ask(&worker, json!({ "topic": topic })).await;
            assert!(answer["min_score"].is_number() && answer["candidates"] == json!(DRAWINGS.len()), "{answer}");
            topics += 1;
            answered.extend((!post_ids(&answer).is_empty()).then_some(topic));
        }
    }
    // In the 1,914 posts of the demo a fifth of these topics finds something that is near enough; in 18 hardly any.
    assert!(topics > 150 && answered.len() * 20 < topics, "{answered:?}");
    let anything = ask(&worker, json!({"topic": "线性代数", "min_score": "none"})).await;
    assert_eq!((post_ids(&anything).len(), &anything["min_score"]), (5, &Value::Null));
    for topic in ["水果", "红苹果", "fruit", "a red apple", "飞机"] {
        let answer = ask(&worker, json!({ "topic": topic })).await;
        assert_eq!(post_ids(&answer).len(), 5, "{topic}: {answer}");
    }
}

async fn freshness_brings_new_posts_forward(mut bench: Bench) {
    let worker = worker(&mut bench, &[]).await;
    let newest = format!("demo:{}", DRAWINGS[DRAWINGS.len() - 1].0);
    let order = async |weight: f64| {
        let freshness = json!({"half_life": "3h", "weight": weight});
        post_ids(
            &ask(&worker, json!({"topic": "水果", "top_k": 18, "min_score": "none", "freshness": freshness})).await,
        )
    };
    let place = |ids: &[String]| ids.iter().position(|id| *id == newest).expect("all posts are there");
    let (none, half, all) = (order(0.0).await, order(0.5).await, order(1.0).await);
    assert_eq!(none, post_ids(&ask(&worker, json!({"topic": "水果", "top_k": 18, "min_score": "none"})).await));
    assert!(place(&half) < place(&none) && place(&all) == 0, "{none:?} {half:?} {all:?}");
    let by_time = DRAWINGS.iter().rev().map(|(code, _)| format!("demo:{code}")).collect::<Vec<_>>();
    assert_eq!(all, by_time);
}

async fn fusion_is_chosen_by_the_request(mut bench: Bench) {
    let worker = worker(&mut bench, &[]).await;
    let ids = async |more: Value| {
        let request = json!({"topic": "会飞的动物", "top_k": 18, "min_score": "none"});
        post_ids(&ask(&worker, with(request, &more)).await)
    };
    let (image, caption) = (ids(json!({"target": "image"})).await, ids(json!({"target": "caption"})).await);
    assert_ne!(image, caption);
    let weighted = |weight: f64| json!({"target": "both", "fusion": "weighted", "image_weight": weight});
    assert_eq!(ids(weighted(1.0)).await, image, "pictures alone");
    assert_eq!(ids(weighted(0.0)).await, caption, "captions alone");
    assert_ne!(ids(json!({"target": "both"})).await, ids(weighted(0.9)).await);
}

/// An answer without what may differ: the time, and the last digits of a float.
fn comparable(mut answer: Value) -> Value {
    if let Some(answer) = answer.as_object_mut() {
        answer.remove("took_ms");
    }
    for hit in answer["hits"].as_array_mut().expect("hits") {
        for field in ["score", "probability", "image_score", "caption_score"] {
            if let Some(value) = hit.get_mut(field).and_then(|value| value.as_f64().map(|number| (value, number))) {
                *value.0 = json!((value.1 * 1e5).round() / 1e5);
            }
        }
    }
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn both_stores_give_the_same_answers_alone_and_in_batches() {
    let Some(mut server) = Bench::server() else { return };
    let mut edge = Bench::edge();
    let (one, other) = (worker(&mut edge, &[]).await, worker(&mut server, &[]).await);
    let shapes = [
        json!({"target": "image", "top_k": 5}),
        json!({"target": "caption", "top_k": 7, "offset": 2}),
        json!({"target": "both", "top_k": 18}),
        json!({"target": "both", "fusion": "weighted", "top_k": 6}),
        json!({"target": "image", "filter": {"tags_any": ["水果"], "not_author": ["甲"]}}),
        json!({"target": "both", "filter": {"author": "乙", "since": "2026-11-20T04:00:00Z"}}),
        json!({"target": "image", "min_score": 0.2, "fold": false}),
    ];
    let subjects = DRAWINGS
        .iter()
        .flat_map(|(code, label)| [json!({"topic": label}), json!({"image": {"base64": drawing_base64(code)}})]);
    let requests = subjects.flat_map(|subject| shapes.iter().map(move |shape| with(subject.clone(), shape)));
    let requests = requests.collect::<Vec<_>>();
    let mut alone = Vec::new();
    for request in &requests {
        let (left, right) = (ask(&one, request.clone()).await, ask(&other, request.clone()).await);
        assert_eq!(comparable(left.clone()), comparable(right), "{request}");
        alone.push(comparable(left));
    }
    assert!(alone.iter().filter(|answer| !answer["hits"].as_array().expect("hits").is_empty()).count() > 200);
    for (requests, alone) in requests.chunks(32).zip(alone.chunks(32)) {
        for worker in [&one, &other] {
            let asked = client().post(format!("{}/v1/search/batch", worker.url));
            let response = asked.body(json!({"searches": requests}).to_string()).send().await.expect("an answer");
            let (status, answer) = read(response).await;
            assert_eq!(status, 200, "{answer}");
            let answers = answer["answers"].as_array().expect("answers").iter().cloned().map(comparable);
            assert_eq!(answers.collect::<Vec<_>>(), alone);
        }
    }
}
