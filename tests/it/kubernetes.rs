//! The manifests of `k8s/`, as kustomize renders them, beside what the binary, its configuration and its metrics are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use feedlens::metrics::Metrics;
use regex::Regex;
use serde::Deserialize as _;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::binary::{feedlens, root};
use crate::skip;

pub const OVERLAYS: [&str; 3] = ["cpu", "gpu", "local"];

/// Between the end of a drain and the end of the process: the commit, closing the store and the consumer, the last spans.
const END: Duration = Duration::from_secs(15);

/// What an overlay applies.
pub struct Overlay {
    pub name: &'static str,
    pub resources: Vec<Value>,
}

impl Overlay {
    pub fn all() -> Vec<Self> {
        OVERLAYS.map(|name| Self { name, resources: documents(&format!("k8s/rendered/{name}.yaml")) }).into()
    }

    pub fn of_kind(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.resources.iter().filter(move |resource| resource["kind"] == kind)
    }

    pub fn find(&self, kind: &str, name: &str) -> &Value {
        self.of_kind(kind)
            .find(|resource| resource["metadata"]["name"] == name)
            .unwrap_or_else(|| panic!("{}: no {kind}/{name}", self.name))
    }

    /// Every pod that a resource makes, with the resource's name.
    pub fn pods(&self) -> impl Iterator<Item = (String, &Value)> {
        self.resources.iter().filter(|resource| resource["spec"]["template"].is_object()).map(|resource| {
            let name = format!("{} {}/{}", self.name, text(&resource["kind"]), text(&resource["metadata"]["name"]));
            (name, &resource["spec"]["template"]["spec"])
        })
    }
}

/// The documents of a YAML file of the repository.
pub fn documents(file: &str) -> Vec<Value> {
    parsed(&std::fs::read_to_string(root().join(file)).expect(file))
}

fn parsed(yaml: &str) -> Vec<Value> {
    serde_norway::Deserializer::from_str(yaml).map(|document| Value::deserialize(document).expect("YAML")).collect()
}

pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

pub fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A container of ours, started here: its files in a folder, and what it names by their paths there.
pub struct Started {
    folder: tempfile::TempDir,
    mounts: Vec<String>,
    pub environment: BTreeMap<String, String>,
    arguments: Vec<String>,
}

impl Started {
    /// `None` for containers of others.
    pub fn of(overlay: &Overlay, pod: &Value) -> Option<Self> {
        let container = &pod["containers"][0];
        if !text(&container["image"]).rsplit('/').next().is_some_and(|image| image.starts_with("feedlens:")) {
            return None;
        }
        let mut started = Self {
            folder: tempfile::tempdir().unwrap(),
            mounts: vec![],
            environment: BTreeMap::new(),
            arguments: list(&container["args"]).iter().map(|argument| text(argument).to_owned()).collect(),
        };
        for mount in list(&container["volumeMounts"]) {
            let volume = list(&pod["volumes"]).iter().find(|volume| volume["name"] == mount["name"]).expect("a volume");
            started.mount(overlay, volume, text(&mount["mountPath"]));
        }
        for source in list(&container["envFrom"]) {
            let map = overlay.find("ConfigMap", text(&source["configMapRef"]["name"]));
            for (name, value) in map["data"].as_object().expect("data") {
                started.environment.insert(name.clone(), text(value).to_owned());
            }
        }
        for variable in list(&container["env"]) {
            let value = variable["value"].as_str().unwrap_or("of a Secret").to_owned();
            started.environment.insert(text(&variable["name"]).to_owned(), value);
        }
        Some(started)
    }

    fn mount(&mut self, overlay: &Overlay, volume: &Value, path: &str) {
        self.mounts.push(path.to_owned());
        let folder = self.inside(path);
        std::fs::create_dir_all(&folder).unwrap();
        if let Some(name) = volume["configMap"]["name"].as_str() {
            for (file, content) in overlay.find("ConfigMap", name)["data"].as_object().expect("data") {
                std::fs::write(folder.join(file), text(content)).unwrap();
            }
        }
        for item in list(&volume["secret"]["items"]) {
            std::fs::write(folder.join(text(&item["path"])), "of a Secret").unwrap();
        }
    }

    fn inside(&self, path: &str) -> PathBuf {
        self.folder.path().join(path.trim_start_matches('/'))
    }

    /// A path that is mounted, as it is here.
    fn here(&self, value: &str) -> String {
        let (option, path) =
            value.split_once('=').filter(|(option, _)| option.starts_with("--")).unwrap_or(("", value));
        match self.mounts.iter().any(|mount| Path::new(path).starts_with(mount)) {
            true if option.is_empty() => self.inside(path).display().to_string(),
            true => format!("{option}={}", self.inside(path).display()),
            false => value.to_owned(),
        }
    }

    /// `feedlens config ...` with the container's own options and environment.
    pub fn config(&self, subcommand: &str) -> Output {
        let options = self.arguments.iter().filter(|argument| {
            argument.starts_with("--config=") || argument.starts_with("--set=") || argument.starts_with("--model=")
        });
        let options = options.map(|argument| self.here(argument)).collect::<Vec<_>>();
        let mut command = feedlens(&["config", subcommand]);
        command.args(options).env_clear();
        command.envs(self.environment.iter().map(|(name, value)| (name, self.here(value))));
        command.output().expect("the binary starts")
    }

    /// The configuration that the container has.
    pub fn resolved(&self) -> toml::Table {
        let output = self.config("show");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().parse().expect("TOML")
    }
}

fn deployment<'a>(overlay: &'a Overlay, name: &str) -> (&'a Value, Started) {
    let pod = &overlay.find("Deployment", name)["spec"]["template"]["spec"];
    (pod, Started::of(overlay, pod).expect("ours"))
}

fn duration(config: &toml::Table, section: &str, key: &str) -> Duration {
    humantime_serde::re::humantime::parse_duration(config[section][key].as_str().expect(key)).expect(key)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}

#[test]
fn rendered_overlays_are_made_of_these_sources() {
    let mut made_of = BTreeMap::new();
    for line in std::fs::read_to_string(root().join("k8s/rendered/HASHES")).expect("HASHES").lines() {
        let (hash, file) = line.split_once("  ").expect("a hash and a file");
        made_of.insert(file.to_owned(), hash.to_owned());
    }
    let mut there = BTreeMap::new();
    let mut folders = vec![root().join("k8s")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root()).unwrap().display().to_string();
            if path.is_dir() {
                folders.push(path);
            } else if name != "k8s/rendered/HASHES" {
                let hash = Sha256::digest(std::fs::read(&path).unwrap());
                there.insert(name, hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
            }
        }
    }
    assert_eq!(made_of, there, "run scripts/kubernetes.sh render");
}

/// `None`, said loudly, where neither kustomize nor kubectl is on the PATH.
fn kustomize() -> Option<Command> {
    let path = std::env::var_os("PATH").expect("a PATH");
    let is_there = |tool: &str| std::env::split_paths(&path).any(|folder| folder.join(tool).is_file());
    let mut command = Command::new(if is_there("kustomize") { "kustomize" } else { "kubectl" });
    match (is_there("kustomize"), is_there("kubectl")) {
        (true, _) => command.arg("build"),
        (false, true) => command.arg("kustomize"),
        (false, false) => {
            skip::unable(
                "neither kustomize nor kubectl is on the PATH; the hashes in k8s/rendered/HASHES are compared",
            );
            return None;
        }
    };
    Some(command)
}

#[test]
fn rendered_overlays_are_what_kustomize_gives() {
    for name in OVERLAYS {
        let Some(mut kustomize) = kustomize() else { return };
        let built = kustomize.arg(root().join("k8s/overlays").join(name)).output().expect("it starts");
        assert!(built.status.success(), "{name}: {}", String::from_utf8_lossy(&built.stderr));
        let stored = std::fs::read_to_string(root().join(format!("k8s/rendered/{name}.yaml"))).expect("reads");
        assert!(String::from_utf8(built.stdout).unwrap() == stored, "{name}: run scripts/kubernetes.sh render");
    }
}

#[test]
fn the_overlay_of_the_document_builds_on_ours() {
    let Some(mut kustomize) = kustomize() else { return };
    let document = std::fs::read_to_string(root().join("docs/kubernetes.md")).expect("reads");
    let example = document.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let folder = tempfile::tempdir().unwrap();
    let [own, ours] = ["own", "feedlens"].map(|name| folder.path().join(name));
    std::fs::create_dir_all(&own).unwrap();
    std::fs::create_dir_all(&ours).unwrap();
    let copied = Command::new("cp").arg("-r").arg(root().join("k8s")).arg(&ours).status().expect("cp");
    assert!(copied.success());
    std::fs::write(own.join("kustomization.yaml"), example).unwrap();
    std::fs::write(own.join("site.toml"), "[model]\ndir = \"/models/mine\"\n").unwrap();
    let built = kustomize.arg(&own).output().expect("it starts");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let overlay = Overlay { name: "own", resources: parsed(&String::from_utf8(built.stdout).unwrap()) };
    let (pod, started) = deployment(&overlay, "ingest");
    assert_eq!(text(&pod["containers"][0]["image"]).split('/').next(), Some("registry.example.org"));
    let config = started.resolved();
    assert_eq!(config["model"]["dir"].as_str(), Some("/models/mine"));
    assert!(config["kafka"]["brokers"].as_str().unwrap().contains("kafka-2.example.org:9093"));
}

#[test]
fn every_setting_of_the_manifests_is_accepted() {
    for overlay in Overlay::all() {
        let mut checked = 0;
        for (name, pod) in overlay.pods() {
            let Some(mut started) = Started::of(&overlay, pod) else { continue };
            let output = started.config("check");
            assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
            // The same way, a mistake does not pass.
            started.environment.insert("FEEDLENS__KAFKA__BROKER".to_owned(), "kafka:9092".to_owned());
            assert_eq!(started.config("check").status.code(), Some(2), "{name}");
            checked += 1;
        }
        assert!(checked >= 3, "{}: {checked}", overlay.name);
    }
}

#[test]
fn commands_of_the_manifests_are_there() {
    for overlay in Overlay::all() {
        for (name, pod) in overlay.pods() {
            let Some(started) = Started::of(&overlay, pod) else { continue };
            let mut arguments = started.arguments.iter().map(String::as_str).collect::<Vec<_>>();
            // Help, in place of the work: clap reads the words and the options before it.
            arguments.push("--help");
            let output = feedlens(&arguments).output().expect("the binary starts");
            assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

/// No overlay has it: traces are off unless somebody asks for them.
#[test]
fn the_component_of_traces_lets_workers_reach_the_endpoint_that_it_sets() {
    let [component, policy] =
        ["kustomization", "network"].map(|file| documents(&format!("k8s/components/traces/{file}.yaml")).remove(0));
    let literal = text(&component["configMapGenerator"][0]["literals"][0]);
    let (name, endpoint) = literal.split_once('=').expect("a variable");
    let checked = feedlens(&["config", "check"]).env(name, endpoint).output().expect("starts");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let shown = feedlens(&["config", "show"]).env(name, endpoint).output().expect("starts");
    assert!(String::from_utf8_lossy(&shown.stdout).contains(&format!("endpoint = {endpoint:?}")));
    let url = url::Url::parse(endpoint).expect("a URL");
    let rule = &policy["spec"]["egress"][0];
    let namespace = text(&rule["to"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]);
    assert_eq!(url.host_str().expect("a host").split('.').nth(1), Some(namespace));
    assert_eq!(rule["ports"][0]["port"], url.port().expect("a port"));
}

#[test]
fn workers_have_the_time_to_drain_before_they_are_killed() {
    for overlay in Overlay::all() {
        for (worker, drains) in [
            ("ingest", &[("ingest", "drain_timeout"), ("ingest", "revoke_timeout")][..]),
            ("query", &[("query", "timeout")]),
        ] {
            let (pod, started) = deployment(&overlay, worker);
            let config = started.resolved();
            let grace = Duration::from_secs(number(&pod["terminationGracePeriodSeconds"]));
            let sleep = &pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"];
            let sleep = Duration::from_secs(sleep.as_u64().unwrap_or(0));
            let drain = drains.iter().map(|(section, key)| duration(&config, section, key)).sum::<Duration>();
            assert!(
                sleep + drain + END <= grace,
                "{} {worker}: {sleep:?} of preStop, {drain:?} of the drain and {END:?} to end do not fit into {grace:?}",
                overlay.name
            );
            // Its port closes at once: whoever has not yet heard that it goes would be refused.
            assert_eq!(worker == "query", !sleep.is_zero(), "{}", overlay.name);
        }
    }
}

#[test]
fn ports_and_probes_are_those_of_the_workers() {
    let routes = std::fs::read_to_string(root().join("src/service.rs")).expect("reads");
    for overlay in Overlay::all() {
        for worker in ["ingest", "query"] {
            let (pod, started) = deployment(&overlay, worker);
            let container = &pod["containers"][0];
            let ports =
                list(&container["ports"]).iter().map(|port| (text(&port["name"]), number(&port["containerPort"])));
            let ports = ports.collect::<BTreeMap<_, _>>();
            let config = started.resolved();
            let listens = |section: &str| {
                let listen = config[section]["listen"].as_str().unwrap();
                let (address, port) = listen.rsplit_once(':').expect("address:port");
                assert_eq!(address, "0.0.0.0", "{} {worker}: the pod's address", overlay.name);
                port.parse::<u64>().expect("a port")
            };
            assert_eq!(ports["admin"], listens("admin"));
            if worker == "query" {
                assert_eq!(ports["http"], listens("query"));
                assert_eq!(overlay.find("Service", "query")["spec"]["ports"][0]["targetPort"], "http");
            }
            for (probe, path) in
                [("startupProbe", "/livez"), ("readinessProbe", "/readyz"), ("livenessProbe", "/livez")]
            {
                let get = &container[probe]["httpGet"];
                assert_eq!((text(&get["path"]), text(&get["port"])), (path, "admin"), "{} {worker}", overlay.name);
                assert!(routes.contains(&format!(".route(\"{path}\"")), "{path}");
            }
        }
    }
}

#[test]
fn ingest_is_scaled_by_the_lag_of_the_topic_and_group_that_it_reads() {
    for overlay in Overlay::all().iter().filter(|overlay| overlay.name != "local") {
        let scaled = overlay.find("ScaledObject", "ingest");
        let (_, started) = deployment(overlay, "ingest");
        let config = started.resolved();
        let trigger = &scaled["spec"]["triggers"][0];
        let metadata =
            |key: &str| trigger["metadata"][key].as_str().unwrap_or_else(|| panic!("{}: no {key}", overlay.name));
        let kafka = |key: &str| config["kafka"][key].as_str().unwrap();
        assert_eq!(trigger["type"], "kafka");
        assert_eq!(metadata("topic"), kafka("posts_topic"));
        assert_eq!(metadata("consumerGroup"), kafka("group"));
        assert_eq!(metadata("offsetResetPolicy"), kafka("start"));
        assert_eq!(config["kafka"]["further_posts_topics"].as_array().map(Vec::len), Some(0), "each needs a trigger");
        assert_eq!(started.environment[metadata("bootstrapServersFromEnv")], kafka("brokers"));
        assert_eq!(metadata("sasl"), kafka("sasl_mechanism").to_lowercase().replace("-sha-", "_sha"));
        assert_eq!(metadata("tls") == "enable", kafka("security").ends_with("ssl"));
        assert_eq!((metadata("allowIdleConsumers"), metadata("scaleToZeroOnInvalidOffset")), ("false", "false"));
        assert!(metadata("lagThreshold").parse::<u64>().unwrap() > 0);
        // KEDA refuses both.
        assert!(
            metadata("limitToPartitionsWithLag") == "false"
                || metadata("ensureEvenDistributionOfPartitions") == "false"
        );
        // Without it the polling interval means nothing above zero replicas.
        assert_eq!(trigger["useCachedMetrics"], true);

        let spec = &scaled["spec"];
        let partitions = text(&scaled["metadata"]["annotations"]["feedlens.io/partitions"]).parse::<u64>().unwrap();
        let [min, max] = ["minReplicaCount", "maxReplicaCount"].map(|key| number(&spec[key]));
        assert!(0 < min && max <= partitions, "{}: {min}..{max} of {partitions}", overlay.name);
        let fallback = number(&spec["fallback"]["replicas"]);
        assert!((min..=max).contains(&fallback) && spec["fallback"]["behavior"] == "currentReplicasIfHigher");
        // Partitions that have just moved, with all that their drains took, are no reason to move them again.
        let behavior = &spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"];
        let (pod, _) = deployment(overlay, "ingest");
        let settled = number(&pod["terminationGracePeriodSeconds"]) + number(&spec["pollingInterval"]);
        assert!(number(&behavior["scaleDown"]["stabilizationWindowSeconds"]) >= 3 * settled);
        for policy in ["scaleUp", "scaleDown"].iter().flat_map(|way| list(&behavior[way]["policies"])) {
            assert!(number(&policy["periodSeconds"]) >= settled, "{}: {policy}", overlay.name);
        }
    }
}

#[test]
fn a_deployment_has_one_autoscaler_and_then_no_replicas_of_its_own() {
    for overlay in Overlay::all() {
        for worker in overlay.of_kind("Deployment") {
            let name = &worker["metadata"]["name"];
            let scalers = ["ScaledObject", "HorizontalPodAutoscaler"].iter().flat_map(|kind| overlay.of_kind(kind));
            let scalers = scalers.filter(|scaler| &scaler["spec"]["scaleTargetRef"]["name"] == name).count();
            assert_eq!(scalers, usize::from(overlay.name != "local"), "{} {name}", overlay.name);
            assert!(
                worker["spec"]["replicas"].is_null(),
                "{} {name}: applying it would undo the scaling",
                overlay.name
            );
        }
    }
    // The one worker has at least one partition.
    let local = &Overlay::all()[2];
    let script =
        text(&local.find("Job", "topics")["spec"]["template"]["spec"]["containers"][0]["command"][2]).to_owned();
    let partitions =
        Regex::new(r#"--topic "\$topic" --partitions (\d+)"#).unwrap().captures(&script).expect("partitions");
    assert!(partitions[1].parse::<u64>().unwrap() >= 1);
}

#[test]
fn metrics_that_scaling_goes_by_are_exported() {
    let exported = Metrics::new().render();
    let metric = Regex::new(r"\bfeedlens_[a-z_]+").unwrap();
    for overlay in Overlay::all().iter().filter(|overlay| overlay.name != "local") {
        let mut found = 0;
        for trigger in overlay.of_kind("ScaledObject").flat_map(|scaled| list(&scaled["spec"]["triggers"])) {
            let Some(query) = trigger["metadata"]["query"].as_str() else { continue };
            for name in metric.find_iter(query) {
                assert!(exported.contains(&format!("# TYPE {} ", name.as_str())), "{}: {query}", overlay.name);
                found += 1;
            }
            let namespace = text(&overlay.find("Deployment", "query")["metadata"]["namespace"]);
            assert!(query.contains(&format!("namespace=\"{namespace}\"")), "{query}");
        }
        assert!(found > 0, "{}", overlay.name);
    }
}
