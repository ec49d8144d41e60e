//! The rules and the dashboard on a real Prometheus that scrapes real workers.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::kafka_support::wait_until;
use crate::observability::{self, KEY, prometheus, queries};
use crate::ports::free_port;
use crate::query_support::client;

/// Empty while nothing is wrong.
const ALERTS: &str = "Alerts that fire";

struct Prometheus {
    child: Child,
    url: String,
}

impl Prometheus {
    fn start(program: &Path, folder: &Path, configuration: &str) -> Self {
        let file = folder.join("prometheus.yml");
        std::fs::write(&file, configuration).expect("writes");
        let listen = format!("127.0.0.1:{}", free_port());
        let child = Command::new(program)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address={listen}"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.join("log")).expect("a file"))
            .spawn()
            .expect("starts");
        Self { child, url: format!("http://{listen}") }
    }

    async fn get(&self, path: &str, query: &[(&str, &str)]) -> Option<Value> {
        let asked = client().get(format!("{}{path}", self.url)).query(query).send().await.ok()?;
        serde_json::from_slice(&asked.bytes().await.ok()?).ok()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_load_and_every_query_of_the_dashboard_gives_data() {
    let Some(program) = prometheus("prometheus") else { return };
    let broker = observability::broker();
    let (workers, search, _keys) = observability::workers(&broker).await;
    let folder = tempfile::tempdir().expect("a folder");
    let jobs = ["feedlens-ingest", "feedlens-query"].iter().zip(&workers).map(|(job, worker)| {
        format!("  - job_name: {job}\n    static_configs: [{{targets: [\"127.0.0.1:{}\"]}}]\n", worker.admin)
    });
    let rules = crate::binary::root().join("observability/alerts.yml");
    let configuration = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{:?}]\nscrape_configs:\n{}",
        rules,
        jobs.collect::<String>()
    );
    let prometheus = Prometheus::start(&program, folder.path(), &configuration);

    wait_until("every rule to be evaluated", async || {
        let Some(answer) = prometheus.get("/api/v1/rules", &[]).await else { return false };
        let groups = answer["data"]["groups"].as_array().cloned().unwrap_or_default();
        let rules = groups.iter().flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default());
        let health = rules.map(|rule| rule["health"].clone()).collect::<Vec<_>>();
        assert!(!health.iter().any(|health| health == "err"), "{answer}");
        health.len() > 30 && health.iter().all(|health| health == "ok")
    })
    .await;
    for (title, query) in queries("30s").into_iter().filter(|(title, _)| title != ALERTS) {
        wait_until(&format!("data for {title}: {query}"), async || {
            // What counts searches moves while they go on.
            let _ = client().get(&search).header("x-api-key", KEY).send().await;
            let Some(answer) = prometheus.get("/api/v1/query", &[("query", &query)]).await else { return false };
            assert_eq!(answer["status"], "success", "{title}: {query}: {answer}");
            !answer["data"]["result"].as_array().expect("a vector").is_empty()
        })
        .await;
    }
    let firing = r#"ALERTS{alertname=~"Feedlens.*", alertstate="firing"}"#;
    let answer = prometheus.get("/api/v1/query", &[("query", firing)]).await.expect("answers");
    assert_eq!(answer["data"]["result"], Value::Array(Vec::new()), "alerts fire although nothing is wrong");
}
