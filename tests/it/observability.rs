//! What a person on call has: the alerts, their tests and runbooks, the dashboard, and the metrics that they are made of.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use feedlens::kafka::{EmbeddedBroker, Producer};
use regex::Regex;
use serde::Deserialize;
use serde_json::json;
use serde_norway::Value;

use crate::binary::root;
use crate::kafka_support::{self, wait_until};
use crate::ports::free_port;
use crate::promql::Known;
use crate::query_support::{api_keys, client};
use crate::running::Running;
use crate::skip;

pub const KEY: &str = "one-key-of-some-length";
/// A set of labels that asks for moderation: its counters are there where it is configured.
const LABELS: &str = r#"labels.sets=[{ name = "safety", moderation = "flag", background = { zh = ["汽车"] },
    labels = [{ name = "apple", zh = ["红苹果"] }] }]"#;

#[derive(Deserialize)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    name: String,
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    alert: Option<String>,
    record: Option<String>,
    expr: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

pub fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn yaml(path: &str) -> Value {
    serde_norway::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn rules() -> Vec<Rule> {
    let rules: Rules = serde_norway::from_value(yaml("observability/alerts.yml")).expect("groups of rules");
    rules.groups.into_iter().flat_map(|group| group.rules).collect()
}

fn alerts() -> Vec<(String, Rule)> {
    rules().into_iter().filter_map(|rule| Some((rule.alert.clone()?, rule))).collect()
}

/// A program of Prometheus': of the PATH, or of `make test`'s set-up.
pub fn prometheus(program: &str) -> Option<PathBuf> {
    let on_path =
        std::env::var_os("PATH").into_iter().flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    let mut places = on_path.chain([root().join(".cache/prometheus")]).map(|folder| folder.join(program));
    let found = places.find(|place| place.is_file());
    if found.is_none() {
        skip::without(&format!("there is no {program}; scripts/setup.sh tests fetches it"));
    }
    found
}

#[test]
fn every_alert_fires_when_it_should_and_not_otherwise() {
    let Some(promtool) = prometheus("promtool") else { return };
    for arguments in [
        &["check", "config", "observability/prometheus.yml"][..],
        &["check", "rules", "observability/alerts.yml"],
        &["test", "rules", "observability/alerts_test.yml", "observability/alerts_ingest_test.yml"],
    ] {
        let output = Command::new(&promtool).args(arguments).current_dir(root()).output().expect("promtool runs");
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "promtool {arguments:?}: {said}");
    }
    let mut tested = BTreeMap::<String, BTreeSet<bool>>::new();
    for file in ["observability/alerts_test.yml", "observability/alerts_ingest_test.yml"] {
        let groups = yaml(file);
        let of_group = |group: &Value| group["alert_rule_test"].as_sequence().expect("tests of alerts").clone();
        for test in groups["tests"].as_sequence().expect("groups of tests").iter().flat_map(of_group) {
            let alert = test["alertname"].as_str().expect("a name").to_owned();
            let fires = !test["exp_alerts"].as_sequence().expect("what is expected").is_empty();
            tested.entry(alert).or_default().insert(fires);
        }
    }
    for (name, _) in alerts() {
        assert_eq!(
            tested.get(&name).map(BTreeSet::len),
            Some(2),
            "{name} has no test in which it fires, or none in which not"
        );
    }
}

#[test]
fn every_alert_says_what_it_means_and_has_a_runbook() {
    let runbooks = read("docs/runbooks.md");
    let headings = runbooks.lines().filter_map(|line| line.strip_prefix("### "));
    let mut headings = headings.map(str::to_owned).collect::<BTreeSet<_>>();
    for (name, alert) in alerts() {
        let severity = &alert.labels["severity"];
        assert!(["critical", "warning"].contains(&severity.as_str()), "{name}: {severity}");
        for text in ["summary", "description"] {
            assert!(alert.annotations.get(text).is_some_and(|text| !text.is_empty()), "{name} has no {text}");
        }
        let anchor = format!("docs/runbooks.md#{}", name.to_lowercase());
        assert_eq!(alert.annotations["runbook_url"], anchor, "{name}");
        assert!(headings.remove(&name), "docs/runbooks.md has no heading {name}");
    }
    assert_eq!(headings, BTreeSet::new(), "docs/runbooks.md has headings without an alert");
    let entries = runbooks.split("\n### ").skip(1);
    for entry in entries {
        for part in ["**Means**", "**Look here first**", "**Do**", "**Safe**"] {
            assert!(
                entry.contains(part),
                "{part} lacks in the runbook of {}",
                entry.lines().next().unwrap_or_default()
            );
        }
    }
}

/// Links between the documents of operations, and in them to others.
#[test]
fn links_of_the_runbooks_lead_somewhere() {
    let link = Regex::new(r"\]\(([^)#:]*)(?:#([^)]+))?\)").expect("a pattern");
    let not_in_anchors = Regex::new(r"[^\w\- ]").expect("a pattern");
    for document in ["docs/runbooks.md", "docs/operations.md"] {
        for link in link.captures_iter(&read(document)) {
            let path = match &link[1] {
                "" => document.to_owned(),
                path => format!("docs/{path}"),
            };
            assert!(root().join(&path).exists(), "{document} leads to {path}");
            let Some(anchor) = link.get(2) else { continue };
            let text = read(&path);
            let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| {
                let heading = line.trim_start_matches('#').trim().to_lowercase();
                not_in_anchors.replace_all(&heading, "").replace(' ', "-")
            });
            assert!(headings.into_iter().any(|known| known == anchor.as_str()), "{document} leads to {}", &link[0]);
        }
    }
}

/// The panels of the dashboard that show something: title, and the panel.
fn panels() -> Vec<(String, serde_json::Value)> {
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("observability/grafana/dashboards/feedlens.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter().filter(|panel| panel["type"] != "row");
    panels.map(|panel| (panel["title"].as_str().expect("a title").to_owned(), panel.clone())).collect()
}

/// The queries of the dashboard, as Grafana sends them to Prometheus: title of the panel, and the query.
pub fn queries(rate_interval: &str) -> Vec<(String, String)> {
    let of_panel = |(title, panel): (String, serde_json::Value)| {
        let targets = panel["targets"].as_array().expect("targets").clone();
        targets.into_iter().map(move |target| (title.clone(), target["expr"].as_str().expect("a query").to_owned()))
    };
    let filled = |query: String| {
        query.replace("$__rate_interval", rate_interval).replace("$job", ".+").replace("$instance", ".+")
    };
    panels().into_iter().flat_map(of_panel).map(|(title, query)| (title, filled(query))).collect()
}

#[test]
fn panels_of_the_dashboard_are_whole_and_lie_beside_each_other() {
    let (mut ids, mut taken) = (BTreeSet::new(), BTreeMap::new());
    let rate = Regex::new(r"\b(?:rate|increase|changes)\((\w+)").expect("a pattern");
    let range = Regex::new(r"\[([^\]]+)\]").expect("a pattern");
    for (title, panel) in panels() {
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{title}: an id that another panel has");
        assert!(panel["description"].as_str().is_some_and(|text| text.len() > 5), "{title} has no description");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        assert!(panel["fieldConfig"]["defaults"]["unit"].as_str().is_some_and(|unit| !unit.is_empty()), "{title}");
        let place = |side: &str| panel["gridPos"][side].as_u64().expect("a place");
        for column in place("x")..place("x") + place("w") {
            assert!(column < 24, "{title} reaches beyond the right side");
            for line in place("y")..place("y") + place("h") {
                let other = taken.insert((column, line), title.clone());
                assert_eq!(other, None, "lies upon {title}");
            }
        }
        for target in panel["targets"].as_array().expect("targets") {
            let query = target["expr"].as_str().expect("a query");
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            for selected in query.split("feedlens_").skip(1).chain(query.split("process_").skip(1)) {
                assert!(selected.contains(r#"{job=~"$job", instance=~"$instance""#), "{title}: {query}");
            }
            // Of a sum of counters no reset can be told, so rates come first.
            let of = rate.captures_iter(query).map(|of| of[1].to_owned()).collect::<Vec<_>>();
            assert!(of.iter().all(|of| of.starts_with("feedlens_") || of.starts_with("process_")), "{title}: {query}");
            for range in range.captures_iter(query) {
                assert!(["$__rate_interval", "1h"].contains(&&range[1]), "{title}: {query}");
            }
            assert!(!query.contains("histogram_quantile") || query.contains("le) ("), "{title}: {query}");
        }
    }
    assert!(ids.len() > 40);
}

#[test]
fn kubernetes_has_the_same_rules() {
    let resource = yaml("k8s/components/monitoring/prometheusrule.yaml");
    assert_eq!(resource["kind"], Value::from("PrometheusRule"));
    let same = resource["spec"]["groups"] == yaml("observability/alerts.yml")["groups"];
    assert!(same, "prometheusrule.yaml is behind observability/alerts.yml: run scripts/prometheusrule.sh");
    let names: Rules = serde_norway::from_value(resource["spec"].clone()).expect("groups of rules");
    assert!(names.groups.iter().all(|group| group.name.starts_with("feedlens.")));
}

/// An ingest and a query worker that have done each something; the address of the searches.
pub async fn workers(broker: &EmbeddedBroker) -> ([Running; 2], String, tempfile::NamedTempFile) {
    let (keys, set_keys) = api_keys(&[("dashboard", KEY, "")]);
    let listen = format!("127.0.0.1:{}", free_port());
    let ingest = Running::ingest(&broker.bootstrap(), &[LABELS]);
    let query = Running::start("query", &broker.bootstrap(), &[&set_keys, &format!("query.listen={listen}")]);
    let producer = Producer::new(&kafka_support::config(&broker.bootstrap())).expect("a producer");
    for number in 0..20 {
        let id = format!("p{number}");
        let post = json!({"post_id": id, "caption": "雨后的彩虹"}).to_string();
        producer.send("posts", Some(id.as_bytes()), Some(post.as_bytes()), &[]).await.expect("acknowledged");
    }
    wait_until("all posts indexed", async || ingest.metric("feedlens_posts_indexed_total") >= 20.0).await;
    let url = format!("http://{listen}/v1/search?q=彩虹");
    wait_until("an answer", async || {
        let asked = client().get(&url).header("x-api-key", KEY).send().await;
        asked.is_ok_and(|answer| answer.status() == 200)
    })
    .await;
    for (worker, topic) in [(&ingest, "posts"), (&query, "search.requests")] {
        let lag = format!("feedlens_consumer_lag{{partition=\"0\",topic=\"{topic}\"}}");
        wait_until("the lag", async || !worker.metric(&lag).is_nan()).await;
    }
    ([ingest, query], url, keys)
}

/// A broker with the topics of both workers.
pub fn broker() -> EmbeddedBroker {
    let topics = ["posts", "posts.dlq", "search.requests", "search.results", "topics.standing", "topic.matches"];
    EmbeddedBroker::start(&topics.map(|topic| (topic, 1))).expect("a broker")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_the_alerts_and_the_dashboard_is_told_by_a_worker() {
    let broker = broker();
    let (workers, _, _keys) = workers(&broker).await;
    let mut known = Known::new();
    for worker in &workers {
        known.scrape(&worker.get("/metrics").expect("answers").1);
    }
    let mut expressions = Vec::new();
    for rule in rules() {
        if let Some(record) = &rule.record {
            known.add(record, BTreeMap::new());
        }
        expressions.push((rule.alert.or(rule.record).expect("a name"), rule.expr));
    }
    expressions.extend(queries("1m"));
    assert!(expressions.len() > 90);
    let lacking = expressions.iter().filter_map(|(name, expression)| {
        let lacks = known.lacks(expression);
        (!lacks.is_empty()).then(|| format!("{name}: {}", lacks.join("; ")))
    });
    let lacking = lacking.collect::<Vec<_>>();
    assert!(lacking.is_empty(), "no worker tells:\n{}", lacking.join("\n"));
}
