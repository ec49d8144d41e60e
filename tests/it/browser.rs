//! Headless Chromium for the tests of the page. Needs chromedriver (Debian's chromium-driver) on the PATH; without it each
//! test says loudly that it was skipped.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use fantoccini::key::Key;
use fantoccini::wd::WebDriverCompatibleCommand;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};

use crate::kafka_support::wait_until;
use crate::skip;

/// A browser of its own, closed with the test.
pub struct Browser {
    pub client: Client,
    driver: Child,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// `None` where there is no chromedriver.
    pub async fn open(language: &str) -> Option<Self> {
        Self::with_options(language, json!({})).await
    }

    /// With further options of chromedriver's.
    pub async fn with_options(language: &str, mut options: Value) -> Option<Self> {
        let Some((driver, port)) = start_driver() else {
            skip::without("no chromedriver on the PATH (packages chromium and chromium-driver, or `make test`)");
            return None;
        };
        let profile = tempfile::tempdir().expect("a folder");
        let data = format!("--user-data-dir={}", profile.path().display());
        let language = format!("--accept-lang={language}");
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1280,900",
            &data,
            &language,
        ];
        let mut capabilities = serde_json::Map::new();
        options["args"] = json!(arguments);
        capabilities.insert("goog:chromeOptions".to_owned(), options);
        capabilities.insert("goog:loggingPrefs".to_owned(), json!({"browser": "ALL", "performance": "ALL"}));
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{port}"))
            .await
            .expect("chromium starts");
        Some(Self { client, driver, _profile: profile })
    }

    pub async fn script(&self, script: &str) -> Value {
        self.client.execute(script, vec![]).await.expect("the script runs")
    }

    /// Waits until a JavaScript expression is true.
    pub async fn until(&self, expression: &str) {
        let script = format!("return Boolean({expression});");
        wait_until(expression, async || self.script(&script).await == json!(true)).await;
    }

    /// Waits for an answer of `count` cards, none of them a placeholder, each picture loaded.
    pub async fn until_cards(&self, count: usize) {
        self.until(&format!(
            "document.querySelectorAll('.card:not(.loading)').length === {count} \
             && document.getElementById('results').getAttribute('aria-busy') === 'false' \
             && [...document.querySelectorAll('.card img')].every(i => i.hidden || (i.complete && i.naturalWidth > 0))"
        ))
        .await;
    }

    pub async fn captions(&self) -> Vec<String> {
        let texts = self.script("return [...document.querySelectorAll('.caption')].map(c => c.textContent);").await;
        serde_json::from_value(texts).expect("texts")
    }

    pub async fn search_for(&self, topic: &str) {
        let input = self.client.find(Locator::Id("topic")).await.expect("the search box");
        input.clear().await.expect("clears");
        input.send_keys(topic).await.expect("types");
        input.send_keys(&Key::Enter).await.expect("enters");
    }

    /// A command of Chrome's DevTools protocol.
    pub async fn devtools(&self, method: &'static str, parameters: Value) {
        self.client.issue_cmd(DevTools(method, parameters)).await.expect(method);
    }

    /// Presses keys where the focus is.
    pub async fn press(&self, keys: &str) {
        let active = self.client.active_element().await.expect("something has the focus");
        active.send_keys(keys).await.expect("types");
    }

    /// Clicks the first element of a selector.
    pub async fn click(&self, selector: &str) {
        let element = self.client.find(Locator::Css(selector)).await.expect(selector);
        element.click().await.expect(selector);
    }

    /// Fails if something pushes the page wider than its window.
    pub async fn assert_no_overflow(&self) {
        // Not innerWidth, which grows with the page where a phone zooms out to show all of it.
        let root = "document.documentElement";
        let widths = self.script(&format!("return [{root}.scrollWidth, {root}.clientWidth];")).await;
        assert!(
            widths[0].as_f64() <= widths[1].as_f64(),
            "the page is {} wide in a window of {}",
            widths[0],
            widths[1]
        );
    }

    /// Fails if anything went wrong in the page: a script's error, a breach of the content security policy, a request to
    /// another host than the page's own.
    pub async fn close(self) {
        let log = self.log("browser").await;
        let errors: Vec<&Value> = log.iter().filter(|entry| is_defect(entry)).collect();
        assert!(errors.is_empty(), "the page met errors: {errors:?}");
        let mut origins = BTreeSet::new();
        for entry in self.log("performance").await {
            let message: Value = serde_json::from_str(entry["message"].as_str().expect("text")).expect("JSON");
            if message["message"]["method"] == "Network.requestWillBeSent" {
                let address = message["message"]["params"]["request"]["url"].as_str().expect("an address");
                let address = url::Url::parse(address).expect("an address");
                // Not the browser's own start page, and not pictures that are data.
                if address.has_host() && address.scheme() != "chrome" {
                    origins.insert(address.origin().ascii_serialization());
                }
            }
        }
        assert_eq!(origins.len(), 1, "the page asks its own server and nobody else: {origins:?}");
        self.client.clone().close().await.expect("closes");
    }

    async fn log(&self, kind: &'static str) -> Vec<Value> {
        let log = self.client.issue_cmd(Log(kind)).await.expect("a log");
        log.as_array().expect("entries").clone()
    }
}

/// A chromedriver and its port, `None` where there is none. It wants one port for IPv4 and IPv6, chooses it for one of them,
/// and ends when the other has it in use: then it is started again.
fn start_driver() -> Option<(Child, String)> {
    for _ in 0..5 {
        let driver = Command::new("chromedriver").arg("--port=0").stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut driver = match driver {
            Ok(driver) => driver,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => panic!("chromedriver does not start: {error}"),
        };
        let mut lines = BufReader::new(driver.stdout.take().expect("piped")).lines().map_while(Result::ok);
        let port = lines.find_map(|line| line.split_once("successfully on port ").map(|(_, port)| port.to_owned()));
        match port {
            Some(port) => return Some((driver, port.trim_end_matches('.').to_owned())),
            None => drop(driver.wait()),
        }
    }
    panic!("chromedriver finds no port");
}

/// Answers with an error status are logged too, and are what some tests ask for.
fn is_defect(entry: &Value) -> bool {
    entry["level"] == "SEVERE" && entry["source"] != "network"
}

/// chromedriver's own command for a log: what the page wrote to the console, or what it sent.
#[derive(Debug)]
struct Log(&'static str);

impl WebDriverCompatibleCommand for Log {
    fn endpoint(&self, base_url: &url::Url, session_id: Option<&str>) -> Result<url::Url, url::ParseError> {
        base_url.join(&format!("session/{}/se/log", session_id.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &url::Url) -> (axum::http::Method, Option<String>) {
        (axum::http::Method::POST, Some(json!({"type": self.0}).to_string()))
    }
}

/// chromedriver's own command for one of the DevTools protocol.
#[derive(Debug)]
struct DevTools(&'static str, Value);

impl WebDriverCompatibleCommand for DevTools {
    fn endpoint(&self, base_url: &url::Url, session_id: Option<&str>) -> Result<url::Url, url::ParseError> {
        base_url.join(&format!("session/{}/goog/cdp/execute", session_id.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &url::Url) -> (axum::http::Method, Option<String>) {
        (axum::http::Method::POST, Some(json!({"cmd": self.0, "params": self.1}).to_string()))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // After a failed test the browser is still open; it ends with its driver.
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
