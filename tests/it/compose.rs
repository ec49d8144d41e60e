//! `docker-compose.yml`, as far as it can be checked without containers. The workers really get its configuration.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Output};

use regex::{Captures, Regex};
use serde_norway::Value;

use crate::binary::{feedlens, root};

/// The file, merge keys resolved and variables at their defaults, as for a person who sets none.
fn compose() -> Value {
    let text = fs::read_to_string(root().join("docker-compose.yml")).expect("reads");
    let mut file = serde_norway::from_str::<Value>(&text).expect("YAML");
    // Of what is merged in, merge keys stay: once for each level of them.
    for _ in 0..2 {
        file.apply_merge().expect("merge keys");
    }
    set_defaults(&mut file, &Regex::new(r"\$\{[A-Z_]+:-([^}]*)\}").expect("a pattern"));
    file
}

fn set_defaults(value: &mut Value, variable: &Regex) {
    match value {
        Value::String(text) => *text = variable.replace_all(text, |found: &Captures| found[1].to_owned()).into_owned(),
        Value::Sequence(list) => list.iter_mut().for_each(|entry| set_defaults(entry, variable)),
        Value::Mapping(entries) => entries.values_mut().for_each(|entry| set_defaults(entry, variable)),
        _ => {}
    }
}

fn services(file: &Value) -> BTreeMap<&str, &Value> {
    let services = file["services"].as_mapping().expect("services");
    services.iter().map(|(name, service)| (name.as_str().expect("a name"), service)).collect()
}

fn strings(list: &Value) -> Vec<&str> {
    let Some(list) = list.as_sequence() else { return vec![] };
    list.iter().map(|entry| entry.as_str().expect("a string")).collect()
}

fn environment(service: &Value) -> Vec<(&str, &str)> {
    let Some(variables) = service["environment"].as_mapping() else { return vec![] };
    let pairs = variables.iter();
    // Numbers and truth values are strings too: each reader would write them by its own taste.
    pairs.map(|(name, value)| (name.as_str().expect("a name"), value.as_str().expect("a string"))).collect()
}

/// What follows an option in a command of the file.
fn argument<'a>(command: &[&'a str], option: &str) -> Option<&'a str> {
    command.iter().position(|word| *word == option).map(|at| command[at + 1])
}

/// A command of the binary with a service's own configuration and environment, and further arguments.
fn as_service(service: &Value, arguments: &[&str]) -> Output {
    let command = strings(&service["command"]);
    let config = argument(&command, "--config").expect("--config");
    let mounts = strings(&service["volumes"]);
    let mounted = mounts.iter().find_map(|mount| mount.strip_suffix(":ro")?.strip_suffix(config)?.strip_suffix(':'));
    let mut run = feedlens(arguments);
    for (name, value) in environment(service) {
        // The bundled model and feed are in the repository under the same names.
        run.env(name, value.replace("/usr/share/feedlens/", ""));
    }
    run.args(["--config", mounted.unwrap_or_else(|| panic!("{config} is not mounted"))]).output().expect("starts")
}

/// The resolved configuration of a worker.
fn resolved(service: &Value) -> toml::Table {
    let output = as_service(service, &["config", "show"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8").parse().expect("TOML")
}

fn seconds(duration: &str) -> u64 {
    duration
        .strip_suffix('s')
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("{duration} is no \"30s\""))
}

const WORKERS: [&str; 3] = ["ingest", "query", "producer"];

#[test]
fn every_container_is_pinned_confined_and_limited() {
    let file = compose();
    let tag = Regex::new(r"^[a-z/]+:v?\d+\.\d+\.\d+(-[a-z]+)?$").expect("a pattern");
    let expected = ["grafana", "ingest", "kafka", "producer", "prometheus", "qdrant", "query", "topics"];
    assert_eq!(services(&file).into_keys().collect::<Vec<_>>(), expected);
    for (name, service) in services(&file) {
        let image = service["image"].as_str().expect("an image");
        assert!(tag.is_match(image), "{name}: {image} has no exact version");
        assert_eq!(service["read_only"], Value::Bool(true), "{name}: the root file system can be written");
        assert_eq!(strings(&service["cap_drop"]), ["ALL"], "{name}");
        assert_eq!(strings(&service["security_opt"]), ["no-new-privileges:true"], "{name}");
        let user = service["user"].as_str().expect("a user").split(':').next().expect("an id").parse::<u32>();
        assert_ne!(user.expect("a number"), 0, "{name} runs as root");
        for forbidden in ["privileged", "cap_add", "network_mode", "pid", "container_name", "env_file"] {
            assert!(service.get(forbidden).is_none(), "{name}: {forbidden}");
        }
        for limit in ["cpus", "memory", "pids"] {
            assert!(!service["deploy"]["resources"]["limits"][limit].is_null(), "{name}: no limit of {limit}");
        }
    }
}

#[test]
fn ports_are_this_machines_own() {
    let file = compose();
    let published = services(&file).into_iter().flat_map(|(name, service)| {
        strings(&service["ports"]).into_iter().map(move |port| (name, port)).collect::<Vec<_>>()
    });
    let published = published.collect::<Vec<_>>();
    for (name, port) in &published {
        assert!(port.starts_with("127.0.0.1:"), "{name}: {port}");
    }
    let names = published.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    assert_eq!(names, ["grafana", "prometheus", "query"]);
}

#[test]
fn no_secret_is_in_the_file() {
    let text = fs::read_to_string(root().join("docker-compose.yml")).expect("reads");
    let secret = Regex::new(r"(?i)^[A-Z_]*(password|secret_key|api_key|token)[A-Z_]*:").expect("a pattern");
    let mut named = 0;
    for line in text.lines().map(str::trim).filter(|line| secret.is_match(line)) {
        named += 1;
        assert!(line.ends_with(": ${QDRANT_API_KEY:-}"), "{line}");
    }
    assert_eq!(named, 2, "the workers' and Qdrant's");
}

#[test]
fn what_a_service_waits_for_can_come_true() {
    let file = compose();
    let services = services(&file);
    let check = |service: &Value| service.get("healthcheck").is_some() && service["healthcheck"]["disable"].is_null();
    for (name, service) in &services {
        let Some(needed) = service["depends_on"].as_mapping() else { continue };
        for (needed, how) in needed {
            let needed = needed.as_str().expect("a name");
            let other = services.get(needed).unwrap_or_else(|| panic!("{name} waits for {needed}, which is not there"));
            match how["condition"].as_str().expect("a condition") {
                "service_healthy" => assert!(check(other), "{name} waits for {needed}, which has no health check"),
                "service_completed_successfully" => {
                    assert_ne!(other["restart"], "unless-stopped", "{name} waits for {needed}, which never ends");
                }
                "service_started" => {}
                other => panic!("{name}: {other}"),
            }
        }
    }
    let waits =
        |name: &str, needed: &str| services[name]["depends_on"][needed]["condition"].as_str().map(str::to_owned);
    for worker in ["ingest", "query"] {
        assert_eq!(waits(worker, "qdrant").as_deref(), Some("service_healthy"), "{worker}");
        assert_eq!(waits(worker, "topics").as_deref(), Some("service_completed_successfully"), "{worker}");
        assert_eq!(waits("producer", worker).as_deref(), Some("service_healthy"), "{worker}");
    }
    assert_eq!(waits("topics", "kafka").as_deref(), Some("service_healthy"));
}

#[test]
fn what_is_mounted_is_there() {
    let file = compose();
    let volumes = file["volumes"].as_mapping().expect("volumes");
    for (name, service) in services(&file) {
        for mount in strings(&service["volumes"]) {
            let source = mount.split(':').next().expect("a source");
            if source.starts_with('.') {
                assert!(root().join(source).exists(), "{name}: {source} is not in the repository");
                assert!(mount.ends_with(":ro"), "{name}: {mount} can be written");
            } else {
                assert!(volumes.contains_key(source), "{name}: {source} is no volume of the file");
            }
        }
    }
}

#[test]
fn the_workers_take_their_configuration_and_it_fits_the_other_services() {
    let file = compose();
    let services = services(&file);
    let made = services["topics"]["command"].as_sequence().expect("a command").last().expect("a script");
    let made = made.as_str().expect("a script").split_once("for topic in ").expect("a loop").1;
    let made = made.split_once(';').expect("a list").0.split(' ').collect::<Vec<_>>();
    for name in WORKERS {
        let service = services[name];
        assert!(as_service(service, &["config", "check"]).status.success(), "{name}");
        let config = resolved(service);
        let text = |section: &str, key: &str| config[section][key].as_str().expect("a string").to_owned();
        for (section, key) in [
            ("kafka", "posts_topic"),
            ("kafka", "dead_letter_topic"),
            ("query", "requests_topic"),
            ("query", "results_topic"),
        ] {
            assert!(made.contains(&text(section, key).as_str()), "nobody makes the topic of {section}.{key}");
        }
        let advertised = &services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"];
        assert_eq!(advertised.as_str(), Some(format!("PLAINTEXT://{}", text("kafka", "brokers")).as_str()));
        assert_eq!(config["store"]["qdrant"]["url"].as_str(), Some("http://qdrant:6334"));
        assert_eq!(config["store"]["kind"].as_str(), Some("qdrant"));
        let scraped = fs::read_to_string(root().join("observability/prometheus.yml")).expect("reads");
        let port = text("admin", "listen").replace("0.0.0.0:", "port: ");
        assert!(scraped.contains(&port), "Prometheus does not scrape {port}");
        if name != "producer" {
            let drain = seconds(&text("ingest", "drain_timeout")).max(seconds(&text("query", "timeout")));
            let grace = seconds(service["stop_grace_period"].as_str().expect("a duration"));
            assert!(grace > drain, "{name} is killed after {grace} s, while it drains for up to {drain} s");
        }
    }
    let published = strings(&services["query"]["ports"]);
    let listen = resolved(services["query"])["query"]["listen"].as_str().map(|listen| listen.replace("0.0.0.0", ""));
    assert!(published[0].ends_with(&listen.expect("an address")), "{published:?}");
}

#[test]
fn the_commands_are_ones_that_the_binary_takes() {
    let file = compose();
    for name in WORKERS {
        let service = services(&file)[name];
        let command = strings(&service["command"]);
        let own = command.iter().filter(|word| **word != "--config" && !word.starts_with("/etc/feedlens/"));
        let own = own.map(|word| word.replace("/usr/share/feedlens/", "")).collect::<Vec<_>>();
        let mut arguments = own.iter().map(String::as_str).collect::<Vec<_>>();
        arguments.extend(["--set", "kafka.brokers=127.0.0.1:1", "--set", "kafka.start_timeout=100ms"]);
        let output = as_service(service, &arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // All that is wrong is that nobody answers.
        assert_eq!(output.status.code(), Some(1), "{name}: {said}");
        assert!(said.lines().last().is_some_and(|line| line.contains("127.0.0.1:1")), "{name}: {said}");
    }
}

#[test]
fn the_scripts_in_it_are_bash() {
    let file = compose();
    for (name, service) in services(&file) {
        for list in [&service["command"], &service["healthcheck"]["test"]] {
            let words = strings(list);
            let Some(script) = words.iter().position(|word| *word == "bash").map(|_| words[words.len() - 1]) else {
                continue;
            };
            let checked = Command::new("bash").args(["-n", "-c", &script.replace("$$", "$")]).status().expect("bash");
            assert!(checked.success(), "{name}: {script}");
        }
    }
}

#[test]
fn the_image_has_the_version_of_the_crate() {
    let file = compose();
    for name in WORKERS {
        let service = services(&file)[name];
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(service["image"], format!("feedlens:{version}-cpu").as_str(), "{name}");
        assert_eq!(service["build"]["args"]["VERSION"], version, "{name}");
        assert_eq!(service["build"]["target"], "cpu", "{name}");
    }
}
