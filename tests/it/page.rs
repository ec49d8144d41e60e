//! The page in headless Chromium, on the real server, model and embedded store: searching, links, history, keys, language.

use fantoccini::Locator;
use fantoccini::key::Key;
use serde_json::json;

use crate::browser::Browser;
use crate::query_support::{Worker, drawing, drawing_base64};

#[tokio::test(flavor = "multi_thread")]
async fn a_typed_topic_shows_five_pictures_and_stays_in_the_address() {
    let Some(browser) = Browser::open("en-GB").await else { return };
    let worker = Worker::start(&[]).await;
    browser.client.goto(&worker.url).await.expect("opens");
    browser.until("document.querySelector('h1').textContent.startsWith('See what')").await;
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
                time: card.querySelector('time').dateTime,
                ago: card.querySelector('time').textContent,
                absolute: card.querySelector('time').title}));",
        )
        .await;
    for card in shown.as_array().expect("cards") {
        assert!(card["picture"].as_f64() > Some(10.0) && card["width"].as_f64() > Some(100.0), "{card}");
        assert!(card["probability"].as_str().expect("text").ends_with('%'), "{card}");
        assert!(card["bar"].as_f64() > Some(0.0) && card["cosine"].as_f64() > Some(0.0), "{card}");
        assert!(card["time"].as_str().expect("text").starts_with("2026-11-2"), "{card}");
        assert!(card["absolute"].as_str().expect("text").contains("2026"), "{card}");
        assert_ne!(card["ago"], card["absolute"], "{card}");
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
    browser.until("document.getElementById('live').dataset.state === 'still'").await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sample_topics_history_and_keys_work_in_chinese() {
    let Some(browser) = Browser::open("zh-CN").await else { return };
    let worker = Worker::start(&[]).await;
    browser.client.goto(&worker.url).await.expect("opens");
    browser.until("document.querySelector('h1').textContent.startsWith('看看')").await;
    for (chip, topic) in [(1, "水果"), (2, "交通工具"), (4, "a flying animal")] {
        browser.click(&format!(".samples button:nth-of-type({chip})")).await;
        browser.until(&format!("document.title === '{topic} · feedlens'")).await;
        browser.until_cards(5).await;
        // The samples are part of the start.
        browser.client.goto(&worker.url).await.expect("opens");
    }
    browser.client.goto(&format!("{}/?q=交通工具", worker.url)).await.expect("opens");
    browser.until_cards(5).await;
    browser.search_for("水果").await;
    browser.until("document.title === '水果 · feedlens'").await;
    browser.client.back().await.expect("goes back");
    browser.until("document.getElementById('topic').value === '交通工具'").await;
    browser.until_cards(5).await;
    let vehicles = ["汽车", "公交车", "自行车", "飞机"];
    let found = browser.captions().await.iter().filter(|caption| vehicles.contains(&caption.as_str())).count();
    assert!(found >= 3, "{:?}", browser.captions().await);
    browser.client.forward().await.expect("goes forward");
    browser.until("document.getElementById('topic').value === '水果'").await;
    browser.until_cards(5).await;

    browser.script("document.activeElement.blur();").await;
    browser.press("/").await;
    browser.until("document.activeElement.id === 'topic'").await;
    browser.press(&Key::Down).await;
    browser.press(&Key::Right).await;
    browser.until("document.activeElement === document.querySelectorAll('.card .picture')[1]").await;
    let outline = "return getComputedStyle(document.activeElement).outlineStyle;";
    assert_eq!(browser.script(outline).await, json!("solid"), "the focus can be seen");
    browser.press(&Key::Enter).await;
    browser.until("location.search.startsWith('?post=')").await;
    browser.until_cards(5).await;
    browser.press(&Key::Escape).await;
    browser.until("location.search === '' && document.querySelectorAll('.card').length === 0").await;

    browser.click("#language").await;
    browser.until("document.documentElement.lang === 'en'").await;
    browser.client.refresh().await.expect("reloads");
    browser.until("document.querySelector('h1').textContent.startsWith('See what')").await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recent_topics_are_suggested_and_can_be_forgotten() {
    let Some(browser) = Browser::open("en").await else { return };
    let worker = Worker::start(&["query.min_score=none"]).await;
    browser.client.goto(&worker.url).await.expect("opens");
    for topic in ["红苹果", "a red apple", "公交车"] {
        browser.search_for(topic).await;
        browser.until(&format!("document.title === '{topic} · feedlens'")).await;
        browser.until_cards(5).await;
    }
    browser.client.goto(&worker.url).await.expect("opens");
    browser.click("#topic").await;
    let suggested = "[...document.querySelectorAll('#suggestions [role=option]')].map(o => o.textContent).join()";
    browser.until(&format!("{suggested} === '公交车,a red apple,红苹果'")).await;
    browser.press("app").await;
    browser.until(&format!("{suggested} === 'a red apple'")).await;
    browser.press(&Key::Down).await;
    browser.until("document.getElementById('topic').getAttribute('aria-activedescendant') === 'suggestion-0'").await;
    browser.press(&Key::Enter).await;
    browser.until("document.title === 'a red apple · feedlens'").await;
    browser.until("document.getElementById('suggestions-box').hidden").await;

    browser.client.goto(&worker.url).await.expect("opens");
    browser.click("#topic").await;
    browser.until("!document.getElementById('suggestions-box').hidden").await;
    // The first Escape closes the suggestions only.
    browser.press(&Key::Escape).await;
    browser.until("document.getElementById('suggestions-box').hidden").await;
    browser.click("#topic").await;
    browser.click("#suggestions-clear").await;
    browser.until("localStorage.getItem('feedlens.recent') === null").await;
    browser.client.refresh().await.expect("reloads");
    browser.click("#topic").await;
    browser.until("document.activeElement.id === 'topic' && document.getElementById('suggestions-box').hidden").await;
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

    let transfer = "const bytes = Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], arguments[1], {type: 'image/png'}));";
    let drop = format!(
        "{transfer} for (const type of ['dragenter', 'dragover', 'drop'])
          document.body.dispatchEvent(new DragEvent(type, {{dataTransfer: transfer, bubbles: true, cancelable: true}}));"
    );
    browser.client.execute(&drop, vec![json!(drawing_base64("1f68c")), json!("bus.png")]).await.expect("drops");
    browser.until("document.getElementById('subject-name').textContent === 'bus.png'").await;
    browser.until("document.querySelector('.card .caption')?.textContent === '公交车'").await;
    browser.until_cards(5).await;

    let paste = format!(
        "{transfer} document.body.dispatchEvent(new ClipboardEvent('paste', {{clipboardData: transfer, bubbles: true}}));"
    );
    browser.client.execute(&paste, vec![json!(drawing_base64("1f436")), json!("dog.png")]).await.expect("pastes");
    browser.until("document.getElementById('subject-name').textContent === 'dog.png'").await;
    browser.until("document.querySelector('.card .caption')?.textContent === '狗脸'").await;
    browser.client.back().await.expect("goes back");
    browser.until("document.querySelector('.card .caption')?.textContent === '公交车'").await;
    browser.until_cards(5).await;

    let second = browser.captions().await[1].clone();
    browser.click(".card:nth-child(2) .picture").await;
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
async fn filters_narrow_and_travel_with_the_link() {
    let Some(browser) = Browser::open("en").await else { return };
    let worker = Worker::start(&[]).await;
    browser.client.goto(&format!("{}/?q=水果&author=甲", worker.url)).await.expect("opens");
    browser.until_cards(5).await;
    let authors = "[...document.querySelectorAll('.card .author')].every(a => a.textContent === '甲')";
    browser.until(authors).await;
    browser.until("document.getElementById('filters-count').textContent === '1'").await;
    browser.click(".card .tags button").await;
    browser.until("new URLSearchParams(location.search).getAll('tag').length === 1").await;
    browser.until("document.querySelectorAll('#chips .chip').length === 2").await;

    // A chip's cross takes its filter away, and the back button brings it again.
    browser.click("#chips .chip button").await;
    browser.until("!location.search.includes('author=') && location.search.includes('tag=')").await;
    browser.client.back().await.expect("goes back");
    browser.until("location.search.includes('author=')").await;
    browser.until("document.getElementById('filters-count').textContent === '2'").await;

    // The form has the viewer's wall clock, the address a moment: the same for all who get the link.
    let set_time = "const since = document.querySelector('[name=since]'); since.value = arguments[0];
        since.dispatchEvent(new Event('change', {bubbles: true}));";
    browser.client.execute(set_time, vec![json!("2026-11-20T06:00")]).await.expect("sets");
    let expected = "new URLSearchParams(location.search).get('since') === new Date('2026-11-20T06:00').toISOString()";
    browser.until(expected).await;
    browser.until("[...document.querySelectorAll('.card time')].every(t => t.dateTime >= '2026-11-20T06:00')").await;
    browser.until("document.querySelectorAll('.card:not(.loading)').length > 0").await;

    browser.click("#filters-clear").await;
    browser.until("document.querySelectorAll('#chips .chip').length === 0").await;
    browser.until_cards(5).await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_theme_follows_the_system_until_it_is_chosen() {
    let Some(browser) = Browser::open("en").await else { return };
    let worker = Worker::empty(&[]).await;
    browser.client.goto(&worker.url).await.expect("opens");
    let ground = "getComputedStyle(document.body).backgroundColor";
    let light = browser.script(&format!("return {ground};")).await;
    let system = json!({"features": [{"name": "prefers-color-scheme", "value": "dark"}]});
    browser.devtools("Emulation.setEmulatedMedia", system).await;
    browser.until(&format!("{ground} !== {light}")).await;
    browser.until("document.getElementById('theme').ariaLabel === 'Theme: as the system'").await;
    browser.click("#theme").await;
    browser.until(&format!("{ground} === {light}")).await;
    browser.client.refresh().await.expect("reloads");
    browser.until(&format!("{ground} === {light} && document.documentElement.dataset.theme === 'light'")).await;
    browser.close().await;
}
