//! What a real Qdrant server refuses while the real worker writes to it: for lack of disk, by a limit, to a key that was
//! revoked. Each only delays, is told, and leaves no dead letter.

use feedlens::config::Secret;
use qdrant_client::Qdrant;
use qdrant_client::qdrant::{StrictModeConfigBuilder, UpdateCollectionBuilder};

use crate::kafka_support::wait_until;
use crate::outage_support::{Disk, Feed, MIB, ends_having_told_once, says};
use crate::store_server::Server;

fn feed_to(server: &Server) -> Feed {
    Feed::new(vec![
        "store.kind=qdrant".to_owned(),
        format!("store.qdrant.url={}", server.url()),
        format!("store.qdrant.api_key={}", server.api_key),
    ])
}

fn client(server: &Server) -> Qdrant {
    let key = Secret::new(server.api_key);
    Qdrant::from_url(&server.url()).api_key(key.expose()).skip_compatibility_check().build().expect("a client")
}

async fn restart(mut server: Server, api_key: &'static str) -> Server {
    let restarted = tokio::task::spawn_blocking(move || {
        server.kill();
        server.api_key = api_key;
        server.begin();
        server
    });
    restarted.await.expect("no panic")
}

async fn collection(client: &Qdrant) -> String {
    client.list_collections().await.expect("lists").collections.remove(0).name
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_the_server_pauses_ingest_until_there_is_room() {
    let Some(disk) = Disk::new(400 * MIB) else { return };
    let Some(server) = Server::start("", Some(disk.path())) else { return };
    let mut feed = feed_to(&server);
    let mut running = feed.worker(&[]);
    feed.send(200).await;
    feed.indexed(&mut running).await;
    // The server refuses writes below 64 MiB.
    disk.leave(40 * MIB);
    feed.send(300).await;
    says(&mut running, "store_no_space", "No space left on device").await;
    assert_eq!(running.metric("feedlens_posts_indexed_total"), 200.0);
    disk.make_room();
    feed.indexed(&mut running).await;
    ends_having_told_once(running, "store_no_space", "the disk of the server is full");
    feed.is_all_there().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_the_collection_pauses_ingest_until_it_is_raised() {
    let Some(server) = Server::start("", None) else { return };
    let mut feed = feed_to(&server);
    let mut running = feed.worker(&[]);
    feed.send(200).await;
    feed.indexed(&mut running).await;
    let client = client(&server);
    let collection = collection(&client).await;
    let limited = async |strict: StrictModeConfigBuilder| {
        let update = UpdateCollectionBuilder::new(&collection).strict_mode_config(strict.enabled(true));
        client.update_collection(update).await.expect("updates");
    };
    limited(StrictModeConfigBuilder::default().max_points_count(100)).await;
    // The server looks at the size of a collection that it loaded, and not of one that it made.
    let _server = restart(server, "").await;
    feed.send(300).await;
    says(&mut running, "store_limit", "Max points count limit of 100 reached").await;
    limited(StrictModeConfigBuilder::default().max_points_count(100_000).write_rate_limit(10_000)).await;
    feed.indexed(&mut running).await;
    ends_having_told_once(running, "store_limit", "raise that limit");
    feed.is_all_there().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_pauses_ingest_until_it_is_accepted_again() {
    let Some(server) = Server::start("first-k3y", None) else { return };
    let mut feed = feed_to(&server);
    let mut running = feed.worker(&[]);
    feed.send(200).await;
    feed.indexed(&mut running).await;
    let server = restart(server, "other-k3y").await;
    feed.send(300).await;
    says(&mut running, "store_unauthorized", "store.qdrant.api_key is no longer accepted").await;
    let _server = restart(server, "first-k3y").await;
    feed.indexed(&mut running).await;
    ends_having_told_once(running, "store_unauthorized", "store.qdrant.api_key is no longer accepted");
    feed.is_all_there().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_is_deleted_ends_the_worker_with_a_sentence() {
    let Some(server) = Server::start("", None) else { return };
    let mut feed = feed_to(&server);
    let mut running = feed.worker(&[]);
    feed.send(200).await;
    feed.indexed(&mut running).await;
    let client = client(&server);
    client.delete_collection(collection(&client).await).await.expect("deletes");
    feed.send(100).await;
    wait_until("the worker to end", async || running.has_ended()).await;
    let (code, log) = running.end();
    let last = log.lines().last().unwrap_or_default();
    assert!(code == Some(1) && last.starts_with("feedlens: ") && last.contains("the collection is gone"), "{log}");
}

/// With a limit that no post fits into.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_rejects_every_post_ends_the_worker_without_a_dead_letter() {
    let Some(server) = Server::start("", None) else { return };
    let mut feed = feed_to(&server);
    let mut running = feed.worker(&[]);
    feed.send(200).await;
    feed.indexed(&mut running).await;
    let client = client(&server);
    let strict = StrictModeConfigBuilder::default().enabled(true).upsert_max_batchsize(0);
    let update = UpdateCollectionBuilder::new(collection(&client).await).strict_mode_config(strict);
    client.update_collection(update).await.expect("updates");
    feed.send(200).await;
    wait_until("the worker to end", async || running.has_ended()).await;
    let (code, log) = running.end();
    let last = log.lines().last().unwrap_or_default();
    assert!(code == Some(1) && last.starts_with("feedlens: ") && last.contains("it is not the posts"), "{log}");
    assert_eq!(feed.dead_letters(), 0, "all of them come again");
}
