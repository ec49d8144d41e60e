//! What both stores promise: the same cases run against the embedded store and, where there is one, a Qdrant server
//! (`QDRANT_URL`, or a `qdrant` binary on the PATH, which is started here).

use std::collections::{BTreeMap, BTreeSet};

use feedlens::error::{Fault, Reason};
use feedlens::post::point_id;
use feedlens::store::{
    Filter, HitParts, ModelStamp, PayloadPart, Point, SharedStore, StoreKind, VectorName, VectorQuery, Write,
};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::json;

use crate::store_support::{
    Bench, DIMENSION, delete, found, object, on_each_store, post, stamp, stored, time, upsert, vector,
};

on_each_store!(
    search_finds_the_nearest_by_the_named_vector,
    filters_hold_one_by_one_and_together,
    hits_bring_what_was_asked_for,
    post_with_one_vector_is_found_by_that_vector_only,
    vector_that_a_newer_version_lacks_is_gone,
    older_write_never_wins,
    same_write_again_changes_nothing,
    highest_version_of_a_batch_wins,
    deleted_post_is_hidden_and_stays_deleted,
    newer_version_brings_a_deleted_post_back,
    payload_comes_back_as_it_was,
    batch_beyond_every_request_size_is_written_whole,
    every_order_of_a_history_ends_in_the_same_state,
    writers_at_a_time_lose_nothing,
    reopening_keeps_everything,
    faulty_write_is_rejected_and_named,
    other_models_collection_is_refused,
    missing_points_are_left_out,
);

async fn found_ids(store: &SharedStore, filter: Filter) -> BTreeSet<String> {
    found(store, vector(1), VectorName::Image, filter).await.into_iter().map(|(id, _)| id).collect()
}

async fn search_finds_the_nearest_by_the_named_vector(bench: Bench) {
    let store = bench.open().await;
    let posts = (0..50).map(|number| post(&format!("p{number}"), 1)).collect::<Vec<_>>();
    store.write(posts.iter().cloned().map(Write::Upsert).collect()).await.unwrap();
    for using in [VectorName::Image, VectorName::Caption] {
        let of = |post: &Point| match using {
            VectorName::Image => post.image.clone().unwrap(),
            VectorName::Caption => post.caption.clone().unwrap(),
        };
        let query = vector(7);
        let cosine = |post: &Point| of(post).iter().zip(&query).map(|(a, b)| a * b).sum::<f32>();
        let mut expected = posts.iter().map(|post| (cosine(post), post)).collect::<Vec<_>>();
        expected.sort_by(|left, right| right.0.total_cmp(&left.0));
        let request = VectorQuery {
            vector: query.clone(),
            using,
            filter: Filter::default(),
            limit: 5,
            with: HitParts::default(),
        };
        let hits = store.search(request).await.unwrap();
        assert_eq!(hits.len(), 5);
        for (hit, (score, post)) in hits.iter().zip(&expected) {
            assert_eq!(hit.id, post.id);
            assert!((hit.score - score).abs() < 1e-5, "{} is no cosine, {score} is", hit.score);
        }
    }
    assert_eq!(found(&store, vector(7), VectorName::Image, Filter::default()).await.len(), 50);
    store.close().await.unwrap();
}

async fn filters_hold_one_by_one_and_together(bench: Bench) {
    let store = bench.open().await;
    let posts = [
        ("a", json!({"lang": "zh", "author": "u1", "tags": ["天气", "旅行"], "created_at": time(0).to_rfc3339()})),
        (
            "b",
            json!({"lang": "en", "author": "u1", "tags": ["旅行"], "created_at": "2026-11-21T08:30:00Z",
                     "labels": ["主题/风景", "risk/ad"], "hidden": false}),
        ),
        ("c", json!({"lang": "zh", "author": "u2", "tags": [], "created_at": "2026-11-22T16:30:00+08:00"})),
        ("d", json!({"labels": ["主题/风景"]})),
        // No search shows it, whatever is asked for.
        (
            "h",
            json!({"hidden": true, "lang": "zh", "author": "u1", "tags": ["旅行"], "labels": ["risk/ad"],
                     "created_at": time(1).to_rfc3339()}),
        ),
    ];
    let writes = posts.into_iter().map(|(id, payload)| {
        let mut point = post(id, 1);
        point.payload.extend(object(payload));
        Write::Upsert(point)
    });
    store.write(writes.collect()).await.unwrap();
    let text = |text: &str| Some(text.to_owned());
    let list = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let cases = [
        (Filter::default(), "abcd"),
        (Filter { lang: text("zh"), ..Filter::default() }, "ac"),
        (Filter { author: text("u1"), ..Filter::default() }, "ab"),
        (Filter { author: text("u"), ..Filter::default() }, ""),
        (Filter { tags_any: vec!["旅行".to_owned()], ..Filter::default() }, "ab"),
        (Filter { tags_any: vec!["天气".to_owned(), "other".to_owned()], ..Filter::default() }, "a"),
        (Filter { tags_all: list(&["天气", "旅行"]), ..Filter::default() }, "a"),
        (Filter { tags_all: list(&["旅行"]), ..Filter::default() }, "ab"),
        (Filter { tags_all: list(&["旅行", "other"]), ..Filter::default() }, ""),
        (Filter { not_author: list(&["u1"]), ..Filter::default() }, "cd"),
        (Filter { not_author: list(&["u1", "u2"]), ..Filter::default() }, "d"),
        (Filter { author: text("u1"), not_author: list(&["u1"]), ..Filter::default() }, ""),
        (Filter { labels_any: list(&["主题/风景"]), ..Filter::default() }, "bd"),
        (Filter { labels_any: list(&["risk/ad", "other"]), ..Filter::default() }, "b"),
        (Filter { labels_none: list(&["risk/ad"]), ..Filter::default() }, "acd"),
        (Filter { labels_any: list(&["主题/风景"]), labels_none: list(&["risk/ad"]), ..Filter::default() }, "d"),
        (Filter { since: Some(time(1)), ..Filter::default() }, "bc"),
        (Filter { until: Some(time(1)), ..Filter::default() }, "a"),
        (Filter { since: Some(time(1)), until: Some(time(2)), ..Filter::default() }, "b"),
        (Filter { since: Some(time(2)), ..Filter::default() }, "c"),
        (
            Filter {
                lang: text("zh"),
                author: text("u1"),
                not_author: list(&["u2"]),
                tags_any: list(&["天气"]),
                tags_all: list(&["旅行", "天气"]),
                labels_any: Vec::new(),
                labels_none: list(&["risk/ad"]),
                since: Some(time(0)),
                until: Some(time(1)),
            },
            "a",
        ),
        (Filter { lang: text("en"), author: text("u2"), ..Filter::default() }, ""),
    ];
    for (filter, expected) in cases {
        let expected = expected.chars().map(String::from).collect::<BTreeSet<_>>();
        assert_eq!(found_ids(&store, filter.clone()).await, expected, "{filter:?}");
    }
    assert_eq!(store.count().await.unwrap(), 5, "a hidden post is stored all the same");
    store.close().await.unwrap();
}

async fn hits_bring_what_was_asked_for(bench: Bench) {
    let store = bench.open().await;
    let mut only_text = post("text", 1);
    only_text.image = None;
    store.write(vec![upsert("both", 1), Write::Upsert(only_text)]).await.unwrap();
    for (payload, fields) in [
        (PayloadPart::Fields(&[]), &[][..]),
        (PayloadPart::Fields(&["caption", "absent"]), &["caption"]),
        (PayloadPart::Whole, &["caption", "post_id", "source", "version"]),
    ] {
        for image in [false, true] {
            let query = VectorQuery {
                vector: vector(1),
                using: VectorName::Caption,
                filter: Filter::default(),
                limit: 5,
                with: HitParts { payload, image },
            };
            let hits = store.search(query).await.unwrap();
            assert_eq!(hits.len(), 2);
            for hit in hits {
                let found = hit.payload.keys().map(String::as_str).collect::<BTreeSet<_>>();
                let wanted = fields.iter().copied().collect::<BTreeSet<_>>();
                assert!(
                    if payload == PayloadPart::Whole { found.is_superset(&wanted) } else { found == wanted },
                    "{found:?}"
                );
                let expected = (image && hit.id == point_id("both")).then(|| post("both", 1).image.unwrap());
                assert_eq!(hit.image.is_some(), expected.is_some());
                for (left, right) in hit.image.iter().flatten().zip(expected.iter().flatten()) {
                    assert!((left - right).abs() < 1e-6);
                }
            }
        }
    }
    store.close().await.unwrap();
}

async fn post_with_one_vector_is_found_by_that_vector_only(bench: Bench) {
    let store = bench.open().await;
    let picture = Point { caption: None, ..post("picture", 1) };
    let text = Point { image: None, ..post("text", 1) };
    store.write(vec![Write::Upsert(picture.clone()), Write::Upsert(text)]).await.unwrap();
    let by = |using| found(&store, vector(1), using, Filter::default());
    assert_eq!(by(VectorName::Image).await[0].0, "picture");
    assert_eq!(by(VectorName::Image).await.len(), 1);
    assert_eq!(by(VectorName::Caption).await[0].0, "text");
    assert_eq!(by(VectorName::Caption).await.len(), 1);
    let points = store.get(&[picture.id]).await.unwrap();
    assert!(points[0].caption.is_none());
    let (stored, written) = (points[0].image.clone().unwrap(), picture.image.unwrap());
    assert!(stored.iter().zip(&written).all(|(a, b)| (a - b).abs() < 1e-6), "{stored:?} is not {written:?}");
    assert_eq!(store.count().await.unwrap(), 2);
    store.close().await.unwrap();
}

async fn vector_that_a_newer_version_lacks_is_gone(bench: Bench) {
    let store = bench.open().await;
    store.write(vec![upsert("p", 1), upsert("q", 1)]).await.unwrap();
    store.write(vec![Write::Upsert(Point { image: None, ..post("p", 2) })]).await.unwrap();
    assert_eq!(found_ids(&store, Filter::default()).await, BTreeSet::from(["q".to_owned()]));
    assert!(store.get(&[point_id("p")]).await.unwrap()[0].image.is_none());
    assert_eq!(found(&store, vector(1), VectorName::Caption, Filter::default()).await.len(), 2);
    store.close().await.unwrap();
}

async fn older_write_never_wins(bench: Bench) {
    let store = bench.open().await;
    store.write(vec![upsert("p", 5)]).await.unwrap();
    store.write(vec![upsert("p", 4)]).await.unwrap();
    store.write(vec![delete("p", 3)]).await.unwrap();
    assert_eq!(stored(&store, "p").await, Some((5, false)));
    store.write(vec![upsert("p", 6), upsert("new", 1)]).await.unwrap();
    assert_eq!(stored(&store, "p").await, Some((6, false)));
    assert_eq!(stored(&store, "new").await, Some((1, false)));
    let nearest = found(&store, post("p", 6).image.unwrap(), VectorName::Image, Filter::default()).await;
    assert!(nearest[0].0 == "p" && nearest[0].1 > 0.9999, "{nearest:?}");
    let limit = (1 << 53) - 1;
    store.write(vec![upsert("p", limit)]).await.unwrap();
    store.write(vec![upsert("p", limit - 1)]).await.unwrap();
    assert_eq!(stored(&store, "p").await, Some((limit, false)));
    store.close().await.unwrap();
}

async fn same_write_again_changes_nothing(bench: Bench) {
    let store = bench.open().await;
    for _ in 0..3 {
        store.write(vec![upsert("p", 5), delete("q", 2)]).await.unwrap();
    }
    assert_eq!((stored(&store, "p").await, stored(&store, "q").await), (Some((5, false)), Some((2, true))));
    assert_eq!(store.count().await.unwrap(), 1);
    store.close().await.unwrap();
}

async fn highest_version_of_a_batch_wins(bench: Bench) {
    let store = bench.open().await;
    let batch = vec![upsert("p", 2), upsert("p", 9), delete("p", 4), upsert("q", 1), delete("q", 3), upsert("q", 2)];
    store.write(batch).await.unwrap();
    assert_eq!((stored(&store, "p").await, stored(&store, "q").await), (Some((9, false)), Some((3, true))));
    store.close().await.unwrap();
}

async fn deleted_post_is_hidden_and_stays_deleted(bench: Bench) {
    let store = bench.open().await;
    store.write(vec![upsert("p", 1), upsert("q", 1)]).await.unwrap();
    store.write(vec![delete("p", 3), delete("never seen", 3)]).await.unwrap();
    store.write(vec![upsert("p", 2), upsert("never seen", 2)]).await.unwrap();
    store.write(vec![upsert("p", 3)]).await.unwrap();
    assert_eq!(stored(&store, "p").await, Some((3, true)));
    assert_eq!(stored(&store, "never seen").await, Some((3, true)));
    assert_eq!(found_ids(&store, Filter::default()).await, BTreeSet::from(["q".to_owned()]));
    assert_eq!(store.count().await.unwrap(), 1);
    let marker = &store.get(&[point_id("p")]).await.unwrap()[0];
    assert!(marker.image.is_none() && marker.caption.is_none(), "{marker:?}");
    assert!(!marker.payload.contains_key("caption"), "the post's own fields go with it: {marker:?}");
    assert!(marker.payload.contains_key("deleted_at"), "{marker:?}");
    store.close().await.unwrap();
}

async fn newer_version_brings_a_deleted_post_back(bench: Bench) {
    let store = bench.open().await;
    store.write(vec![upsert("p", 1)]).await.unwrap();
    store.write(vec![delete("p", 2)]).await.unwrap();
    store.write(vec![upsert("p", 3)]).await.unwrap();
    assert_eq!(stored(&store, "p").await, Some((3, false)));
    assert_eq!(found_ids(&store, Filter::default()).await, BTreeSet::from(["p".to_owned()]));
    assert_eq!(store.count().await.unwrap(), 1);
    store.close().await.unwrap();
}

async fn payload_comes_back_as_it_was(bench: Bench) {
    let store = bench.open().await;
    let payload = json!({
        "post_id": "p", "author": "u42", "caption": "雨后的彩虹 🌈\n\"quoted\"", "lang": "zh", "tags": ["天气", ""],
        "created_at": "2026-11-20T08:30:00Z", "image": {"url": "https://example.org/a?b=c&d=%20"}, "model": "small",
        "extra": {"deep": [{"a": null}, [1, -2, 2.5, true]], "": {}, "large": 9_007_199_254_740_993i64},
        "indexed_at": "2026-11-20T08:31:00Z",
    });
    let point = Point { payload: object(payload.clone()), ..post("p", 7) };
    store.write(vec![Write::Upsert(point)]).await.unwrap();
    let mut expected = object(payload);
    expected.insert("version".to_owned(), json!(7));
    expected.insert("ordered_by".to_owned(), json!("version"));
    expected.insert("source".to_owned(), json!({"topic": "posts", "partition": 0, "offset": 7, "timestamp": 7}));
    let mut got = store.get(&[point_id("p")]).await.unwrap().remove(0).payload;
    assert!(got.remove("revision").is_some_and(|revision| revision.is_u64()));
    assert_eq!(got, expected);
    let query = VectorQuery {
        vector: vector(1),
        using: VectorName::Image,
        filter: Filter::default(),
        limit: 1,
        with: HitParts::default(),
    };
    let mut found = store.search(query).await.unwrap().remove(0).payload;
    found.remove("revision");
    assert_eq!(found, expected);
    store.close().await.unwrap();
}

async fn batch_beyond_every_request_size_is_written_whole(bench: Bench) {
    let store = bench.open().await;
    let writes = (0..1_500).map(|number| upsert(&format!("p{number}"), 1)).collect::<Vec<_>>();
    store.write(writes).await.unwrap();
    assert_eq!(store.count().await.unwrap(), 1_500);
    let ids = (0..1_500).map(|number| point_id(&format!("p{number}"))).collect::<Vec<_>>();
    assert_eq!(store.get(&ids).await.unwrap().len(), 1_500);
    store.write(Vec::new()).await.unwrap();
    store.close().await.unwrap();
}

async fn every_order_of_a_history_ends_in_the_same_state(bench: Bench) {
    let store = bench.open().await;
    let history = |name: &str| {
        let (a, b, c, d) = (format!("{name}a"), format!("{name}b"), format!("{name}c"), format!("{name}d"));
        vec![
            upsert(&a, 1),
            upsert(&a, 2),
            Write::Upsert(Point { image: None, ..post(&a, 3) }),
            upsert(&b, 1),
            delete(&b, 2),
            upsert(&b, 3),
            delete(&b, 4),
            delete(&c, 1),
            upsert(&c, 2),
            upsert(&d, 5),
            delete(&d, 5),
        ]
    };
    for round in 0..20 {
        let name = format!("round{round}/");
        let mut random = StdRng::seed_from_u64(round);
        let mut writes = history(&name);
        writes.shuffle(&mut random);
        let order = writes.iter().map(|write| (write.id(), write.order().version)).collect::<Vec<_>>();
        while !writes.is_empty() {
            let batch = writes.drain(..random.random_range(1..=writes.len().min(4))).collect();
            store.write(batch).await.unwrap();
        }
        let mut state = Vec::new();
        for post in ["a", "b", "c", "d"] {
            state.push(stored(&store, &format!("{name}{post}")).await);
        }
        let expected = [Some((3, false)), Some((4, true)), Some((2, false)), Some((5, true))];
        assert_eq!(state, expected, "order {order:?}");
        let a = store.get(&[point_id(&format!("{name}a"))]).await.unwrap().remove(0);
        assert!(a.image.is_none() && a.caption.is_some(), "order {order:?}: {a:?}");
    }
    assert_eq!(store.count().await.unwrap(), 40);
    store.close().await.unwrap();
}

async fn writers_at_a_time_lose_nothing(bench: Bench) {
    let store = bench.open().await;
    let tasks = (0..8u64).map(|task| {
        let store = store.clone();
        tokio::spawn(async move {
            for step in 0..20 {
                // Every task writes the same posts, with versions of its own.
                let writes = (0..10).map(|number| upsert(&format!("p{number}"), 1 + step * 8 + task));
                store.write(writes.collect()).await.unwrap();
                let query = VectorQuery {
                    vector: vector(task),
                    using: VectorName::Caption,
                    filter: Filter::default(),
                    limit: 50,
                    with: HitParts::default(),
                };
                let hits = store.search(query).await.unwrap();
                let distinct = hits.iter().map(|hit| hit.id).collect::<BTreeSet<_>>();
                assert_eq!(distinct.len(), hits.len(), "a post is found once");
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    for number in 0..10 {
        assert_eq!(stored(&store, &format!("p{number}")).await, Some((160, false)));
    }
    assert_eq!(store.count().await.unwrap(), 10);
    store.close().await.unwrap();
}

async fn reopening_keeps_everything(bench: Bench) {
    let mut expected = BTreeMap::<String, (u64, bool)>::new();
    for round in 0..3u64 {
        let store = bench.open().await;
        for (id, state) in &expected {
            assert_eq!(stored(&store, id).await, Some(*state), "{id} in round {round}");
        }
        let (kept, gone) = (format!("kept{round}"), format!("gone{round}"));
        store.write(vec![upsert(&kept, 1), upsert(&gone, 1), upsert("changed", round + 1)]).await.unwrap();
        store.write(vec![delete(&gone, 2)]).await.unwrap();
        expected.insert(kept, (1, false));
        expected.insert(gone, (2, true));
        expected.insert("changed".to_owned(), (round + 1, false));
        store.close().await.unwrap();
    }
    let store = bench.open().await;
    assert_eq!(store.count().await.unwrap(), 4);
    store.close().await.unwrap();
}

async fn faulty_write_is_rejected_and_named(bench: Bench) {
    let store = bench.open().await;
    let faulty = Point { image: Some(vec![1.0; DIMENSION + 1]), ..post("bad", 1) };
    let error = store.write(vec![upsert("good", 1), Write::Upsert(faulty)]).await.unwrap_err();
    assert!(matches!(error, Fault::Reject { reason: Reason::StoreRejected, .. }), "{error:?}");
    assert!(error.to_string().contains(&point_id("bad").to_string()), "{error}");
    store.write(vec![upsert("good", 1)]).await.unwrap();
    assert_eq!(store.count().await.unwrap(), 1);
    store.close().await.unwrap();
}

async fn other_models_collection_is_refused(mut bench: Bench) {
    bench.open().await.close().await.unwrap();
    let own = std::mem::replace(&mut bench.stamp, stamp("large"));
    let detail = bench.open_error().await;
    let way_out = match bench.config.kind {
        StoreKind::Edge => "index the posts again",
        StoreKind::Qdrant => "feedlens collection reindex",
    };
    for part in ["small", "large", "model.dir", way_out] {
        assert!(detail.contains(part), "{detail}");
    }
    bench.stamp = ModelStamp { dimension: DIMENSION * 2, ..own.clone() };
    let detail = bench.open_error().await;
    assert!(detail.contains(way_out), "{detail}");
    bench.stamp = own;
    bench.open().await.close().await.unwrap();
}

async fn missing_points_are_left_out(bench: Bench) {
    let store = bench.open().await;
    assert_eq!(store.count().await.unwrap(), 0);
    assert!(found_ids(&store, Filter::default()).await.is_empty());
    store.write(vec![upsert("p", 1)]).await.unwrap();
    let points = store.get(&[point_id("p"), point_id("absent")]).await.unwrap();
    assert_eq!(points.len(), 1);
    assert!(store.get(&[]).await.unwrap().is_empty());
    store.ready().await.unwrap();
    store.close().await.unwrap();
}
