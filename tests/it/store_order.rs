//! Which write of a post stands, whatever the order of arrival, and when delete markers go; on both stores.

use feedlens::post::point_id;
use feedlens::store::{Order, Outcome, Point, Tombstone, Write};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::json;

use crate::store_support::{Bench, delete, object, on_each_store, order, post, source, stored, time, upsert};

on_each_store!(
    every_order_of_mixed_writes_ends_as_the_rules_say,
    writers_of_one_post_at_a_time_end_with_the_newest,
    writes_tell_whether_they_were_older,
    old_markers_are_purged_and_only_they,
);

/// Deletions without a version among versioned posts, posts without any, and posts that come without their picture and
/// with it, in every order of arrival.
async fn every_order_of_mixed_writes_ends_as_the_rules_say(bench: Bench) {
    let store = bench.open().await;
    let at = |id: &str, version: Option<u64>, offset: i64| {
        Write::Upsert(Point { order: Order { version, source: source(0, offset) }, ..post(id, offset as u64) })
    };
    let gone = |id: &str, offset: i64| {
        Write::Delete(Tombstone {
            id: point_id(id),
            order: Order { version: None, source: source(0, offset) },
            post_id: id.to_owned(),
            deleted_at: time(0),
        })
    };
    let pending = |version, offset| match at("p", version, offset) {
        Write::Upsert(whole) => Write::Upsert(Point { image: None, image_pending: true, ..whole }),
        Write::Delete(_) => unreachable!(),
    };
    let large = 1 << 50;
    // The offset of the write that is to be found, in the end.
    let histories: Vec<(Vec<Write>, Option<i64>)> = vec![
        (vec![at("p", Some(large), 1), gone("p", 2)], None),
        (vec![at("p", Some(large), 1), gone("p", 2), at("p", Some(5), 3)], None),
        (vec![at("p", Some(large), 1), gone("p", 2), at("p", Some(large + 1), 3)], Some(3)),
        (vec![gone("p", 1_000_000), at("p", Some(1), 1_000_001)], Some(1_000_001)),
        (vec![at("p", Some(2), 1), at("p", Some(1), 2), gone("p", 3), at("p", Some(3), 4), gone("p", 5)], None),
        (vec![at("p", None, 1), at("p", None, 2), gone("p", 3), at("p", None, 4)], Some(4)),
        (vec![pending(Some(1), 1), at("p", Some(1), 1)], Some(1)),
        (vec![gone("p", 1), pending(None, 2), at("p", None, 2)], Some(2)),
        (vec![at("p", Some(1), 1), pending(Some(2), 2)], Some(2)),
        (vec![pending(Some(1), 1), at("p", Some(1), 1), pending(Some(2), 2), at("p", Some(3), 3)], Some(3)),
        (vec![pending(Some(1), 1), at("p", Some(1), 1), gone("p", 2)], None),
    ];
    let mut number = 0;
    for (history, expected) in histories {
        for seed in 0..10 {
            number += 1;
            let id = format!("p{number}");
            let renamed = |write: &Write| match write.clone() {
                Write::Upsert(point) => Write::Upsert(Point {
                    id: point_id(&id),
                    payload: object(json!({"post_id": id, "caption": point.payload["caption"]})),
                    ..point
                }),
                Write::Delete(deletion) => {
                    Write::Delete(Tombstone { id: point_id(&id), post_id: id.clone(), ..deletion })
                }
            };
            let mut writes = history.iter().map(renamed).collect::<Vec<_>>();
            let mut random = StdRng::seed_from_u64(seed);
            writes.shuffle(&mut random);
            let order = writes.iter().map(|write| write.order().clone()).collect::<Vec<_>>();
            while !writes.is_empty() {
                let batch = writes.drain(..random.random_range(1..=writes.len())).collect();
                store.write(batch).await.unwrap();
            }
            let point = store.get(&[point_id(&id)]).await.unwrap().remove(0);
            let is_live = !point.payload.contains_key("deleted");
            let found = is_live.then(|| point.payload["source"]["offset"].as_i64().unwrap());
            assert_eq!(found, expected, "{order:?}: {point:?}");
            if let Some(offset) = expected {
                let whole = post("p", offset as u64);
                assert_eq!(point.payload["caption"], whole.payload["caption"], "{order:?}");
                let with_picture = history.iter().any(|write| match write {
                    Write::Upsert(point) => point.order.source.offset == offset && point.image.is_some(),
                    Write::Delete(_) => false,
                });
                assert_eq!(point.payload.get("image_pending").is_none(), with_picture, "{order:?}: {point:?}");
                let written = whole.image.filter(|_| with_picture);
                assert_eq!(point.image.is_some(), with_picture, "{order:?}: {point:?}");
                let mut values = point.image.iter().flatten().zip(written.iter().flatten());
                assert!(values.all(|(a, b)| (a - b).abs() < 1e-6), "{order:?}");
            } else {
                assert!(point.image.is_none() && point.caption.is_none(), "{order:?}");
            }
        }
    }
    store.close().await.unwrap();
}

/// Two workers that hold one partition for a moment: equal versions with and without a vector, edits and deletions.
async fn writers_of_one_post_at_a_time_end_with_the_newest(bench: Bench) {
    let store = bench.open().await;
    for round in 0..10 {
        let id = format!("p{round}");
        let writes = (1..=12_u64).map(|offset| {
            let order = Order { version: Some(offset / 2), source: source(0, offset as i64) };
            let image = if offset % 2 == 0 { None } else { post(&id, offset).image };
            Write::Upsert(Point { order, image, ..post(&id, offset) })
        });
        let tasks = writes.map(|write| {
            let store = store.clone();
            tokio::spawn(async move { store.write(vec![write]).await })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap().unwrap();
        }
        let point = store.get(&[point_id(&id)]).await.unwrap().remove(0);
        assert_eq!(point.payload["caption"], format!("{id} at 12"));
        assert!(point.image.is_none() && point.caption.is_some(), "payload and vectors are of one write: {point:?}");
    }
    store.close().await.unwrap();
}

async fn writes_tell_whether_they_were_older(bench: Bench) {
    let store = bench.open().await;
    let batch = vec![upsert("p", 5), upsert("q", 2), upsert("p", 4), delete("q", 3)];
    let outcomes = store.write(batch.clone()).await.unwrap();
    assert_eq!(outcomes, [Outcome::Applied, Outcome::Applied, Outcome::Older, Outcome::Applied]);
    // Coming again, as after a crash: what stands is there.
    let again = store.write(batch).await.unwrap();
    assert_eq!(again, [Outcome::Applied, Outcome::Older, Outcome::Older, Outcome::Applied]);
    let pending = Write::Upsert(Point { image: None, image_pending: true, ..post("r", 1) });
    for (write, expected) in [
        (pending.clone(), Outcome::Applied),
        (pending.clone(), Outcome::Applied),
        (upsert("r", 1), Outcome::Applied),
        (pending, Outcome::Older),
    ] {
        assert_eq!(store.write(vec![write]).await.unwrap(), [expected]);
    }
    store.close().await.unwrap();
}

async fn old_markers_are_purged_and_only_they(bench: Bench) {
    let store = bench.open().await;
    let gone = |id: &str, days: i64| {
        Write::Delete(Tombstone { id: point_id(id), order: order(2), post_id: id.to_owned(), deleted_at: time(days) })
    };
    let mut post_of_old = post("p", 1);
    post_of_old.payload.insert("created_at".to_owned(), json!("2020-01-01T00:00:00Z"));
    let writes =
        vec![gone("old", 0), gone("older", -100), gone("young", 2), gone("back", 0), Write::Upsert(post_of_old)];
    store.write(writes).await.unwrap();
    store.write(vec![upsert("back", 3)]).await.unwrap();
    assert_eq!(store.purge(time(1)).await.unwrap(), 2);
    assert_eq!(store.purge(time(1)).await.unwrap(), 0);
    for (id, is_there) in [("old", false), ("older", false), ("young", true), ("back", true), ("p", true)] {
        assert_eq!(stored(&store, id).await.is_some(), is_there, "{id}");
    }
    assert_eq!(store.count().await.unwrap(), 2);
    let many = (0..2_500).map(|number| gone(&format!("many{number}"), 0)).collect();
    store.write(many).await.unwrap();
    assert_eq!(store.purge(time(1)).await.unwrap(), 2_500);
    assert_eq!(store.count().await.unwrap(), 2);
    store.close().await.unwrap();
}
