//! What tests of a model upgrade share: a second model, and a broker and an alias that workers of both use.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Output;

use feedlens::config::{Config, Overrides, Secret};
use feedlens::kafka::{EmbeddedBroker, KafkaConfig, Producer};
use feedlens::post::point_id;
use feedlens::store::{Collections, ModelStamp, SharedStore, StoredPoint};
use rdkafka::admin::AdminOptions;
use rdkafka::{Offset, TopicPartitionList};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::binary::{feedlens, root};
use crate::bundles::copy;
use crate::kafka_support::config;
use crate::ports::free_port;
use crate::real_kafka::{admin, create_topic, real_broker};
use crate::running::Running;
use crate::store_server;

pub const OLD: &str = "feedlens-small-1";
pub const NEW: &str = "feedlens-small-2";
const DIMENSION: usize = 128;
const PARTITIONS: i32 = 4;

/// The last weights and biases of the small model's towers.
const TEXT: [&str; 2] = ["project.weight_fp16", "project.bias"];
const IMAGE: [&str; 2] = ["tower.project.3.weight_fp16", "tower.project.3.bias"];

/// The small model under another id and with the values of its vectors in the opposite order. Alone it answers as the small
/// model does; where vectors of both are compared, the answers are nonsense.
pub fn reversed_model() -> TempDir {
    model(NEW, &[("text", TEXT), ("image", IMAGE)])
}

/// A model whose texts and pictures do not belong together: it answers nonsense.
pub fn torn_model() -> TempDir {
    model("feedlens-torn", &[("text", TEXT)])
}

fn model(id: &str, reversed: &[(&str, [&str; 2])]) -> TempDir {
    let folder = tempfile::Builder::new().prefix("model-").tempdir().expect("a folder");
    copy(&root().join("models/small"), folder.path());
    let description = folder.path().join("model.toml");
    let text = fs::read_to_string(&description).expect("reads");
    assert!(text.contains(OLD));
    fs::write(&description, text.replace(OLD, id)).expect("writes");
    let golden = folder.path().join("golden.json");
    let mut vectors: Value = serde_json::from_slice(&fs::read(&golden).expect("reads")).expect("JSON");
    for (tower, tensors) in reversed {
        let file = folder.path().join(format!("{tower}.onnx"));
        let mut bytes = fs::read(&file).expect("reads");
        for tensor in tensors {
            let raw = raw_data(&bytes, tensor);
            let row = raw.len() / DIMENSION;
            let rows = bytes[raw.clone()].chunks(row).rev().flatten().copied().collect::<Vec<_>>();
            bytes[raw].copy_from_slice(&rows);
        }
        fs::write(&file, bytes).expect("writes");
        for item in vectors[format!("{tower}s")].as_array_mut().expect("golden inputs") {
            item["vector"].as_array_mut().expect("a vector").reverse();
        }
    }
    fs::write(&golden, vectors.to_string()).expect("writes");
    folder
}

/// Where the values of a tensor lie in an ONNX file (`onnx.proto`: model 7 graph, graph 5 initializer, tensor 8 name and 9
/// raw_data).
fn raw_data(bytes: &[u8], tensor: &str) -> Range<usize> {
    let graph = fields(bytes, 0..bytes.len(), 7).remove(0);
    let found = fields(bytes, graph, 5).into_iter().find(|initializer| {
        let name = fields(bytes, initializer.clone(), 8).remove(0);
        &bytes[name] == tensor.as_bytes()
    });
    fields(bytes, found.expect("the tensor"), 9).remove(0)
}

/// The fields of a protobuf message that have a length and this number.
fn fields(bytes: &[u8], message: Range<usize>, wanted: u64) -> Vec<Range<usize>> {
    let mut at = message.start;
    let varint = |at: &mut usize| {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[*at];
            *at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    };
    let mut found = Vec::new();
    while at < message.end {
        let tag = varint(&mut at);
        match tag & 7 {
            0 => drop(varint(&mut at)),
            1 => at += 8,
            5 => at += 4,
            2 => {
                let length = varint(&mut at) as usize;
                if tag >> 3 == wanted {
                    found.push(at..at + length);
                }
                at += length;
            }
            other => panic!("wire type {other}"),
        }
    }
    found
}

/// A broker, a folder of pictures and an alias on the Qdrant server.
pub struct Site {
    /// `None`: a real Kafka, by topics of this site's own.
    broker: Option<EmbeddedBroker>,
    pub kafka: KafkaConfig,
    pub producer: Producer,
    pub alias: String,
    url: String,
    key: Secret,
    pub pictures: PathBuf,
}

impl Site {
    /// With a broker of its own. `None`, said loudly, where there is no Qdrant server.
    pub fn new(name: &str) -> Option<Self> {
        let (url, key) = tokio::task::block_in_place(store_server::shared)?;
        let (broker, kafka, producer) = broker();
        let alias = format!("{name}{}", std::process::id());
        Some(Self { broker: Some(broker), kafka, producer, alias, url, key, pictures: root().join("demo/images") })
    }

    /// On a real Kafka. `None`, said loudly, where there is none, or no Qdrant server.
    pub async fn on_real_kafka(name: &str) -> Option<Self> {
        let mut kafka = real_broker(name)?;
        kafka.group = kafka.posts_topic.clone();
        let (url, key) = tokio::task::block_in_place(store_server::shared)?;
        let producer = Producer::new(&kafka).expect("a producer");
        let alias = format!("{name}{}", std::process::id());
        let mut site = Self { broker: None, kafka, producer, alias, url, key, pictures: root().join("demo/images") };
        for (topic, partitions) in site.topics() {
            create_topic(&site.kafka, topic, partitions, &[]).await;
        }
        // The messages by which it was seen that they are there.
        site.forget_the_topics().await;
        Some(site)
    }

    /// Its topics hold nothing, as after the retention time: another broker in place of this one, or what the real one keeps.
    pub async fn forget_the_topics(&mut self) {
        if self.broker.is_some() {
            let (broker, kafka, producer) = broker();
            (self.broker, self.kafka, self.producer) = (Some(broker), kafka, producer);
            return;
        }
        let mut ends = TopicPartitionList::new();
        for (topic, partitions) in self.topics() {
            ends.add_partition_range(topic, 0, partitions - 1);
        }
        ends.set_all_offsets(Offset::End).expect("offsets");
        admin(&self.kafka).delete_records(&ends, &AdminOptions::new()).await.expect("deletes");
    }

    /// Of a real Kafka, with the numbers of their partitions.
    fn topics(&self) -> [(&str, i32); 2] {
        [(&self.kafka.posts_topic, PARTITIONS), (&self.kafka.dead_letter_topic, 1)]
    }

    /// The settings of a process with a model.
    pub fn settings(&self, model: &Path) -> Vec<String> {
        let mut settings = vec![
            "store.kind=qdrant".to_owned(),
            format!("store.qdrant.url={}", self.url),
            format!("store.alias={}", self.alias),
            format!("model.dir={}", model.display()),
            format!("kafka.brokers={}", self.kafka.brokers),
            format!("kafka.posts_topic={}", self.kafka.posts_topic),
            format!("kafka.dead_letter_topic={}", self.kafka.dead_letter_topic),
            format!("kafka.group={}", self.kafka.group),
            "kafka.commit_interval=100ms".to_owned(),
            // What a killed worker had moves on soon.
            "kafka.properties.session.timeout.ms=8000".to_owned(),
            "kafka.properties.heartbeat.interval.ms=500".to_owned(),
            "ingest.drain_timeout=3s".to_owned(),
            "images.root=".to_owned() + &self.pictures.display().to_string(),
            "encoder.workers=1".to_owned(),
            "query.kafka=false".to_owned(),
        ];
        settings.extend((!self.key.is_empty()).then(|| format!("store.qdrant.api_key={}", self.key.expose())));
        settings
    }

    /// A worker; the second value is where it answers, if it is `feedlens query`.
    pub fn start(&self, arguments: &[&str], model: &Path) -> (Running, String) {
        let listen = format!("127.0.0.1:{}", free_port());
        let mut settings = self.settings(model);
        settings.push(format!("query.listen={listen}"));
        let settings = settings.iter().map(String::as_str).collect::<Vec<_>>();
        (Running::launch(arguments, &self.kafka.brokers, &settings, None), listen)
    }

    /// A command, to its end.
    pub async fn run(&self, arguments: &[&str], model: &Path) -> (Option<i32>, String, String) {
        let mut command = feedlens(arguments);
        command.args(self.settings(model).iter().flat_map(|setting| ["--set", setting]));
        command.args(["--set", &format!("admin.listen=127.0.0.1:{}", free_port())]);
        let ended = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic");
        let Output { status, stdout, stderr } = ended.expect("the binary starts");
        let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
        (status.code(), text(stdout), text(stderr))
    }

    /// The collections of the alias, as the program sees them.
    pub async fn collections(&self) -> Collections {
        let set = self.settings(&root().join("models/small"));
        let config = Config::load(&[], &Overrides { files: vec![], set }).expect("loads");
        Collections::connect(&config.store).await.expect("connects")
    }

    pub async fn store(&self, model: &str) -> SharedStore {
        let stamp = ModelStamp { model: model.to_owned(), dimension: DIMENSION };
        self.collections().await.open(&stamp).await.expect("opens")
    }

    pub fn collection(&self, model: &str) -> String {
        format!("{}_{model}_{DIMENSION}", self.alias)
    }

    /// A post with a version, a caption and, where `picture` says one, a picture.
    pub async fn post(&self, id: &str, version: u64, picture: Value) {
        let mut body = json!({"post_id": id, "version": version, "caption": format!("{id} 第{version}版")});
        if !picture.is_null() {
            body["image"] = picture;
        }
        self.send(id, Some(&body.to_string()), &[]).await;
    }

    /// A deletion of everything up to a version.
    pub async fn delete(&self, id: &str, version: u64) {
        self.send(id, None, &[("version".to_owned(), Some(version.to_string().into_bytes()))]).await;
    }

    pub async fn send(&self, key: &str, value: Option<&str>, headers: &[(String, Option<Vec<u8>>)]) {
        let sent =
            self.producer.send(&self.kafka.posts_topic, Some(key.as_bytes()), value.map(str::as_bytes), headers).await;
        sent.expect("acknowledged");
    }
}

fn broker() -> (EmbeddedBroker, KafkaConfig, Producer) {
    let broker = EmbeddedBroker::start(&[("posts", PARTITIONS), ("posts.dlq", 1)]).expect("a broker");
    let kafka = config(&broker.bootstrap());
    let producer = Producer::new(&kafka).expect("a producer");
    (broker, kafka, producer)
}

/// A point, and whether it is a post (no delete marker).
pub async fn stored(store: &SharedStore, id: &str) -> Option<(StoredPoint, bool)> {
    let point = store.get(&[point_id(id)]).await.expect("reads").pop()?;
    let is_post = point.payload.get("deleted") != Some(&json!(true));
    Some((point, is_post))
}
