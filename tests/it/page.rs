//! The page in headless Chromium, on the real server, model and embedded store. Needs chromedriver (Debian's
//! chromium-driver) on the PATH; without it each test says loudly that it was skipped.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use fantoccini::key::Key;
use fantoccini::wd::WebDriverCompatibleCommand;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};

use crate::kafka_support::wait_until;
use crate::query_support::{Worker, api_keys, drawing, drawing_base64, post_of};
use crate::skip;

/// A browser of its own, closed with the test.
struct Browser {
    client: Client,
    driver: Child,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// `None` where there is no chromedriver.
    async fn open(language: &str) -> Option<Self> {
        Self::with_options(language, json!({})).await
    }

    /// With further options of chromedriver's.
    async fn with_options(language: &str, mut options: Value) -> Option<Self> {
        let driver = Command::new("chromedriver").arg("--port=0").stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut driver = match driver {
            Ok(driver) => driver,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                skip::without("no chromedriver on the PATH (packages chromium and chromium-driver, or `make test`)");
                return None;
            }
            Err(error) => panic!("chromedriver does not start: {error}"),
        };
        let mut lines = BufReader::new(driver.stdout.take().expect("piped")).lines().map_while(Result::ok);
        let port = lines.find_map(|line| line.split_once("successfully on port ").map(|(_, port)| port.to_owned()));
        let port = port.expect("chromedriver says its port");
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
        capabilities.insert("goog:loggingPrefs".to_owned(), json!({"browser": "ALL"}));
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{}", port.trim_end_matches('.')))
            .await
            .expect("chromium starts");
        Some(Self { client, driver, _profile: profile })
    }

    async fn script(&self, script: &str) -> Value {
        self.client.execute(script, vec![]).await.expect("the script runs")
    }

    /// Waits until a JavaScript expression is true.
    async fn until(&self, expression: &str) {
        let script = format!("return Boolean({expression});");
        wait_until(expression, async || self.script(&script).await == json!(true)).await;
    }

    /// Waits for an answer of `count` cards, none of them a placeholder, each picture loaded.
    async fn until_cards(&self, count: usize) {
        self.until(&format!(
            "document.querySelectorAll('.card:not(.loading)').length === {count} \
             && document.getElementById('results').getAttribute('aria-busy') === 'false' \
             && [...document.querySelectorAll('.card img')].every(i => i.hidden || (i.complete && i.naturalWidth > 0))"
        ))
        .await;
    }

    async fn captions(&self) -> Vec<String> {
        let texts = self.script("return [...document.querySelectorAll('.caption')].map(c => c.textContent);").await;
        serde_json::from_value(texts).expect("texts")
    }

    async fn search_for(&self, topic: &str) {
        let input = self.client.find(Locator::Id("topic")).await.expect("the search box");
        input.clear().await.expect("clears");
        input.send_keys(topic).await.expect("types");
        input.send_keys(&Key::Enter).await.expect("enters");
    }

    /// Fails if anything went wrong in the page: a script's error, a breach of the content security policy.
    async fn close(self) {
        let log = self.client.issue_cmd(ConsoleLog).await.expect("the console's log");
        let errors: Vec<&Value> = log.as_array().expect("entries").iter().filter(|entry| is_defect(entry)).collect();
        assert!(errors.is_empty(), "the page met errors: {errors:?}");
        self.client.clone().close().await.expect("closes");
    }
}

/// Answers with an error status are logged too, and are what some tests ask for.
fn is_defect(entry: &Value) -> bool {
    entry["level"] == "SEVERE" && entry["source"] != "network"
}

/// chromedriver's own command for what the page wrote to the console.
#[derive(Debug)]
struct ConsoleLog;

impl WebDriverCompatibleCommand for ConsoleLog {
    fn endpoint(&self, base_url: &url::Url, session_id: Option<&str>) -> Result<url::Url, url::ParseError> {
        base_url.join(&format!("session/{}/se/log", session_id.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &url::Url) -> (axum::http::Method, Option<String>) {
        (axum::http::Method::POST, Some(json!({"type": "browser"}).to_string()))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // After a failed test the browser is still open; it ends with its driver.
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_typed_topic_shows_five_pictures_and_stays_in_the_address() {
    let Some(browser) = Browser::open("en-GB").await else { return };
    let worker = Worker::start(&[]).await;
    browser.client.goto(&worker.url).await.expect("opens");
    browser.until("document.querySelector('h1').textContent.startsWith('Search the feed')").await;
    browser.search_for("红苹果").await;
    browser.until_cards(5).await;
    assert!(browser.captions().await[..2].contains(&"红苹果".to_owned()));
    let shown = browser
        .script(
            "return [...document.querySelectorAll('.card')].map(card => ({
                picture: card.querySelector('img').naturalWidth,
                width: card.querySelector('img').getBoundingClientRect().width,
                probability: card.querySelector('.probability').textContent,
                bar: card.querySelector('.fill').getBoundingClientRect().width,
                cosine: Number(card.querySelector('.cosine').textContent),
                author: card.querySelector('.author').textContent,
                time: card.querySelector('time').dateTime}));",
        )
        .await;
    for card in shown.as_array().expect("cards") {
        assert!(card["picture"].as_f64() > Some(10.0) && card["width"].as_f64() > Some(100.0), "{card}");
        assert!(card["probability"].as_str().expect("text").ends_with('%'), "{card}");
        assert!(card["bar"].as_f64() > Some(0.0) && card["cosine"].as_f64() > Some(0.0), "{card}");
        assert!(card["time"].as_str().expect("text").starts_with("2026-11-2"), "{card}");
    }
    let address = browser.client.current_url().await.expect("an address");
    assert!(address.query_pairs().any(|(name, value)| name == "q" && value == "红苹果"), "{address}");

    // The same address, opened afresh, shows the same.
    let captions = browser.captions().await;
    browser.client.goto("about:blank").await.expect("leaves");
    browser.client.goto(address.as_str()).await.expect("opens");
    browser.until_cards(5).await;
    assert_eq!(browser.captions().await, captions);

    browser.until("document.getElementById('live-posts').textContent === '18'").await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sample_topics_history_and_keys_work_in_chinese() {
    let Some(browser) = Browser::open("zh-CN").await else { return };
    let worker = Worker::start(&[]).await;
    browser.client.goto(&worker.url).await.expect("opens");
    browser.until("document.querySelector('h1').textContent === '用文字或图片搜索信息流'").await;
    for (chip, topic) in [(1, "水果"), (2, "交通工具"), (4, "a flying animal")] {
        let selector = format!(".samples button:nth-of-type({chip})");
        browser.client.find(Locator::Css(&selector)).await.expect("a chip").click().await.expect("clicks");
        browser.until(&format!("document.title === '{topic} · feedlens'")).await;
        browser.until_cards(5).await;
    }
    browser.client.back().await.expect("goes back");
    browser.until("document.getElementById('topic').value === '交通工具'").await;
    browser.until_cards(5).await;
    let vehicles = ["汽车", "公交车", "自行车", "飞机"];
    let found = browser.captions().await.iter().filter(|caption| vehicles.contains(&caption.as_str())).count();
    assert!(found >= 3, "{:?}", browser.captions().await);

    let press = async |keys: &str| {
        let active = browser.client.active_element().await.expect("something has the focus");
        active.send_keys(keys).await.expect("types");
    };
    browser.script("document.activeElement.blur();").await;
    press("/").await;
    browser.until("document.activeElement.id === 'topic'").await;
    press(&Key::Down).await;
    press(&Key::Right).await;
    browser.until("document.activeElement === document.querySelectorAll('.card .picture')[1]").await;
    press(&Key::Enter).await;
    browser.until("location.search.startsWith('?post=')").await;
    browser.until_cards(5).await;
    press(&Key::Escape).await;
    browser.until("location.search === '' && document.querySelectorAll('.card').length === 0").await;

    browser.client.find(Locator::Id("language")).await.expect("the toggle").click().await.expect("clicks");
    browser.until("document.documentElement.lang === 'en'").await;
    browser.client.refresh().await.expect("reloads");
    browser.until("document.querySelector('h1').textContent.startsWith('Search the feed')").await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_can_be_chosen_dropped_and_clicked() {
    let Some(browser) = Browser::open("en").await else { return };
    let worker = Worker::start(&[]).await;
    browser.client.goto(&worker.url).await.expect("opens");
    let file = browser.client.find(Locator::Id("file")).await.expect("the file button");
    file.send_keys(drawing("1f34e").to_str().expect("UTF-8")).await.expect("chooses");
    browser.until_cards(5).await;
    assert_eq!(browser.captions().await[0], "红苹果", "a picture finds itself");
    browser.until("document.getElementById('subject-picture').naturalWidth > 0").await;
    browser.until("document.getElementById('subject-name').textContent === '1f34e.png'").await;

    let drop = "const bytes = Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], 'bus.png', {type: 'image/png'}));
        for (const type of ['dragenter', 'dragover', 'drop'])
          document.body.dispatchEvent(new DragEvent(type, {dataTransfer: transfer, bubbles: true, cancelable: true}));";
    browser.client.execute(drop, vec![json!(drawing_base64("1f68c"))]).await.expect("drops");
    browser.until("document.getElementById('subject-name').textContent === 'bus.png'").await;
    browser.until("document.querySelector('.card .caption')?.textContent === '公交车'").await;
    browser.until_cards(5).await;

    let picture = browser.client.find(Locator::Css(".card:nth-child(2) .picture")).await.expect("a picture");
    let second = browser.captions().await[1].clone();
    picture.click().await.expect("clicks");
    browser.until(&format!("document.getElementById('subject-name').textContent === '{second}'")).await;
    browser.until("location.search.startsWith('?post=')").await;
    browser.until_cards(5).await;
    assert!(!browser.captions().await.contains(&second), "the post itself is left out");

    // Back to the dropped picture, which the address cannot hold.
    browser.client.back().await.expect("goes back");
    browser.until("document.getElementById('subject-name').textContent === 'bus.png'").await;
    browser.until("document.querySelector('.card .caption')?.textContent === '公交车'").await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_narrow_and_nothing_found_says_so() {
    let Some(browser) = Browser::open("en").await else { return };
    let worker = Worker::start(&[]).await;
    browser.client.goto(&format!("{}/?q=水果&author=甲", worker.url)).await.expect("opens");
    browser.until_cards(5).await;
    let authors = "[...document.querySelectorAll('.card .author')].every(a => a.textContent === '甲')";
    browser.until(authors).await;
    browser.until("document.getElementById('filters-count').textContent === '1'").await;
    browser.client.find(Locator::Css(".card .tags button")).await.expect("a tag").click().await.expect("clicks");
    browser.until("location.search.includes('tag=')").await;

    browser.client.goto(&format!("{}/?q=水果&author=nobody", worker.url)).await.expect("opens");
    browser.until("document.getElementById('notice-title').textContent === 'No post matches'").await;
    browser.until("document.querySelectorAll('.card').length === 0").await;
    browser.client.find(Locator::Id("filters-clear")).await.expect("a button").click().await.expect("clicks");
    browser.until_cards(5).await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_told_and_can_be_tried_again() {
    let Some(browser) = Browser::open("en").await else { return };
    let (_file, keys) = api_keys(&[("page", "open-sesame-open", "")]);
    let worker = Worker::start(&[&keys]).await;
    browser.client.goto(&format!("{}/?q=水果", worker.url)).await.expect("opens");
    browser.until("!document.getElementById('key').hidden").await;
    let key = browser.client.find(Locator::Id("key-value")).await.expect("the field");
    key.send_keys(&format!("open-sesame-open{}", Key::Enter)).await.expect("types");
    browser.until_cards(5).await;

    let file = browser.client.find(Locator::Id("file")).await.expect("the file button");
    let folder = tempfile::tempdir().expect("a folder");
    let broken = folder.path().join("broken.png");
    std::fs::write(&broken, "not a picture").expect("writes");
    file.send_keys(broken.to_str().expect("UTF-8")).await.expect("chooses");
    browser.until("document.getElementById('notice-title').textContent === 'The search failed'").await;
    browser.until("document.getElementById('notice-text').textContent !== ''").await;

    worker.store.close().await.expect("closes");
    browser.search_for("海").await;
    browser.until("!document.getElementById('retry').hidden && document.title.startsWith('海')").await;
    worker.shutdown.cancel();
    worker.serving.await.expect("no panic").expect("ends well");
    browser.client.find(Locator::Id("retry")).await.expect("a button").click().await.expect("clicks");
    browser.until("document.getElementById('notice-title').textContent === 'The server does not answer'").await;
    browser.until("document.querySelector('.pulse').dataset.state === 'lost'").await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_posts_are_text_and_leave_the_layout_whole() {
    let Some(browser) = Browser::open("en").await else { return };
    let worker = Worker::empty(&[]).await;
    let markup = "<img src=x onerror='window.hacked=1'><b>bold</b><script>window.hacked=1</script>";
    let captions = [markup.to_owned(), "W".repeat(60_000), "\u{202e}\u{2066}drawkcab \u{202e}".to_owned()];
    for (index, (caption, code)) in captions.iter().zip(["1f34e", "1f34f", "1f34c"]).enumerate() {
        let mut post = post_of(index, code, caption);
        post.author = Some(markup.to_owned());
        post.tags = vec![markup.to_owned(), "T".repeat(200)];
        worker.index(&post).await;
    }
    // Shown as a link, and not to be one.
    let mut post = post_of(3, "1f347", "a link");
    post.image = Some(feedlens::post::ImageSource::Url("javascript:window.hacked=1".to_owned()));
    worker.index(&post).await;
    browser.client.set_window_size(500, 900).await.expect("narrow");
    browser.client.goto(&format!("{}/?q=水果&target=caption", worker.url)).await.expect("opens");
    browser.until_cards(4).await;
    let texts = browser.captions().await;
    assert!(texts.contains(&markup.to_owned()), "{texts:?}");
    let elements =
        "return document.querySelectorAll('.cards b, .cards script, .cards a[href], .cards [onerror]').length;";
    assert_eq!(browser.script(elements).await, json!(0));
    assert_eq!(browser.script("return window.hacked ?? null;").await, Value::Null);
    let overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth;";
    assert_eq!(browser.script(overflow).await, json!(0), "no text pushes the page wider than the window");
    let tallest = "return Math.max(...[...document.querySelectorAll('.card')].map(c => c.offsetHeight));";
    assert!(browser.script(tallest).await.as_f64() < Some(420.0));
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_fits_a_narrow_phone() {
    let phone = json!({"mobileEmulation": {"deviceMetrics": {"width": 360, "height": 800, "pixelRatio": 2.0}}});
    let Some(browser) = Browser::with_options("en", phone).await else { return };
    let worker = Worker::start(&[]).await;
    browser.client.goto(&format!("{}/?q=水果&author=甲", worker.url)).await.expect("opens");
    browser.until_cards(5).await;
    let widths = browser.script("return [window.innerWidth, document.documentElement.scrollWidth];").await;
    assert_eq!(widths, json!([360, 360]));
    let outside = "return [...document.querySelectorAll('main *, header *')].filter(e => e.checkVisibility()
        && e.getBoundingClientRect().width > 0 && e.getBoundingClientRect().right > 361).map(e => e.outerHTML);";
    assert_eq!(browser.script(outside).await, json!([]), "nothing is cut off at the right");
    browser.close().await;
}
