use super::*;

/// Deterministic: a text's features are its first id and 1; an id of 13 cannot be encoded, one of 0 gives zeros.
struct TestEncoder;

impl Encode for TestEncoder {
    fn images(&mut self, batch: &[PreparedImage]) -> Encoded {
        Ok(batch.iter().map(|image| vec![f32::from(image.rgb[0]), 1.0]).collect())
    }

    fn texts(&mut self, batch: &[PreparedText]) -> Encoded {
        if batch.iter().any(|text| text.ids[0] == 13) {
            return Err(Fault::reject(Reason::EncodeFailed, "thirteen"));
        }
        Ok(batch.iter().map(|text| vec![text.ids[0] as f32, f32::from(text.ids[0] != 0)]).collect())
    }
}

fn start(max_batch: usize) -> (EncoderHandle, Arc<Metrics>) {
    let mut config = crate::config::Config::load(&[], &Default::default()).expect("defaults load").encoder;
    config.max_batch_texts = max_batch;
    let metrics = Arc::new(Metrics::new());
    let known_good = KnownGood { image: PreparedImage { rgb: vec![1] }, text: text(1) };
    let handle = EncoderHandle::start(vec![Box::new(TestEncoder)], &config, known_good, "test", metrics.clone());
    (handle.expect("starts"), metrics)
}

fn text(id: i64) -> PreparedText {
    PreparedText { ids: vec![id] }
}

#[tokio::test]
async fn an_item_that_fails_does_not_take_its_batch_along() {
    let (handle, metrics) = start(32);
    let ids = (1..=32).collect::<Vec<_>>();
    let answers = futures::future::join_all(ids.iter().map(|id| handle.text(text(*id), Priority::Feed))).await;
    for (id, answer) in ids.iter().zip(answers) {
        if *id == 13 {
            assert!(matches!(answer, Err(Fault::Reject { reason: Reason::EncodeFailed, .. })));
        } else {
            let expected = normalise(vec![*id as f32, 1.0]).expect("finite");
            assert_eq!(answer.expect("encoded"), expected);
        }
    }
    assert_eq!(metrics.batch_size.with_label_values(&["text"]).get_sample_count(), 1, "one batch of 32");
}

#[tokio::test]
async fn zero_vector_is_rejected_not_stored() {
    let (handle, _) = start(1);
    let answer = handle.text(text(0), Priority::Feed).await;
    assert!(matches!(answer, Err(Fault::Reject { reason: Reason::EncodeFailed, .. })));
}

#[tokio::test]
async fn features_are_not_normalised() {
    let (handle, _) = start(1);
    assert_eq!(handle.text_features(text(7), Priority::Feed).await.expect("encoded"), [7.0, 1.0]);
    let image = PreparedImage { rgb: vec![9] };
    assert_eq!(handle.image_features(image, Priority::Feed).await.expect("encoded"), [9.0, 1.0]);
}

#[tokio::test]
async fn a_panic_is_the_items_fault_and_the_worker_lives_on() {
    let (handle, _) = start(1);
    let answer = handle.image(PreparedImage { rgb: vec![] }, Priority::Query).await;
    assert!(matches!(answer, Err(Fault::Reject { reason: Reason::EncodeFailed, .. })), "{answer:?}");
    handle.text(text(1), Priority::Feed).await.expect("the next item is encoded");
}

#[tokio::test]
async fn callers_learn_that_a_worker_died() {
    let (handle, _) = start(1);
    let shared = handle.shared.0.clone();
    // What a worker's thread drops when it dies.
    drop(WorkerGuard(shared));
    let later = handle.text(text(1), Priority::Feed).await;
    assert!(matches!(later, Err(Fault::Retry { outage: Outage::Encoder, .. })), "the queue is closed");
    let reason = handle.alive().expect_err("a new process helps").to_string();
    assert!(reason.contains("thread of the encoder died"), "{reason}");
}

#[tokio::test]
async fn a_run_that_does_not_end_wants_a_new_process() {
    let (handle, _) = start(1);
    handle.text(text(1), Priority::Feed).await.expect("encoded");
    // The answer is sent before the run is over.
    while handle.alive_within(Duration::ZERO).is_err() {
        tokio::task::yield_now().await;
    }
    *handle.shared.0.running(0) = Some(Instant::now() - HUNG_AFTER - Duration::from_secs(1));
    let reason = handle.alive().expect_err("hangs").to_string();
    assert!(reason.contains("in the encoder for 301 s"), "{reason}");
}

/// Tells of each batch before it encodes it, and waits to be let on.
struct Watched {
    batches: std::sync::mpsc::Sender<Vec<i64>>,
    go_on: std::sync::mpsc::Receiver<()>,
}

impl Encode for Watched {
    fn images(&mut self, _: &[PreparedImage]) -> Encoded {
        unreachable!("no pictures are sent")
    }

    fn texts(&mut self, batch: &[PreparedText]) -> Encoded {
        self.batches.send(batch.iter().map(|text| text.ids[0]).collect()).expect("the test listens");
        self.go_on.recv().expect("the test goes on");
        TestEncoder.texts(batch)
    }
}

#[tokio::test]
async fn searches_overtake_the_feed_and_go_together() {
    let mut config = crate::config::Config::load(&[], &Default::default()).expect("defaults load").encoder;
    config.max_batch_texts = 4;
    let ((batches, seen), (let_on, go_on)) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
    let known_good = KnownGood { image: PreparedImage { rgb: vec![1] }, text: text(1) };
    let encoder: Box<dyn Encode> = Box::new(Watched { batches, go_on });
    let handle = EncoderHandle::start(vec![encoder], &config, known_good, "test", Arc::new(Metrics::new()));
    let handle = handle.expect("starts");
    let feed = (101..=108).map(|id| handle.text(text(id), Priority::Feed));
    let searches = (1..=3).map(|id| handle.text(text(id), Priority::Query));
    let (mut feed, mut searches) = (futures::future::join_all(feed), futures::future::join_all(searches));
    // Polled once, all of the feed stands in the queue; its first batch is in the encoder.
    assert!(futures::poll!(&mut feed).is_pending());
    assert_eq!(seen.recv().expect("a batch"), [101, 102, 103, 104]);
    assert!(futures::poll!(&mut searches).is_pending());
    let mut together = Box::pin(handle.texts_features(vec![text(11), text(12)]));
    assert!(futures::poll!(&mut together).is_pending());
    for _ in 0..4 {
        let_on.send(()).expect("the encoder waits");
    }
    let (_, _, together) = futures::join!(feed, searches, together);
    assert_eq!(together.len(), 2);
    let rest = seen.try_iter().collect::<Vec<_>>();
    assert_eq!(rest, [vec![1, 2, 3, 11], vec![12], vec![105, 106, 107, 108]]);
}
