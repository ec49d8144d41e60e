//! What a search gives, through the real `feedlens query`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::ROOT;
use crate::ports::free_port;

const START_WITHIN: Duration = Duration::from_secs(60);

/// A search gives no more.
pub const MOST_HITS: usize = feedlens::query::service::MAX_CANDIDATES;

/// A query worker.
pub struct Searcher {
    child: Child,
    url: String,
    http: reqwest::Client,
}

impl Searcher {
    /// `settings`: TOML with the store.
    pub async fn start(folder: &Path, settings: &str) -> Result<Self> {
        let port = free_port();
        let config = folder.join("query.toml");
        let own = format!(
            "[query]\nlisten = \"127.0.0.1:{port}\"\nkafka = false\nmax_top_k = {MOST_HITS}\nmax_offset = 0\ntimeout = \"60s\"\n\
             [admin]\nlisten = \"\"\n"
        );
        std::fs::write(&config, format!("{settings}\n{own}"))?;
        let log = folder.join("query.log");
        let mut child = Command::new(env!("CARGO_BIN_EXE_feedlens"))
            .args(["query", "--config"])
            .arg(&config)
            .current_dir(ROOT)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log)?)
            .spawn()
            .context("feedlens query")?;
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(90)).build()?;
        let url = format!("http://127.0.0.1:{port}");
        let deadline = Instant::now() + START_WITHIN;
        while http.get(&url).send().await.is_err() {
            let ended = child.try_wait()?;
            ensure!(
                ended.is_none() && Instant::now() < deadline,
                "feedlens query does not start; see {}",
                log.display()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(Self { child, url, http })
    }

    /// The posts that a search for a topic finds, with their captions.
    pub async fn find(&self, topic: &str, target: &str, top_k: usize) -> Result<BTreeMap<String, Option<String>>> {
        let request =
            json!({"topic": topic, "target": target, "top_k": top_k, "min_score": "none", "fold": false}).to_string();
        let answer = self
            .http
            .post(format!("{}/v1/search", self.url))
            .header("content-type", "application/json")
            .body(request)
            .send()
            .await?;
        let (status, text) = (answer.status(), answer.text().await?);
        ensure!(status.is_success(), "a search failed: {status} {text}");
        let answer: Value = serde_json::from_str(&text)?;
        let hits = answer["hits"].as_array().context("an answer without hits")?;
        let found = hits.iter().map(|hit| {
            let post_id = hit["post_id"].as_str().unwrap_or_default().to_owned();
            (post_id, hit["caption"].as_str().map(str::to_owned))
        });
        let found = found.collect::<BTreeMap<_, _>>();
        ensure!(found.len() == hits.len(), "a search for {topic:?} found a post twice");
        Ok(found)
    }
}

impl Drop for Searcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
