//! What a card tells of its post, and the further cards: duplicates, labels, a picture that is pending, five more.

use feedlens::post::ImageSource;
use image::ImageFormat;
use serde_json::json;

use crate::browser::Browser;
use crate::query_support::{DRAWINGS, Worker, post_of};
use crate::relevance::{copy_of, index_with};

/// A set that moderates, and one that does not.
const LABELS: &str = r#"labels.sets=[
    { name = "safety", moderation = "flag", background = { zh = ["汽车"] }, labels = [{ name = "weapon", zh = ["锤子"] }] },
    { name = "kind", background = { zh = ["汽车"] }, labels = [{ name = "fruit", zh = ["水果"] }, { name = "animal", zh = ["动物"] }] },
]"#;

#[tokio::test(flavor = "multi_thread")]
async fn duplicates_are_counted_on_the_card_and_shown_when_asked_for() {
    let Some(browser) = Browser::open("en").await else { return };
    let worker = Worker::start(&["query.min_score=none"]).await;
    for (number, format) in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Png].into_iter().enumerate() {
        worker.index(&copy_of(&format!("copy:{number}"), "1f34e", 1.0 + number as f32 / 2.0, format)).await;
    }
    browser.client.goto(&format!("{}/?q=红苹果", worker.url)).await.expect("opens");
    browser.until_cards(5).await;
    let folded = "[...document.querySelectorAll('.card')].map(c => c.querySelector('.folded'))";
    browser.until(&format!("{folded}[0].textContent === '+3 more like this' && {folded}[0].checkVisibility()")).await;
    // No other drawing is there twice.
    browser.until(&format!("{folded}.slice(1).every(f => !f.checkVisibility())")).await;
    let first = browser.captions().await[0].clone();

    browser.click(".card .folded").await;
    browser.until("new URLSearchParams(location.search).get('fold') === 'false'").await;
    browser.until("location.search.includes('post=')").await;
    browser.until_cards(5).await;
    let captions = browser.captions().await;
    let copies = captions.iter().filter(|caption| caption.starts_with("转发") || *caption == "红苹果");
    assert_eq!(copies.count(), 3, "the others of the four: {captions:?}");
    assert!(!captions.contains(&first), "the post itself is left out: {captions:?}");
    browser.until(&format!("{folded}.every(f => !f.checkVisibility())")).await;
    // The way back is a chip, and the back button.
    browser.until("document.querySelector('#chips .chip').textContent.includes('duplicates shown')").await;
    browser.click("#chips .chip button").await;
    browser.until("!location.search.includes('fold=')").await;
    browser.client.back().await.expect("goes back");
    browser.until("location.search.includes('fold=false')").await;
    browser.client.back().await.expect("goes back");
    browser.until("document.title === '红苹果 · feedlens'").await;
    browser.until_cards(5).await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_are_shown_those_that_moderate_stand_out_and_each_is_a_filter() {
    let Some(browser) = Browser::open("en").await else { return };
    let worker = Worker::empty(&["query.min_score=none", LABELS]).await;
    for (index, (code, caption)) in DRAWINGS.iter().enumerate() {
        let labels = match index {
            0..8 => json!(["kind/fruit"]),
            17 => json!(["safety/weapon"]),
            _ => json!([]),
        };
        index_with(&worker, &post_of(index, code, caption), json!({ "labels": labels })).await;
    }
    // Whichever comes first, the answer or the names of the sets.
    browser.client.goto(&format!("{}/?q=锤子", worker.url)).await.expect("opens");
    browser.until_cards(5).await;
    browser.until("document.querySelector('.card .moderated')?.textContent === 'weapon'").await;
    browser.until("document.querySelectorAll('.moderated').length === 1").await;
    browser.until("document.querySelector('.moderated').title.includes('safety/weapon')").await;
    let ground = "getComputedStyle(document.querySelector('.moderated')).backgroundColor";
    let tag = "getComputedStyle(document.querySelector('.tags button:not(.moderated)')).backgroundColor";
    browser.until(&format!("{ground} !== {tag}")).await;

    browser.click(".card .moderated").await;
    browser.until("new URLSearchParams(location.search).get('label') === 'safety/weapon'").await;
    browser.until_cards(1).await;
    assert_eq!(browser.captions().await, ["锤子"]);

    // The form names the sets and their labels; labels that do not moderate are plain.
    browser.client.goto(&format!("{}/?q=水果&label=kind/fruit", worker.url)).await.expect("opens");
    browser.until_cards(5).await;
    browser.until("[...document.querySelectorAll('.label')].length === 5").await;
    browser.until("document.querySelectorAll('.moderated').length === 0").await;
    let groups =
        "[...document.querySelectorAll('[name=label] optgroup')].map(g => g.label + ':' + g.textContent).join()";
    browser.until(&format!("{groups} === 'safety:weapon,kind:fruitanimal'")).await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_more_follow_the_five_and_the_focus_goes_along() {
    let Some(browser) = Browser::open("en").await else { return };
    let worker = Worker::start(&["query.min_score=none"]).await;
    browser.client.goto(&format!("{}/?q=水果", worker.url)).await.expect("opens");
    browser.until_cards(5).await;
    let first = browser.captions().await;
    for (count, focus) in [(10, 5), (15, 10), (18, 15)] {
        browser.click("#more").await;
        browser.until_cards(count).await;
        let there = format!("document.activeElement === document.querySelectorAll('.card .picture')[{focus}]");
        browser.until(&there).await;
    }
    let captions = browser.captions().await;
    assert_eq!(captions[..5], first, "what was there stays where it was");
    let mut names = captions.clone();
    names.sort();
    let mut expected = DRAWINGS.map(|(_, caption)| caption.to_owned()).to_vec();
    expected.sort();
    assert_eq!(names, expected, "each post once");
    let ranks = "[...document.querySelectorAll('.rank')].map(r => Number(r.textContent)).every((r, i) => r === i + 1)";
    browser.until(ranks).await;
    // There are no more.
    browser.until("!document.getElementById('more').checkVisibility()").await;
    browser.until("document.getElementById('summary').textContent.startsWith('The best 18 of 18 ')").await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_that_is_pending_says_so_and_is_not_searched_by() {
    let Some(browser) = Browser::open("en").await else { return };
    let worker = Worker::start(&["query.min_score=none"]).await;
    let mut post = post_of(0, "1f34e", "很大的红苹果");
    post.post_id = "pending".to_owned();
    post.image = Some(ImageSource::Url("https://pictures.example/apple.jpg".to_owned()));
    index_with(&worker, &post, json!({"image_pending": true})).await;
    browser.client.goto(&format!("{}/?q=很大的红苹果&target=caption", worker.url)).await.expect("opens");
    browser.until_cards(5).await;
    assert_eq!(browser.captions().await[0], "很大的红苹果");
    let missing = "document.querySelector('.card .no-picture')";
    browser.until(&format!("{missing}.checkVisibility() && {missing}.textContent === 'picture pending'")).await;
    browser.until(&format!("{missing}.dataset.state === 'pending'")).await;
    browser.until("document.querySelector('.card .picture').disabled").await;
    browser.until("!document.querySelector('.card img').checkVisibility()").await;
    // Where it will come from can be looked at.
    browser.until("document.querySelector('.card .original').href === 'https://pictures.example/apple.jpg'").await;
    // The cards beside it have theirs, and lie as they did.
    browser.until("[...document.querySelectorAll('.no-picture')].filter(n => n.checkVisibility()).length === 1").await;
    browser.assert_no_overflow().await;
    browser.close().await;
}
