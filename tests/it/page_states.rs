//! What the page shows where there is nothing to show, where something fails, where posts are hostile, on a phone.

use std::collections::HashMap;

use fantoccini::Locator;
use fantoccini::key::Key;
use feedlens::post::ImageSource;
use regex::Regex;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::binary::root;
use crate::browser::Browser;
use crate::query_support::{Worker, api_keys, post_of};

/// chromedriver's options for a phone.
fn phone(width: u32) -> Value {
    json!({"mobileEmulation": {"deviceMetrics": {"width": width, "height": 844, "pixelRatio": 2.0}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_found_says_so_and_names_the_way_out() {
    let Some(browser) = Browser::open("en").await else { return };
    let worker = Worker::start(&[]).await;
    browser.client.goto(&format!("{}/?q=水果&author=nobody", worker.url)).await.expect("opens");
    browser.until("document.getElementById('notice-title').checkVisibility()").await;
    browser.until("document.querySelectorAll('.card').length === 0").await;
    browser.until("document.getElementById('notice').role === 'alert'").await;
    browser.click("#loosen").await;
    browser.until("location.search === '?q=%E6%B0%B4%E6%9E%9C'").await;
    browser.until_cards(5).await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_nothing_fits_gets_no_wrong_pictures_unless_asked_for() {
    let Some(browser) = Browser::open("en").await else { return };
    let worker = Worker::start(&["query.min_score=0.9"]).await;
    browser.client.goto(&format!("{}/?q=水果", worker.url)).await.expect("opens");
    browser.until("document.getElementById('notice-title').textContent === 'Nothing in the feed fits'").await;
    browser.until("document.getElementById('notice-text').textContent.includes('0.900')").await;
    browser.click("#nearest").await;
    browser.until_cards(5).await;
    browser.until("new URLSearchParams(location.search).get('min_score') === 'none'").await;
    // The way back is a chip.
    browser.click("#chips .chip button").await;
    browser.until("document.getElementById('notice-title').checkVisibility()").await;
    browser.until("!location.search.includes('min_score')").await;
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
    key.send_keys(&format!("wrong{}", Key::Enter)).await.expect("types");
    browser.until("!document.getElementById('key').hidden && document.getElementById('key-value').value === ''").await;
    key.send_keys(&format!("open-sesame-open{}", Key::Enter)).await.expect("types");
    browser.until_cards(5).await;
    browser.until("document.getElementById('live').dataset.state === 'still'").await;
    // For this tab only.
    browser
        .until("localStorage.getItem('feedlens.key') === null && sessionStorage.getItem('feedlens.key') !== null")
        .await;

    let file = browser.client.find(Locator::Id("file")).await.expect("the file button");
    let folder = tempfile::tempdir().expect("a folder");
    let broken = folder.path().join("broken.png");
    std::fs::write(&broken, "not a picture").expect("writes");
    file.send_keys(broken.to_str().expect("UTF-8")).await.expect("chooses");
    browser.until("document.getElementById('notice-title').textContent === 'The search failed'").await;
    browser.until("document.getElementById('notice-text').textContent !== ''").await;
    let text = folder.path().join("text.txt");
    std::fs::write(&text, "not a picture").expect("writes");
    file.send_keys(text.to_str().expect("UTF-8")).await.expect("chooses");
    browser.until("document.getElementById('toast').textContent === 'This file is not a picture.'").await;

    worker.store.close().await.expect("closes");
    browser.search_for("海").await;
    browser.until("!document.getElementById('retry').hidden && document.title.startsWith('海')").await;
    browser.until("document.getElementById('notice-title').textContent === 'Searching is not possible just now'").await;
    worker.shutdown.cancel();
    worker.serving.await.expect("no panic").expect("ends well");
    browser.click("#retry").await;
    browser.until("document.getElementById('notice-title').textContent === 'The server does not answer'").await;
    browser.until("document.getElementById('live').dataset.state === 'lost'").await;
    browser.until("document.getElementById('live-lost').checkVisibility()").await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_at_its_limit_is_asked_again_when_it_said() {
    let Some(browser) = Browser::open("en").await else { return };
    let limits = ["query.max_concurrent=1", "query.max_wait=10ms", "query.timeout=5s"];
    let worker = Worker::start(&[&limits[..], &["images.allow_networks=[\"127.0.0.0/8\"]"]].concat()).await;
    browser.client.goto(&worker.url).await.expect("opens");
    // The only place is held by a search whose picture never comes.
    let host = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let picture = json!({"image": {"url": format!("http://{}/a.png", host.local_addr().expect("bound"))}});
    let holding = worker.ask(&picture);
    let told = async {
        let _connection = host.accept().await.expect("a connection");
        told_to_wait(&browser).await;
    };
    let (_, ()) = tokio::join!(holding, told);
    // Nobody clicks: it was told when.
    browser.until_cards(5).await;
    browser.close().await;
}

async fn told_to_wait(browser: &Browser) {
    browser.search_for("水果").await;
    browser.until("document.getElementById('notice-title').textContent === 'Too many searches at once'").await;
    browser.until("/^Again in \\d+ s$/.test(document.getElementById('retry').textContent)").await;
    browser.until("document.getElementById('retry').disabled").await;
}

/// Posts whose author wants to break the page: markup, direction marks, endless words, marks upon marks, and a link.
async fn index_hostile_posts(worker: &Worker) -> Vec<String> {
    let markup = "<img src=x onerror='window.hacked=1'><b>bold</b><script>window.hacked=1</script>";
    let captions = [
        markup.to_owned(),
        "W".repeat(100_000),
        "\u{202e}\u{2066}drawkcab \u{202e}".to_owned(),
        format!("Z{}algo {}", "\u{300}\u{301}\u{302}\u{30a}\u{323}".repeat(2_000), "👩‍👩‍👧‍👦".repeat(3_000)),
    ];
    for (index, (caption, code)) in captions.iter().zip(["1f34e", "1f34f", "1f34c", "1f349"]).enumerate() {
        let mut post = post_of(index, code, caption);
        post.author = Some(if index == 0 { markup.to_owned() } else { caption.chars().take(60).collect() });
        post.tags = vec![markup.to_owned(), "T".repeat(200), "\u{202e}gat".to_owned()];
        worker.index(&post).await;
    }
    // Shown as a link, and not to be one.
    let mut post = post_of(4, "1f347", "a link");
    post.image = Some(ImageSource::Url("javascript:window.hacked=1".to_owned()));
    worker.index(&post).await;
    captions.to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_posts_are_text_and_leave_the_layout_whole() {
    for (options, width) in [(phone(390), 390), (json!({}), 1440)] {
        let Some(browser) = Browser::with_options("en", options).await else { return };
        let worker = Worker::empty(&["query.min_score=none"]).await;
        let captions = index_hostile_posts(&worker).await;
        if width == 1440 {
            browser.client.set_window_size(1440, 900).await.expect("wide");
        }
        for (target, count) in [("image", 4), ("both", 5), ("caption", 5)] {
            let address = format!("{}/?q=水果&target={target}&min_score=none", worker.url);
            browser.client.goto(&address).await.expect("opens");
            browser.until_cards(count).await;
            let elements =
                "return document.querySelectorAll('.cards b, .cards script, .cards a[href], .cards [onerror]').length;";
            assert_eq!(browser.script(elements).await, json!(0));
            assert_eq!(browser.script("return window.hacked ?? null;").await, Value::Null);
            browser.assert_no_overflow().await;
            let isolated = "return [...document.querySelectorAll('.caption, .author, .tags button')].every(e =>
                e.children.length === 1 && e.firstElementChild.tagName === 'BDI');";
            assert_eq!(browser.script(isolated).await, json!(true), "direction marks stay within their text");
            let tallest = "return Math.max(...[...document.querySelectorAll('.card')].map(c => c.offsetHeight));";
            assert!(browser.script(tallest).await.as_f64() < Some(560.0), "{:?}", browser.script(tallest).await);
        }
        // As text, character for character, what fits.
        let texts = browser.captions().await;
        assert!(texts.contains(&captions[0]), "{texts:?}");
        assert!(texts.iter().any(|text| text.starts_with("WWWW") && text.len() < 1_000), "{texts:?}");
        // As the subject of a search, in the title and in the chip of a filter, too.
        // On a phone only the first line of tags is shown.
        browser.script("document.querySelector('.card .tags button + button').click();").await;
        browser.until("new URLSearchParams(location.search).get('tag') === 'T'.repeat(200)").await;
        browser.until("document.querySelectorAll('#chips .chip').length === 2").await;
        browser.until_cards(4).await;
        browser.assert_no_overflow().await;
        browser.click(".card .picture:enabled").await;
        browser.until("location.search.includes('post=')").await;
        browser.until("document.getElementById('results').getAttribute('aria-busy') === 'false'").await;
        browser.assert_no_overflow().await;
        assert_eq!(browser.script("return window.hacked ?? null;").await, Value::Null);
        browser.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_fits_a_narrow_phone() {
    let Some(browser) = Browser::with_options("en", phone(360)).await else { return };
    let worker = Worker::start(&[]).await;
    for path in ["/?q=水果&author=甲", "/", "/?q=水果&author=nobody"] {
        browser.client.goto(&format!("{}{path}", worker.url)).await.expect("opens");
        browser.until("document.getElementById('live-posts').textContent === '18'").await;
        browser.until("document.getElementById('results').getAttribute('aria-busy') === 'false'").await;
        let widths = browser.script("return [window.innerWidth, document.documentElement.scrollWidth];").await;
        assert_eq!(widths, json!([360, 360]), "{path}");
        let outside =
            "return [...document.querySelectorAll('main *, header *, aside *')].filter(e => e.checkVisibility()
            && e.getBoundingClientRect().width > 0 && e.getBoundingClientRect().right > 361).map(e => e.outerHTML);";
        assert_eq!(browser.script(outside).await, json!([]), "{path}: nothing is cut off at the right");
    }
    browser.close().await;
}

/// Relative luminance of a colour `#rrggbb` (WCAG 2.2).
fn luminance(colour: &str) -> f64 {
    let channel = |index: usize| {
        let value = u8::from_str_radix(&colour[1 + 2 * index..3 + 2 * index], 16).expect("hex digits");
        let value = f64::from(value) / 255.0;
        if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
    };
    0.2126 * channel(0) + 0.7152 * channel(1) + 0.0722 * channel(2)
}

#[test]
fn texts_can_be_read_in_both_themes() {
    let style = std::fs::read_to_string(root().join("src/query/web/style.css")).expect("reads");
    let token = Regex::new(r"--([a-z-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)").expect("an expression");
    let tokens: HashMap<&str, [f64; 2]> = token
        .captures_iter(&style)
        .map(|found| found.extract())
        .map(|(_, [name, light, dark])| (name, [luminance(light), luminance(dark)]))
        .collect();
    // WCAG's AA: 4.5 to 1 for text, 3 to 1 for the outlines of fields.
    for (front, back, least) in [
        ("text", "ground", 4.5),
        ("text", "tint", 4.5),
        ("muted", "ground", 4.5),
        ("muted", "surface", 4.5),
        ("muted", "sunken", 4.5),
        ("muted", "tint", 4.5),
        ("accent", "ground", 4.5),
        ("accent", "surface", 4.5),
        ("accent-strong", "tint", 4.5),
        ("on-accent", "accent", 4.5),
        ("bad", "surface", 4.5),
        ("warn", "warn-tint", 4.5),
        ("warn", "surface", 4.5),
        ("line-strong", "ground", 3.0),
        ("line-strong", "surface", 3.0),
    ] {
        for (theme, (front_value, back_value)) in tokens[front].iter().zip(tokens[back]).enumerate() {
            let (light, dark) = (front_value.max(back_value), front_value.min(back_value));
            let contrast = (light + 0.05) / (dark + 0.05);
            assert!(contrast >= least, "{front} on {back} in theme {theme}: {contrast:.2} to 1");
        }
    }
}
