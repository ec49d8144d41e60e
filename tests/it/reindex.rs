//! `feedlens collection reindex`, `compare` and `alias` with the real binary and a real Qdrant server: what the topics no longer
//! hold comes over, and what is no good does not become live.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::Utc;
use feedlens::store::{Order, Origin, PROBE, Point, Tombstone, Write};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::binary::{refuses, root};
use crate::kafka_support::wait_until;
use crate::upgrade_support::{NEW, OLD, Site, reversed_model, stored, torn_model};

/// Indexes what was sent under the small model, and ends.
pub async fn index(site: &Site, messages: u64) {
    let (ingest, _) = site.start(&["ingest"], &root().join("models/small"));
    wait_until("the posts under the old model", async || tokio::task::block_in_place(|| ingest.settled()) >= messages)
        .await;
    ingest.terminate();
    let (code, log) = tokio::task::spawn_blocking(|| ingest.end()).await.expect("no panic");
    assert_eq!(code, Some(0), "{log}");
}

fn problems(stdout: &str) -> BTreeMap<String, (String, String)> {
    let line = |line: &str| {
        let problem: Value = serde_json::from_str(line).expect("JSON");
        let field = |name: &str| problem[name].as_str().expect("a string").to_owned();
        (field("post_id"), (field("problem"), field("reason")))
    };
    stdout.lines().map(line).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_topics_no_longer_hold_is_carried_over_in_its_place() {
    let Some(mut site) = Site::new("carry") else { return };
    let pictures = tempfile::tempdir().expect("a folder");
    for name in ["1f34e.png", "1f004.png"] {
        std::fs::copy(site.pictures.join(name), pictures.path().join(name)).expect("copies");
    }
    site.pictures = pictures.path().to_owned();
    let inline = json!({"base64": STANDARD.encode(std::fs::read(pictures.path().join("1f34e.png")).expect("reads"))});
    site.post("path", 3, json!({"path": "1f34e.png"})).await;
    site.post("caption", 3, Value::Null).await;
    site.post("inline", 3, inline.clone()).await;
    site.post("gone", 3, json!({"path": "1f004.png"})).await;
    let bare = json!({"post_id": "bare", "version": 3, "image": inline});
    site.send("bare", Some(&bare.to_string()), &[]).await;
    site.post("deleted", 3, Value::Null).await;
    site.delete("deleted", 4).await;
    site.post("deleted-bare", 3, Value::Null).await;
    site.send("deleted-bare", None, &[]).await;
    site.post("edited", 3, Value::Null).await;
    index(&site, 10).await;
    // What workers of the live collection tried it with: one died before its point was deleted.
    let origin = |offset| Origin { topic: PROBE.to_owned(), partition: 0, offset, timestamp: 1 };
    let order = |offset| Order { version: None, source: origin(offset) };
    let tried = json!({"post_id": PROBE, "hidden": true}).as_object().cloned().expect("an object");
    let (left, gone) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let vector = Some(vec![1.0; 128]);
    let post = Point {
        id: left,
        order: order(1),
        image: vector.clone(),
        caption: vector,
        image_pending: false,
        payload: tried,
    };
    let deletion = Tombstone { id: gone, order: order(2), post_id: PROBE.to_owned(), deleted_at: Utc::now() };
    let tried = vec![Write::Upsert(post), Write::Delete(deletion)];
    site.store(OLD).await.write(tried).await.expect("writes");

    // The retention time is over; one post was edited since, and one that was deleted comes once more in an old version.
    site.forget_the_topics().await;
    std::fs::remove_file(pictures.path().join("1f004.png")).expect("removes");
    site.post("edited", 5, Value::Null).await;
    site.post("deleted", 2, Value::Null).await;
    let new = reversed_model();
    let (code, stdout, log) = site.run(&["collection", "reindex", "--once"], new.path()).await;
    assert_eq!(code, Some(0), "{log}");
    let told = problems(&stdout);
    let kinds = told.iter().map(|(id, (kind, _))| (id.as_str(), kind.as_str())).collect::<Vec<_>>();
    assert_eq!(kinds, [("bare", "lost"), ("gone", "without_picture"), ("inline", "without_picture")], "{stdout}");
    assert!(told["inline"].1.contains("thumbnail") && told["gone"].1.contains("1f004.png"), "{told:?}");

    let store = site.store(NEW).await;
    assert_eq!(site.collections().await.live().await.expect("answers"), Some(site.collection(OLD)), "the alias stays");
    assert_eq!(store.count().await.expect("counts"), 5);
    assert!(stored(&store, "bare").await.is_none());
    assert!(store.get(&[left, gone]).await.expect("reads").is_empty(), "neither is a post");
    for (id, version, pending) in
        [("path", 3, false), ("caption", 3, false), ("inline", 3, true), ("gone", 3, true), ("edited", 5, false)]
    {
        let (point, is_post) = stored(&store, id).await.unwrap_or_else(|| panic!("{id} lacks"));
        assert!(is_post && point.payload["version"] == version && point.payload["model"] == NEW, "{id}: {point:?}");
        assert_eq!(point.payload.get("image_pending") == Some(&json!(true)), pending, "{id}");
        assert_eq!(point.image.is_some(), id == "path", "{id}");
        assert!(point.caption.is_some(), "{id}");
    }
    let old_store = site.store(OLD).await;
    let (before, after) = (stored(&old_store, "path").await.expect("old"), stored(&store, "path").await.expect("new"));
    let mut vector = before.0.image.expect("a picture");
    vector.reverse();
    for (expected, value) in vector.iter().zip(after.0.image.expect("a picture")) {
        assert!((expected - value).abs() < 1e-4, "the vector is not the new model's");
    }
    for field in ["caption", "source", "ordered_by", "image"] {
        assert_eq!(before.0.payload[field], after.0.payload[field], "{field}");
    }
    for id in ["deleted", "deleted-bare"] {
        let marker = stored(&store, id).await;
        assert!(matches!(marker, Some((_, false))), "{id}: {marker:?}");
    }

    // What lacks is told, and keeps the alias where it is.
    let folder = tempfile::tempdir().expect("a folder");
    let queries = folder.path().join("queries");
    std::fs::write(&queries, "红苹果\n").expect("writes");
    let old = root().join("models/small");
    let comparison = ["--live-model", old.to_str().expect("a path"), "--queries", queries.to_str().expect("a path")];
    let (code, stdout, log) =
        site.run(&[&["collection", "compare", "--json"][..], &comparison].concat(), new.path()).await;
    assert_eq!(code, Some(0), "{log}");
    let posts = &serde_json::from_str::<Value>(&stdout).expect("one JSON value")["posts"];
    assert_eq!((&posts["live"], &posts["new"], &posts["missing"]), (&json!(6), &json!(5), &json!(1)), "{posts}");
    assert_eq!((&posts["missing_ids"], &posts["without_picture"]), (&json!(["bare"]), &json!(2)), "{posts}");
    let alias = [&["collection", "alias", "--min-overlap", "0"][..], &comparison].concat();
    let (code, _, log) = site.run(&[&alias[..], &["--max-missing", "2"]].concat(), new.path()).await;
    assert!(code == Some(1) && log.contains("new collection: 1") && log.contains("picture there: 2"), "{log}");
    assert_eq!(site.collections().await.live().await.expect("answers"), Some(site.collection(OLD)));
    let (code, _, log) = site.run(&[&alias[..], &["--max-missing", "3"]].concat(), new.path()).await;
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(site.collections().await.live().await.expect("answers"), Some(site.collection(NEW)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_answers_nonsense_does_not_become_live() {
    let Some(site) = Site::new("torn") else { return };
    let pictures = std::fs::read_dir(&site.pictures).expect("a folder").filter_map(Result::ok);
    let mut pictures = pictures.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>();
    pictures.sort();
    for (number, name) in pictures.iter().step_by(pictures.len() / 50).take(50).enumerate() {
        site.post(&format!("p{number}"), 1, json!({"path": name})).await;
    }
    site.post("apple", 1, json!({"path": "1f34e.png"})).await;
    index(&site, 51).await;
    let (old, torn) = (root().join("models/small"), torn_model());
    let folder = tempfile::tempdir().expect("a folder");
    let queries = folder.path().join("queries.jsonl");
    let labelled =
        "{\"text\": \"红苹果\", \"image\": \"1f34e.png\"}\n{\"text\": \"red apple\", \"image\": \"1f34e.png\"}\n";
    std::fs::write(&queries, labelled).expect("writes");
    let comparison = ["--live-model", old.to_str().expect("a path"), "--queries", queries.to_str().expect("a path")];
    let alias = |least: &[&'static str]| [&["collection", "alias"][..], least, &comparison[..]].concat();

    let (code, _, log) = site.run(&alias(&["--min-overlap", "0.5"]), torn.path()).await;
    assert!(code == Some(1) && log.contains("there is no collection") && log.contains("collection reindex"), "{log}");
    let (code, _, log) = site.run(&["collection", "reindex", "--once"], torn.path()).await;
    assert_eq!(code, Some(0), "{log}");
    let (code, said, log) = site.run(&alias(&["--min-overlap", "0.8"]), torn.path()).await;
    assert!(code == Some(1) && log.contains("stays: the mean overlap is") && log.contains("0.8"), "{said}{log}");
    let (code, said, log) = site.run(&alias(&["--min-recall", "100"]), torn.path()).await;
    assert!(code == Some(1) && log.contains("stays: Recall@10 is"), "{said}{log}");
    assert!(said.contains("live: R@1 100.0  R@5 100.0  R@10 100.0"), "{said}");
    assert_eq!(site.collections().await.live().await.expect("answers"), Some(site.collection(OLD)));

    // By force it does; a collection that is not there never does.
    let (code, _, log) = site.run(&["collection", "alias", "--to", "no_such", "--force"], torn.path()).await;
    assert!(code == Some(1) && log.contains("there is no collection no_such"), "{log}");
    let empty = reversed_model();
    let created = site.store(NEW).await;
    assert_eq!(created.count().await.expect("counts"), 0);
    let (code, _, log) = site.run(&["collection", "alias", "--force"], empty.path()).await;
    assert!(code == Some(1) && log.contains("is empty"), "{log}");
    let (code, _, log) = site.run(&["collection", "alias", "--force"], torn.path()).await;
    assert_eq!(code, Some(0), "{log}");
    let live = site.collections().await.live().await.expect("answers");
    assert_eq!(live, Some(site.collection("feedlens-torn")));
}

#[test]
fn wrong_use_is_told_with_the_way_out() {
    let edge = ["--set", "store.kind=edge"];
    let refused = |arguments: &[&str], code, says: &[&str]| {
        refuses(&[&["collection"], arguments, &edge].concat(), code, says);
    };
    refused(&["reindex"], 1, &["store.kind = \"edge\"", "store.edge.dir", "kafka.group"]);
    refused(&["alias", "--force"], 1, &["store.edge.dir"]);
    refused(&["alias"], 2, &["--min-overlap", "--min-recall", "--force"]);
    refused(&["alias", "--to", "x", "--min-overlap", "1"], 2, &["--to goes with --force"]);
    let nobody = ["--set", "store.qdrant.url=http://127.0.0.1:1"];
    refuses(&[&["collection", "reindex"], &nobody[..]].concat(), 1, &["127.0.0.1:1", "store.qdrant.url"]);
}
