//! What the start does: reach the server, and make the collection, its indexes and the alias where absent. Several
//! workers may do it at once.

use std::collections::HashMap;

use chrono::Utc;
use qdrant_client::qdrant::vectors_config::Config as VectorsKind;
use qdrant_client::qdrant::{
    CollectionInfo, CreateAliasBuilder, CreateCollectionBuilder, CreateFieldIndexCollectionBuilder, Distance,
    FieldType, VectorParams, VectorParamsBuilder, VectorsConfigBuilder,
};
use qdrant_client::{Qdrant, QdrantError};

use super::fault::{Faults, is_forbidden};
use crate::error::Fault;
use crate::store::order::{DELETED, REVISION};
use crate::store::rows::DELETED_AT;
use crate::store::{HIDDEN, LABELS, ModelStamp, QdrantConfig, VectorName};

/// The first server with conditional upserts. An older one takes the request and ignores the condition, and an older
/// write would win.
const OLDEST_SERVER: (u64, u64) = (1, 16);

/// The first server that logs the outcome of a conditional upsert. Older ones log its condition and decide it again when
/// they are started after a kill, by data that may be newer (qdrant/qdrant#9575, #9678).
const REPLAYS_OUTCOMES: (u64, u64) = (1, 19);

/// Metadata of a collection: when it was made, in milliseconds since 1970. Two of the same name, one made after the other
/// was deleted, are told apart by it.
const MADE_AT: &str = "feedlens_made_at";

const INDEXES: [(&str, FieldType); 9] = [
    ("author", FieldType::Keyword),
    ("lang", FieldType::Keyword),
    ("tags", FieldType::Keyword),
    ("created_at", FieldType::Datetime),
    (LABELS, FieldType::Keyword),
    (HIDDEN, FieldType::Bool),
    (REVISION, FieldType::Integer),
    (DELETED, FieldType::Bool),
    (DELETED_AT, FieldType::Datetime),
];

/// A client of a server that answers.
pub(super) async fn connect(config: &QdrantConfig, faults: &Faults) -> Result<Qdrant, Fault> {
    let mut builder = Qdrant::from_url(&config.url)
        .timeout(config.timeout)
        .connect_timeout(config.connect_timeout)
        // That check prints to standard output, and blocks.
        .skip_compatibility_check();
    if !config.api_key.is_empty() {
        // The client's own error for this shows the key.
        if !config.api_key.expose().bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            return Err(Fault::fatal(
                "store.qdrant.api_key has a character that cannot be sent (only printable ASCII can); was it read from \
                 a file with a line break at its end?",
            ));
        }
        builder = builder.api_key(config.api_key.expose());
    }
    let client = builder.build().map_err(|error| faults.at_start("reach", &error))?;
    // Not the health check, which needs no API key.
    let reached = async {
        let server = client.health_check().await?;
        client.list_aliases().await?;
        Ok::<_, QdrantError>(server.version)
    };
    let version = match tokio::time::timeout(config.connect_timeout, reached).await {
        Ok(result) => result.map_err(|error| faults.at_start("reach", &error))?,
        Err(_) => {
            return Err(Fault::fatal(format!(
                "qdrant at {} does not answer within {}; check store.qdrant.url (the gRPC port), and that the server \
                 runs",
                faults.server(),
                humantime_serde::re::humantime::format_duration(config.connect_timeout)
            )));
        }
    };
    match parse_version(&version) {
        Some(found) if found < OLDEST_SERVER => Err(Fault::fatal(format!(
            "qdrant at {} is version {version}, and feedlens needs {}.{} or newer (conditional updates)",
            faults.server(),
            OLDEST_SERVER.0,
            OLDEST_SERVER.1
        ))),
        found => {
            if found.is_some_and(|found| found < REPLAYS_OUTCOMES) {
                tracing::warn!(
                    "qdrant at {} is version {version}: killed in the middle of a flush, it may lose writes that it \
                     acknowledged (qdrant/qdrant#9575); use {}.{} or newer",
                    faults.server(),
                    REPLAYS_OUTCOMES.0,
                    REPLAYS_OUTCOMES.1
                );
            }
            Ok(client)
        }
    }
}

fn parse_version(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.trim_start_matches('v').split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// `<alias>_<model>_<dimension>`; bytes of the model's id that Qdrant does not allow in a name are written `~2f`.
pub(super) fn collection_name(alias: &str, stamp: &ModelStamp) -> String {
    let mut model = String::new();
    for byte in stamp.model.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => model.push(char::from(byte)),
            other => model.push_str(&format!("~{other:02x}")),
        }
    }
    format!("{alias}_{model}_{}", stamp.dimension)
}

/// The collection behind an alias.
pub(super) async fn alias_target(client: &Qdrant, alias: &str) -> Result<Option<String>, QdrantError> {
    let aliases = client.list_aliases().await?.aliases;
    Ok(aliases.into_iter().find(|found| found.alias_name == alias).map(|found| found.collection_name))
}

/// Makes the collection and its indexes where absent, and checks what is there.
pub(super) async fn ensure_collection(
    client: &Qdrant,
    faults: &Faults,
    config: &QdrantConfig,
    collection: &str,
    stamp: &ModelStamp,
) -> Result<(), Fault> {
    let failed = |action: &'static str| move |error: QdrantError| faults.at_start(action, &error);
    if !client.collection_exists(collection).await.map_err(failed("read the collections of"))?
        && let Err(error) = create_collection(client, config, collection, stamp).await
    {
        // Another worker may have been faster.
        if !client.collection_exists(collection).await.map_err(failed("read the collections of"))? {
            return Err(faults.at_start(&format!("create the collection {collection} in"), &error));
        }
    }
    let info = client.collection_info(collection).await.map_err(failed("read the collection of"))?.result;
    let info = info.unwrap_or_default();
    check_vectors(collection, &info, stamp)?;
    // Only what is absent: a worker that only reads may have a key that only reads.
    for (field, kind) in INDEXES.into_iter().filter(|(field, _)| !info.payload_schema.contains_key(*field)) {
        let request = CreateFieldIndexCollectionBuilder::new(collection, field, kind).wait(true);
        client.create_field_index(request).await.map_err(|error| {
            let fault = faults.at_start(&format!("create the payload index on {field} in"), &error);
            match is_forbidden(&error) {
                true => Fault::fatal(format!(
                    "{fault}; or, for a worker that only reads, start ingest of this version first: it makes the index"
                )),
                false => fault,
            }
        })?;
    }
    Ok(())
}

/// Makes the alias where there is none. Another collection behind it is an error: which model is live is for a person to
/// say, with `feedlens collection alias`.
pub(super) async fn ensure_alias(
    client: &Qdrant,
    faults: &Faults,
    collection: &str,
    alias: &str,
    stamp: &ModelStamp,
) -> Result<(), Fault> {
    let failed = |action: &'static str| move |error: QdrantError| faults.at_start(action, &error);
    if alias_target(client, alias).await.map_err(failed("read the aliases of"))?.is_none() {
        let request = CreateAliasBuilder::new(collection, alias);
        client.create_alias(request).await.map_err(failed("create the alias in"))?;
    }
    // Looked at again: another model's worker may have started at the same time.
    check_alias(client, faults, collection, alias, stamp).await
}

/// When the collection was made, in milliseconds since 1970; `None`: by a version that did not keep it.
pub(super) async fn made_at(client: &Qdrant, collection: &str) -> Result<Option<i64>, QdrantError> {
    let config = client.collection_info(collection).await?.result.and_then(|info| info.config);
    Ok(config.and_then(|config| config.metadata.get(MADE_AT)?.as_integer()))
}

async fn create_collection(
    client: &Qdrant,
    config: &QdrantConfig,
    collection: &str,
    stamp: &ModelStamp,
) -> Result<(), QdrantError> {
    let mut vectors = VectorsConfigBuilder::default();
    for name in [VectorName::Image, VectorName::Caption] {
        let vector = VectorParamsBuilder::new(stamp.dimension as u64, Distance::Cosine).on_disk(config.vectors_on_disk);
        vectors.add_named_vector_params(name.as_str(), vector);
    }
    let request = CreateCollectionBuilder::new(collection)
        .vectors_config(vectors)
        .shard_number(config.shards)
        .replication_factor(config.replicas)
        .on_disk_payload(config.payload_on_disk)
        .metadata(HashMap::from([(MADE_AT.to_owned(), Utc::now().timestamp_millis().into())]));
    client.create_collection(request).await.map(|_| ())
}

/// Whether the alias is free, or points to this model's collection.
pub(super) async fn check_alias(
    client: &Qdrant,
    faults: &Faults,
    collection: &str,
    alias: &str,
    stamp: &ModelStamp,
) -> Result<(), Fault> {
    let target = alias_target(client, alias).await;
    match target.map_err(|error| faults.at_start("read the aliases of", &error))? {
        Some(target) if target != collection => Err(Fault::fatal(format!(
            "the alias {alias} points to the collection {target}, but model {} ({} dimensions) belongs to {collection}: \
             set model.dir to the model of {target}, or fill {collection} with `feedlens collection reindex` and move the \
             alias to it with `feedlens collection alias`",
            stamp.model, stamp.dimension
        ))),
        _ => Ok(()),
    }
}

/// Whether the collection still is what this program made: another may have put one of its own in that place.
pub(super) async fn still_ours(client: &Qdrant, collection: &str, stamp: &ModelStamp) -> Result<(), Fault> {
    // Without an answer nothing is known, and what had failed keeps its own fault.
    match client.collection_info(collection).await {
        Ok(response) => check_vectors(collection, &response.result.unwrap_or_default(), stamp),
        Err(_) => Ok(()),
    }
}

fn check_vectors(collection: &str, info: &CollectionInfo, stamp: &ModelStamp) -> Result<(), Fault> {
    let params = info.config.as_ref().and_then(|config| config.params.as_ref());
    let vectors = params.and_then(|params| params.vectors_config.as_ref()).and_then(|vectors| vectors.config.as_ref());
    let Some(VectorsKind::ParamsMap(vectors)) = vectors else {
        return Err(not_ours(collection, stamp));
    };
    let fits = |vector: &VectorParams| vector.size == stamp.dimension as u64 && vector.distance() == Distance::Cosine;
    let both = [VectorName::Image, VectorName::Caption];
    match both.iter().all(|name| vectors.map.get(name.as_str()).is_some_and(fits)) {
        true => Ok(()),
        false => Err(not_ours(collection, stamp)),
    }
}

fn not_ours(collection: &str, stamp: &ModelStamp) -> Fault {
    Fault::fatal(format!(
        "the collection {collection} does not have the vectors image and caption with {} dimensions and cosine \
         distance; delete it, or set store.alias to another name, and index the posts again",
        stamp.dimension
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collection_names_tell_models_apart() {
        let name = |model: &str| collection_name("posts", &ModelStamp { model: model.to_owned(), dimension: 512 });
        assert_eq!(name("chinese-clip_vit.b16"), "posts_chinese-clip_vit.b16_512");
        assert_eq!(name("a/b"), "posts_a~2fb_512");
        assert_ne!(name("a/b"), name("a~2fb"));
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(parse_version("1.9.7").is_some_and(|version| version < OLDEST_SERVER));
        assert!(parse_version("v1.16.0").is_some_and(|version| version >= OLDEST_SERVER));
        assert!(parse_version("2.0.0-dev").is_some_and(|version| version >= OLDEST_SERVER));
        assert!(parse_version("1.18.3").is_some_and(|version| version < REPLAYS_OUTCOMES));
        assert!(parse_version("1.19.0").is_some_and(|version| version >= REPLAYS_OUTCOMES));
        assert_eq!(parse_version("dev"), None);
    }
}
