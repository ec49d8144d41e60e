//! `feedlens collection`, with the real binary.

use qdrant_client::Qdrant;
use qdrant_client::qdrant::{CreateAliasBuilder, CreateCollectionBuilder, Distance, VectorParamsBuilder};
use serde_json::{Value, json};

use crate::binary::{feedlens, refuses};
use crate::store_server::shared;

/// Settings with which nothing but the store can be reached: neither brokers nor ONNX Runtime.
const ALONE: [&str; 4] = ["--set", "kafka.brokers=127.0.0.1:1", "--set", "encoder.library=no/such/library.so"];

fn collection(arguments: &[&str], settings: &[String]) -> Value {
    let mut command = feedlens(&["collection"]);
    command.args(arguments).args(ALONE).arg("--json");
    let output = command.args(settings.iter().flat_map(|set| ["--set", set])).output().expect("the binary starts");
    let stdout = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    serde_json::from_str(&stdout).expect("JSON")
}

/// Looked at, made, and made again.
fn is_made_once(settings: &[String], expected: &Value) {
    let absent = collection(&["info"], settings);
    assert_eq!((&absent["alias_of"], &absent["posts"]), (&Value::Null, &Value::Null), "{absent}");
    // Looking has made nothing.
    assert_eq!(collection(&["info"], settings), absent);
    for created in [true, false] {
        let mut state = collection(&["create"], settings);
        assert_eq!(state["created"], created, "{state}");
        state.as_object_mut().expect("an object").remove("created");
        assert_eq!(&state, expected);
        assert_eq!(&collection(&["info"], settings), expected);
    }
}

#[test]
fn embedded_store_is_made_once_and_looking_makes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("store");
    let settings = ["store.kind=edge".to_owned(), format!("store.edge.dir={}", dir.display())];
    let place = dir.display().to_string();
    collection(&["info"], &settings);
    assert!(!dir.exists());
    is_made_once(
        &settings,
        &json!({"alias": "posts", "collection": place, "model": "feedlens-small-1", "dimension": 128, "alias_of": place,
                "posts": 0}),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn server_gets_collection_indexes_and_alias_once_and_another_models_alias_is_refused() {
    let Some((url, key)) = tokio::task::block_in_place(shared) else { return };
    let alias = format!("create{}", std::process::id());
    let name = format!("{alias}_feedlens-small-1_128");
    let mut settings =
        vec![format!("store.qdrant.url={url}"), format!("store.alias={alias}"), "store.qdrant.shards=2".to_owned()];
    settings.extend((!key.is_empty()).then(|| format!("store.qdrant.api_key={}", key.expose())));
    is_made_once(
        &settings,
        &json!({"alias": alias, "collection": name, "model": "feedlens-small-1", "dimension": 128, "alias_of": name,
                "posts": 0}),
    );
    let client = Qdrant::from_url(&url).api_key(key.expose()).skip_compatibility_check().build().unwrap();
    let info = client.collection_info(&name).await.unwrap().result.unwrap();
    assert_eq!(info.config.unwrap().params.unwrap().shard_number, 2);
    assert!(info.payload_schema.contains_key("author") && info.payload_schema.contains_key("created_at"));

    // What lacks is mended; what is another model's is not touched.
    client.delete_alias(&alias).await.unwrap();
    let lacks = collection(&["info"], &settings);
    assert_eq!((&lacks["alias_of"], &lacks["posts"]), (&Value::Null, &json!(0)), "{lacks}");
    let mended = collection(&["create"], &settings);
    assert_eq!((&mended["created"], &mended["alias_of"]), (&json!(false), &json!(name)), "{mended}");
    let other = format!("{alias}_other_8");
    let vectors = VectorParamsBuilder::new(8, Distance::Cosine);
    client.create_collection(CreateCollectionBuilder::new(&other).vectors_config(vectors)).await.unwrap();
    client.create_alias(CreateAliasBuilder::new(&other, &alias)).await.unwrap();
    let mut arguments = vec!["collection", "create"];
    arguments.extend(settings.iter().flat_map(|set| ["--set", set]));
    refuses(&arguments, 1, &[&other, &name]);
    assert_eq!(collection(&["info"], &settings)["alias_of"], json!(other));
}

#[test]
fn what_keeps_it_from_its_work_is_one_sentence() {
    refuses(&["collection", "create", "--set", "store.qdrant.url=http://127.0.0.1:1"], 1, &["127.0.0.1:1"]);
    refuses(&["collection", "info", "--model", "no/such/model"], 1, &["no/such/model"]);
}
