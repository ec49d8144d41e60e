//! Labels and moderation through the real ingest pipe: embedded broker, real small model, embedded store.

use feedlens::kafka::{Begin, Followed, follow};
use feedlens::metrics::Metrics;
use feedlens::query::http::{self, Interface};
use feedlens::store::{self, ModelStamp};
use rdkafka::types::RDKafkaRespErr;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::binary::refuses;
use crate::ingest_support::Bench;
use crate::kafka_support::{PATIENCE, wait_until};
use crate::query_support::{DRAWINGS, Worker, client, drawing_base64, post_ids, read};
use crate::standing::Matches;

/// What the demo's drawings show, in words that are not their captions.
const KINDS: &str = r#"labels.sets=[
    { name = "kind", threshold = 0.4, background = { zh = ["一张图片"], en = ["a picture"] }, labels = [
        { name = "fruit", zh = ["水果"], en = ["fruit"] },
        { name = "vehicle", zh = ["交通工具", "车"], en = ["a vehicle", "transport"] },
        { name = "animal", zh = ["动物"], en = ["an animal"] },
    ] },
]"#;

/// One set that asks for `action` where a caption speaks of apples.
pub fn apples(action: &str) -> String {
    format!(
        "labels.sets=[{{ name = \"safety\", moderation = \"{action}\", background = {{ zh = [\"汽车\"] }}, labels = [{{ \
         name = \"apple\", zh = [\"红苹果\"] }}] }}]"
    )
}

async fn labels(bench: &Bench, id: &str) -> Value {
    let payload = bench.stored(id).await.expect("is stored").payload;
    json!({"labels": payload.get("labels"), "hidden": payload.get("hidden")})
}

#[tokio::test(flavor = "multi_thread")]
async fn drawings_get_the_labels_of_what_they_show() {
    let bench = Bench::new(&[KINDS]).await;
    let worker = bench.work();
    for (code, _) in DRAWINGS {
        // No caption: the picture alone decides.
        let post = json!({"post_id": code, "image": {"base64": drawing_base64(code)}}).to_string();
        bench.send(code, Some(post.as_bytes())).await;
    }
    worker.wait_for(DRAWINGS.len() as u64).await;
    let of = async |codes: &[(&str, &str)], label: &str| {
        let mut right = 0;
        for (code, _) in codes {
            right += usize::from(labels(&bench, code).await["labels"] == json!([label]));
        }
        right
    };
    let fruit = of(&DRAWINGS[..8], "kind/fruit").await;
    let vehicles = of(&DRAWINGS[8..12], "kind/vehicle").await;
    let animals = of(&DRAWINGS[12..15], "kind/animal").await;
    // A house, a football and a hammer are none of them.
    assert!(fruit >= 7 && vehicles >= 3 && animals >= 2, "right: {fruit} of 8, {vehicles} of 4, {animals} of 3");
    let counted = worker.metrics.posts_labelled.with_label_values(&["kind/fruit"]).get();
    assert!(counted >= fruit as u64, "{counted}");
    worker.stop().await;
    // Searches filter on them.
    let query = Worker::over(&bench.config, bench.store.clone()).await;
    let search = "/v1/search?q=%E6%B0%B4%E6%9E%9C&min_score=none&top_k=20";
    let (_, only) = query.get(&format!("{search}&label=kind/vehicle")).await;
    let (_, without) = query.get(&format!("{search}&label_none=kind/vehicle")).await;
    let (only, without) = (post_ids(&only), post_ids(&without));
    assert!(only.len() >= vehicles && without.len() == DRAWINGS.len() - only.len(), "{only:?} {without:?}");
    assert!(only.iter().all(|id| !without.contains(id)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caption_decides_where_there_is_no_picture_and_an_edit_changes_the_labels() {
    let bench = Bench::new(&[&apples("flag")]).await;
    let worker = bench.work();
    bench.post("a", "红苹果").await;
    worker.wait_for(1).await;
    assert_eq!(labels(&bench, "a").await, json!({"labels": ["safety/apple"], "hidden": null}));
    assert_eq!(worker.metrics.posts_moderated.with_label_values(&["safety", "flag"]).get(), 1);
    bench.post("a", "汽车").await;
    worker.wait_for(2).await;
    assert_eq!(labels(&bench, "a").await, json!({"labels": null, "hidden": null}));
    // The picture speaks louder than the caption.
    let post = json!({"post_id": "b", "caption": "红苹果", "image": {"base64": drawing_base64("1f697")}}).to_string();
    bench.send("b", Some(post.as_bytes())).await;
    worker.wait_for(3).await;
    assert_eq!(labels(&bench, "b").await["labels"], Value::Null);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hidden_post_is_marked_and_matches_nothing() {
    let bench = Bench::new(&[&apples("hide")]).await;
    bench.topic("apples", Some("红苹果")).await;
    bench.topic("cars", Some("汽车")).await;
    let worker = bench.work();
    bench.post("a", "红苹果").await;
    bench.post("b", "汽车").await;
    worker.wait_for(2).await;
    assert_eq!(labels(&bench, "a").await, json!({"labels": ["safety/apple"], "hidden": true}));
    assert_eq!(labels(&bench, "b").await, json!({"labels": null, "hidden": null}));
    assert_eq!(Matches::read(&bench.config.kafka).await.next().await.topic_id, "cars");
    assert_eq!(worker.metrics.standing_matches.get(), 1);
    worker.stop().await;
    let query = Worker::over(&bench.config, bench.store.clone()).await;
    let (_, answer) = query.get("/v1/search?q=%E7%BA%A2%E8%8B%B9%E6%9E%9C&target=caption&min_score=none").await;
    assert_eq!(post_ids(&answer), ["b"], "the post that is hidden is the nearest");
}

/// The way out of docs/labels.md.
#[tokio::test(flavor = "multi_thread")]
async fn new_sets_count_for_posts_of_before_in_a_collection_that_is_filled_anew() {
    let mut bench = Bench::new(&[]).await;
    let worker = bench.work();
    bench.post("a", "红苹果").await;
    worker.wait_for(1).await;
    worker.stop().await;
    bench.config.labels = crate::query_support::config(&[&apples("flag")]).labels;
    // Read again into the same collection: the same write stands already.
    bench.config.kafka.group = "posts-again".to_owned();
    let worker = bench.work();
    worker.wait_for(1).await;
    worker.stop().await;
    assert_eq!(labels(&bench, "a").await["labels"], Value::Null);
    bench.config.store.edge.dir.set_file_name("filled-anew");
    let (model, dimension) = (bench.encoder.bundle.id.clone(), bench.encoder.bundle.dimension);
    let stamp = ModelStamp { model, dimension };
    bench.store = store::open(&bench.config.store, &stamp, &Metrics::new()).await.expect("opens");
    bench.config.kafka.group = "posts-anew".to_owned();
    let worker = bench.work();
    worker.wait_for(1).await;
    worker.stop().await;
    assert_eq!(labels(&bench, "a").await["labels"], json!(["safety/apple"]));
}

/// The value of the next message of `kafka.moderation_topic`, whose key is the post's id.
pub async fn next_routed(told: &mut tokio::sync::mpsc::Receiver<Followed>) -> Value {
    loop {
        let next = tokio::time::timeout(PATIENCE, told.recv()).await.expect("in time").expect("goes on");
        if let Followed::Message(message) = next {
            let routed: Value = serde_json::from_slice(&message.payload.expect("a value")).expect("JSON");
            assert_eq!(message.key.as_deref(), routed["post_id"].as_str().map(str::as_bytes));
            return routed;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_routed_post_is_told_of_without_its_picture() {
    let bench = Bench::new(&[&apples("route")]).await;
    let worker = bench.work();
    let post = json!({"post_id": "a", "caption": "苹果", "author": "u42", "version": 7, "tags": ["x"],
        "image": {"base64": drawing_base64("1f34e")}});
    bench.send("a", Some(post.to_string().as_bytes())).await;
    bench.post("b", "汽车").await;
    worker.wait_for(2).await;
    let kafka = &bench.config.kafka;
    let mut told = follow(kafka, &kafka.moderation_topic, Begin::Earliest, 1 << 20).await.expect("reads");
    let routed = next_routed(&mut told).await;
    assert_eq!(routed["labels"][0]["label"], "safety/apple");
    assert!(routed["labels"][0]["score"].as_f64().expect("a number") > 0.5, "{routed}");
    let image = json!({"inline": true});
    for (field, expected) in [
        ("caption", json!("苹果")),
        ("author", json!("u42")),
        ("version", json!(7)),
        ("image", image),
        ("created_at", Value::Null),
    ] {
        assert_eq!(routed[field], expected, "{field} of {routed}");
    }
    assert_eq!((&routed["source"]["topic"], &routed["source"]["offset"]), (&json!("posts"), &json!(0)));
    assert!(routed.to_string().len() < 1_000, "no picture: {routed}");
    assert_eq!(worker.metrics.posts_moderated.with_label_values(&["safety", "route"]).get(), 1);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_moderation_topic_delays_and_a_restart_tells_it() {
    let bench = Bench::new(&[&apples("route"), "ingest.retry_first=5ms", "ingest.retry_max=20ms"]).await;
    let refuse = |error| {
        bench.broker.cluster().topic_error(&bench.config.kafka.moderation_topic, error).expect("a topic");
    };
    refuse(RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED);
    let worker = bench.work();
    bench.post("a", "红苹果").await;
    let retried = || worker.metrics.posts_retried.with_label_values(&["broker"]).get();
    wait_until("the message to be refused", async || retried() > 0).await;
    assert!(bench.stored("a").await.is_some(), "it is in the store");
    assert_eq!(worker.settled(), 0, "and not settled");
    worker.running.abort();
    let _ = worker.running.await;
    refuse(RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR);
    let worker = bench.work();
    worker.wait_for(1).await;
    let kafka = &bench.config.kafka;
    let mut told = follow(kafka, &kafka.moderation_topic, Begin::Earliest, 1 << 20).await.expect("reads");
    assert_eq!(next_routed(&mut told).await["post_id"], "a");
    worker.stop().await;
}

#[test]
fn bad_sets_end_the_start_with_a_sentence() {
    let check =
        |sets: &str, says: &[&str]| refuses(&["config", "check", "--set", &format!("labels.sets={sets}")], 2, says);
    let background = "background = { en = [\"a picture\"] }";
    check(
        &format!("[{{ name = \"a\", {background}, labels = [{{ name = \"b\" }}] }}]"),
        &["\"a\"", "\"b\"", "prompts"],
    );
    check("[{ name = \"a\", labels = [] }]", &["\"a\"", "no labels"]);
    check("[{ name = \"a\" }]", &["labels"]);
    check("[{ name = \"a\", moderation = \"delete\", labels = [] }]", &["delete"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_query_worker_lists_the_sets() {
    let worker = Worker::empty(&[]).await;
    assert_eq!(worker.get("/v1/labels").await, (200, json!({"sets": []})));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/v1/labels", listener.local_addr().expect("bound"));
    let labels = crate::query_support::config(&[KINDS]).labels;
    let interface = Interface { service: worker.service.clone(), live: None, labels };
    let _serving = AbortOnDropHandle::new(tokio::spawn(http::run(listener, interface, worker.shutdown.clone())));
    let sets = json!({"sets": [{"name": "kind", "moderation": null, "labels": ["fruit", "vehicle", "animal"]}]});
    assert_eq!(read(client().get(url).send().await.expect("an answer")).await, (200, sets));
}
