//! The encoder on real ONNX graphs of every shape that exports have (`tools/make_graph_fixtures.py`), and on broken ones.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use feedlens::config::{Config, Overrides};
use feedlens::encode::bundle::Bundle;
use feedlens::encode::onnx::{Loading, OnnxEncoder, OnnxModel};
use feedlens::encode::worker::{EncoderHandle, Priority};
use feedlens::encode::{Encode, EncoderConfig, KnownGood, PreparedImage, PreparedText, norm, normalise};
use feedlens::error::{Fault, Reason};
use feedlens::metrics::Metrics;
use tempfile::TempDir;

const GRAPHS: &str = "tests/fixtures/graphs";
/// Ids at which `text.onnx` gives no number, and fails.
const NOT_A_NUMBER: i64 = 99;
const OUT_OF_RANGE: i64 = 100;

fn settings() -> EncoderConfig {
    let config = Config::load(&[], &Overrides::default()).unwrap().encoder;
    EncoderConfig { workers: 1, threads: 1, ..config }
}

struct Towers {
    image: &'static str,
    image_names: [&'static str; 2],
    text: &'static str,
    text_names: [&'static str; 2],
}

const PLAIN: Towers = Towers {
    image: "image.onnx",
    image_names: ["image", "image_features"],
    text: "text.onnx",
    text_names: ["text", "text_features"],
};

fn bundle(towers: &Towers) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in [towers.image, towers.text, "text_external.data"] {
        fs::copy(Path::new(GRAPHS).join(name), folder.path().join(name)).unwrap();
    }
    fs::copy("models/small/vocab.txt", folder.path().join("vocab.txt")).unwrap();
    fs::write(folder.path().join("golden.json"), "{}").unwrap();
    let tower = |section: &str, file: &str, [input, output]: [&str; 2]| {
        format!("[{section}]\nfile = {file:?}\ninput = {input:?}\noutput = {output:?}\n")
    };
    let text = format!(
        "id = \"graphs\"\nfamily = \"chinese-clip\"\ndimension = 4\nresolution = 8\nmean = [0.5, 0.5, 0.5]\n\
         std = [0.5, 0.5, 0.5]\ncontext_length = 16\nlogit_scale = 100.0\nresize = \"bicubic\"\nprecision = \"fp32\"\n{}{}",
        tower("image", towers.image, towers.image_names),
        tower("text", towers.text, towers.text_names)
    );
    fs::write(folder.path().join("model.toml"), text).unwrap();
    folder
}

fn load(folder: &TempDir, loading: Loading) -> anyhow::Result<OnnxEncoder> {
    OnnxModel::load(Bundle::load(folder.path())?, &settings(), loading)?.worker(loading)
}

fn refusal(folder: &TempDir) -> String {
    let error = load(folder, Loading::AtStart).err().expect("it must not load");
    let text = format!("{error:#}");
    assert!(!text.contains('\n'), "one sentence: {text}");
    text
}

#[track_caller]
fn assert_names(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

fn pictures() -> Vec<PreparedImage> {
    (0..5_u8).map(|picture| PreparedImage { rgb: (0..192).map(|value| value / (picture + 1)).collect() }).collect()
}

fn texts() -> Vec<PreparedText> {
    let text = |ids: &[i64]| PreparedText { ids: ids.to_vec() };
    vec![text(&[7, 8]), text(&(1..17).collect::<Vec<_>>()), text(&[50, 60, 70]), text(&[98]), text(&[3, 3, 4, 5])]
}

#[track_caller]
fn assert_near(left: &[Vec<f32>], right: &[Vec<f32>], tolerance: f32) {
    assert_eq!(left.len(), right.len());
    for (left, right) in left.iter().zip(right) {
        assert_eq!(left.len(), right.len());
        let near = left.iter().zip(right).all(|(left, right)| (left - right).abs() <= tolerance);
        assert!(near, "{left:?} is not near to {right:?}");
    }
}

/// What the plain graphs compute, by their definition.
#[test]
fn rows_keep_their_order_and_padding_counts_for_nothing() {
    let mut encoder = load(&bundle(&PLAIN), Loading::AtStart).unwrap();
    let ids = |ids: &[i64]| PreparedText { ids: ids.to_vec() };
    let rows = encoder.texts(&[ids(&[10]), ids(&[10, 20, 30]), ids(&[20]), ids(&[30])]).unwrap();
    let mean = (0..4).map(|index| (rows[0][index] + rows[2][index] + rows[3][index]) / 3.0).collect::<Vec<_>>();
    assert_near(&rows[1..2], &[mean], 1e-6);
    assert_ne!(rows[0], rows[2]);

    let pictures = pictures();
    let together = encoder.images(&pictures).unwrap();
    let alone = pictures.iter().flat_map(|picture| encoder.images(std::slice::from_ref(picture)).unwrap());
    assert_near(&together, &alone.collect::<Vec<_>>(), 1e-6);
    assert_ne!(together[0], together[1]);
}

#[test]
fn exports_of_every_shape_give_the_same_vectors() {
    let mut plain = load(&bundle(&PLAIN), Loading::AtStart).unwrap();
    let (images, texts) = (pictures(), texts());
    let (image_features, text_features) = (plain.images(&images).unwrap(), plain.texts(&texts).unwrap());
    for (image, tolerance) in [("image_float16.onnx", 4e-3), ("image_batch_1.onnx", 1e-6)] {
        let mut encoder = load(&bundle(&Towers { image, ..PLAIN }), Loading::AtStart).unwrap();
        assert_near(&encoder.images(&images).unwrap(), &image_features, tolerance);
    }
    for text in ["text_int32_padded.onnx", "text_batch_1.onnx", "text_masked.onnx", "text_external.onnx"] {
        let mut encoder = load(&bundle(&Towers { text, ..PLAIN }), Loading::AtStart).unwrap();
        assert_near(&encoder.texts(&texts).unwrap(), &text_features, 1e-6);
    }
    let both = Towers {
        image: "both.onnx",
        image_names: ["pixel_values", "image_features"],
        text: "both.onnx",
        text_names: ["input_ids", "text_features"],
    };
    let mut encoder = load(&bundle(&both), Loading::AtStart).unwrap();
    assert_near(&encoder.images(&images).unwrap(), &image_features, 1e-6);
    assert_near(&encoder.texts(&texts).unwrap(), &text_features, 1e-6);
}

#[test]
fn graph_that_does_not_fit_is_a_sentence_that_names_file_and_tensor() {
    let text = refusal(&bundle(&Towers { image: "image_16_pixels.onnx", ..PLAIN }));
    assert_names(&text, &["image_16_pixels.onnx", "\"image\"", "16 x 16", "resolution = 8"]);
    let text = refusal(&bundle(&Towers { image: "image_8_values.onnx", ..PLAIN }));
    assert_names(&text, &["image_8_values.onnx", "\"image_features\"", "8 values", "dimension = 4"]);
    let text = refusal(&bundle(&Towers { image_names: ["pixels", "image_features"], ..PLAIN }));
    assert_names(&text, &["image.onnx", "\"pixels\"", "\"image\""]);
    let text = refusal(&bundle(&Towers { text_names: ["text", "features"], ..PLAIN }));
    assert_names(&text, &["text.onnx", "\"features\"", "\"text_features\""]);
    let swapped = Towers { image: "text.onnx", text: "image.onnx", ..PLAIN };
    assert_names(&refusal(&bundle(&swapped)), &["text.onnx", "swapped"]);
}

#[test]
fn broken_file_is_a_sentence_that_names_it() {
    for (name, keep) in [("text.onnx", 1000), ("image.onnx", 0), ("image.onnx", 100)] {
        let folder = bundle(&PLAIN);
        let bytes = fs::read(folder.path().join(name)).unwrap();
        fs::write(folder.path().join(name), &bytes[..keep]).unwrap();
        assert_names(&refusal(&folder), &[name, &format!("{keep} bytes"), "cut off"]);
    }
    let external = Towers { text: "text_external.onnx", ..PLAIN };
    let folder = bundle(&external);
    fs::write(folder.path().join("text_external.data"), [0; 100]).unwrap();
    assert_names(&refusal(&folder), &["text_external.onnx", "missing or cut off"]);
    fs::remove_file(folder.path().join("text_external.data")).unwrap();
    assert_names(&refusal(&folder), &["text_external.onnx", "text_external.data"]);
}

#[test]
fn tower_that_is_not_used_is_not_loaded() {
    let folder = bundle(&Towers { image: "image_16_pixels.onnx", ..PLAIN });
    let mut encoder = load(&folder, Loading::OnFirstUse).unwrap();
    encoder.texts(&texts()).unwrap();
    let fault = encoder.images(&pictures()).unwrap_err();
    assert!(matches!(&fault, Fault::Fatal(text) if text.contains("image_16_pixels.onnx")), "{fault}");
}

#[tokio::test]
async fn item_that_a_real_graph_refuses_does_not_take_its_batch_along() {
    let encoder = load(&bundle(&PLAIN), Loading::AtStart).unwrap();
    let text = |id: i64| PreparedText { ids: vec![id, id] };
    let known_good = KnownGood { image: pictures().remove(0), text: text(1) };
    let metrics = Arc::new(Metrics::new());
    let config = EncoderConfig { max_batch_texts: 32, ..settings() };
    let handle = EncoderHandle::start(vec![Box::new(encoder)], &config, known_good, "cpu", metrics.clone()).unwrap();
    let ids = (73..=104).collect::<Vec<i64>>();
    let answers = futures::future::join_all(ids.iter().map(|id| handle.text(text(*id), Priority::Feed))).await;
    for (id, answer) in ids.iter().zip(answers) {
        if *id >= OUT_OF_RANGE || *id == NOT_A_NUMBER {
            assert!(matches!(answer, Err(Fault::Reject { reason: Reason::EncodeFailed, .. })), "{id}: {answer:?}");
        } else {
            let vector = answer.unwrap_or_else(|fault| panic!("{id}: {fault}"));
            assert!((norm(&vector).unwrap() - 1.0).abs() < 1e-6);
        }
    }
    assert_eq!(metrics.batch_size.with_label_values(&["text"]).get_sample_count(), 1, "one batch of 32");
}

#[test]
fn trimmed_text_equals_padded_text_and_batch_1_equals_batch_32() {
    let bundle = Bundle::load(Path::new("models/small")).unwrap();
    let context = bundle.context_length;
    let model = OnnxModel::load(bundle, &settings(), Loading::OnFirstUse).unwrap();
    let mut encoder = model.worker(Loading::OnFirstUse).unwrap();
    let texts = (0..32).map(|text| {
        let length = 3 + (text * 7) % (context - 3);
        let words = (0..length - 2).map(|word| 200 + (text * 131 + word * 17) as i64 % 20_000);
        PreparedText { ids: std::iter::once(101).chain(words).chain([102]).collect() }
    });
    let texts = texts.collect::<Vec<_>>();
    let mut encode = |texts: &[PreparedText]| {
        let rows = encoder.texts(texts).unwrap();
        rows.into_iter().map(|row| normalise(row).unwrap()).collect::<Vec<_>>()
    };
    let trimmed = encode(&texts);
    let padded = texts.iter().map(|text| {
        let mut ids = text.ids.clone();
        ids.resize(context, 0);
        PreparedText { ids }
    });
    let padded = encode(&padded.collect::<Vec<_>>());
    assert_near(&trimmed, &padded, 1e-6);
    let alone = texts.iter().flat_map(|text| encode(std::slice::from_ref(text))).collect::<Vec<_>>();
    assert_near(&trimmed, &alone, 1e-6);
}
