//! Backup and restore as docs/upgrades.md has them: a snapshot by Qdrant's HTTP API, and the topic read again from its time on.

use std::process::Command;

use chrono::{SecondsFormat, Utc};
use feedlens::kafka::Producer;
use serde_json::json;

use crate::binary::root;
use crate::kafka_support::wait_until;
use crate::real_kafka::{create_topic, real_broker};
use crate::running::Running;
use crate::store_server::Server;

const COLLECTION: &str = "posts_feedlens-small-1_128";

/// `curl`, as the document has it.
fn curl(arguments: &[&str]) -> String {
    let output = Command::new("curl").args(["-sS", "--fail-with-body"]).args(arguments).output().expect("curl runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_snapshot_and_the_topic_from_its_time_on_are_all_posts() {
    let Some(kafka) = real_broker("snapshots") else { return };
    let Some(server) = Server::start("", None) else { return };
    create_topic(&kafka, &kafka.posts_topic, 2, &[]).await;
    create_topic(&kafka, &kafka.dead_letter_topic, 1, &[]).await;
    let producer = Producer::new(&kafka).expect("a producer");
    let send = async |id: &str, version: Option<u64>| {
        let body = version.map(|version| json!({"post_id": id, "version": version, "caption": id}).to_string());
        let sent =
            producer.send(&kafka.posts_topic, Some(id.as_bytes()), body.as_deref().map(str::as_bytes), &[]).await;
        sent.expect("acknowledged");
    };
    let (url, http) = (server.url(), server.http_url());
    let ingest = |group: &str, start: &str| {
        let settings = [
            "store.kind=qdrant".to_owned(),
            format!("store.qdrant.url={url}"),
            format!("model.dir={}", root().join("models/small").display()),
            format!("kafka.posts_topic={}", kafka.posts_topic),
            format!("kafka.dead_letter_topic={}", kafka.dead_letter_topic),
            "kafka.standing_topic=\"\"".to_owned(),
            format!("kafka.group={}-{group}", kafka.posts_topic),
            format!("kafka.start={start}"),
        ];
        Running::start("ingest", &kafka.brokers, &settings.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let settled = async |worker: &Running, messages: u64| {
        wait_until(&format!("{messages} messages"), async || {
            tokio::task::block_in_place(|| worker.settled()) >= messages
        })
        .await;
    };
    for id in ["kept", "edited", "deleted"] {
        send(id, Some(1)).await;
    }
    let worker = ingest("live", "earliest");
    // One is the warm-up of the topic, which is no post.
    settled(&worker, 4).await;

    // The time first: what is written while the snapshot is made is read twice, and changes nothing the second time.
    let time = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
    let made = curl(&["-X", "POST", &format!("{http}/collections/{COLLECTION}/snapshots?wait=true")]);
    let name = serde_json::from_str::<serde_json::Value>(&made).expect("JSON")["result"]["name"].clone();
    let name = name.as_str().expect("a name");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("posts.snapshot").display().to_string();
    curl(&["-o", &file, &format!("{http}/collections/{COLLECTION}/snapshots/{name}")]);
    send("edited", Some(2)).await;
    send("deleted", None).await;
    send("late", Some(1)).await;
    settled(&worker, 7).await;
    worker.terminate();
    let (code, log) = tokio::task::spawn_blocking(|| worker.end()).await.expect("no panic");
    assert_eq!(code, Some(0), "{log}");

    // All is lost, and comes back as it was at the snapshot.
    curl(&["-X", "DELETE", &format!("{http}/collections/{COLLECTION}")]);
    let upload = format!("{http}/collections/{COLLECTION}/snapshots/upload?priority=snapshot&wait=true");
    curl(&["-X", "POST", &upload, "-F", &format!("snapshot=@{file}")]);
    let of = |id: &str| {
        let id = feedlens::post::point_id(id);
        let body = json!({"ids": [id], "with_payload": true}).to_string();
        let answer = curl(&[
            "-X",
            "POST",
            "-H",
            "content-type: application/json",
            "-d",
            &body,
            &format!("{http}/collections/{COLLECTION}/points"),
        ]);
        let answer = serde_json::from_str::<serde_json::Value>(&answer).expect("JSON");
        let payload = &answer["result"][0]["payload"];
        (payload["version"].as_u64(), payload["deleted"] == true)
    };
    assert_eq!([of("kept"), of("edited"), of("deleted")], [(Some(1), false); 3]);
    assert_eq!(of("late"), (None, false));

    let worker = ingest("restored", &time);
    settled(&worker, 3).await;
    wait_until("the topic's end", async || of("late") == (Some(1), false)).await;
    assert_eq!([of("kept"), of("edited")], [(Some(1), false), (Some(2), false)]);
    assert!(of("deleted").1, "the deletion is back");
    // The alias, which snapshots do not hold, is made by the worker that starts.
    let aliases = curl(&[&format!("{http}/aliases")]);
    assert!(aliases.contains("\"posts\"") && aliases.contains(COLLECTION), "{aliases}");
    worker.terminate();
    let (code, log) = tokio::task::spawn_blocking(|| worker.end()).await.expect("no panic");
    assert_eq!(code, Some(0), "{log}");
}
