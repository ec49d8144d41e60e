//! Vectors equal to those of cn_clip in PyTorch: Chinese-CLIP's modules with small widths, exported by
//! `tools/export_chinese_clip.py`'s own code (`tools/make_parity_fixtures.py`). `tools/check_parity.py` does the same with
//! the true architectures.

use std::fs;
use std::path::PathBuf;

use feedlens::config::Config;
use feedlens::encode::bundle::Bundle;
use feedlens::encode::onnx::{Loading, OnnxEncoder, OnnxModel};
use feedlens::encode::preprocess::Preprocessor;
use feedlens::encode::{Encode as _, PreparedImage, PreparedText, normalise};
use feedlens::image::decode::{DecodeOptions, decode};

use crate::binary::root;

const LARGEST_DIFFERENCE: f32 = 1e-4;
const LEAST_COSINE: f32 = 0.99999;

struct Parity {
    bundle: Bundle,
    encoder: OnnxEncoder,
    texts: Vec<(String, PreparedText, Vec<f32>)>,
    images: Vec<(String, PreparedImage, Vec<f32>)>,
}

fn load(kind: &str) -> Parity {
    let dir: PathBuf = root().join("tests/fixtures/parity").join(kind);
    let bundle = Bundle::load(&dir).unwrap();
    let mut config = Config::load(&[], &Default::default()).unwrap().encoder;
    config.max_batch_images = 32;
    config.max_batch_texts = 64;
    let model = OnnxModel::load(bundle.clone(), &config, Loading::AtStart).unwrap();
    let encoder = model.worker(Loading::AtStart).unwrap();
    let (tokenizer, preprocessor) = (bundle.load_tokenizer().unwrap(), Preprocessor::new(&bundle));
    let golden = bundle.golden().unwrap();
    let texts = golden.texts.into_iter().map(|item| {
        let ids = tokenizer.encode(&item.text).unwrap();
        (item.text, ids, item.vector)
    });
    let images = golden.images.into_iter().map(|item| {
        let picture = decode(&fs::read(bundle.path(&item.file)).unwrap(), &DecodeOptions::default()).unwrap();
        (item.file, preprocessor.prepare(&picture), item.vector)
    });
    Parity { texts: texts.collect(), images: images.collect(), encoder, bundle }
}

impl Parity {
    fn texts(&mut self, batch: &[PreparedText]) -> Vec<Vec<f32>> {
        self.encoder.texts(batch).unwrap().into_iter().map(|row| normalise(row).unwrap()).collect()
    }

    fn images(&mut self, batch: &[PreparedImage]) -> Vec<Vec<f32>> {
        self.encoder.images(batch).unwrap().into_iter().map(|row| normalise(row).unwrap()).collect()
    }
}

fn difference(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    left.iter().zip(right).map(|(left, right)| (left - right).abs()).fold(0.0, f32::max)
}

#[track_caller]
fn assert_equal(what: &str, vector: &[f32], expected: &[f32]) {
    let cosine: f32 = vector.iter().zip(expected).map(|(left, right)| left * right).sum();
    let difference = difference(vector, expected);
    assert!(difference <= LARGEST_DIFFERENCE, "{what}: largest difference {difference}");
    assert!(cosine >= LEAST_COSINE, "{what}: cosine {cosine}");
}

/// Ten times and more what is allowed lies between different items: a wrong vector is seen.
fn assert_told_apart<'a>(vectors: impl Iterator<Item = &'a Vec<f32>>) {
    let mut vectors = vectors.collect::<Vec<_>>();
    vectors.sort_by(|left, right| left.partial_cmp(right).unwrap());
    vectors.dedup();
    assert!(vectors.len() > 5);
    for (index, left) in vectors.iter().enumerate() {
        for right in &vectors[index + 1..] {
            assert!(difference(left, right) > 10.0 * LARGEST_DIFFERENCE);
        }
    }
}

/// From the files and the raw texts to the vector.
#[test]
fn vectors_equal_pytorchs() {
    for kind in ["resnet", "vit"] {
        let mut parity = load(kind);
        assert_told_apart(parity.texts.iter().map(|(_, _, vector)| vector));
        assert_told_apart(parity.images.iter().map(|(_, _, vector)| vector));
        let ids = parity.texts.iter().map(|(_, ids, _)| ids.clone()).collect::<Vec<_>>();
        for (vector, (text, _, expected)) in parity.texts(&ids).iter().zip(&parity.texts) {
            assert_equal(&format!("{kind}: {text:?}"), vector, expected);
        }
        let images = parity.images.iter().map(|(_, image, _)| image.clone()).collect::<Vec<_>>();
        for (vector, (file, _, expected)) in parity.images(&images).iter().zip(&parity.images) {
            assert_equal(&format!("{kind}: {file}"), vector, expected);
        }
    }
}

#[test]
fn batch_of_1_equals_batch_of_32() {
    for kind in ["resnet", "vit"] {
        let mut parity = load(kind);
        let ids = parity.texts.iter().map(|(_, ids, _)| ids.clone()).cycle().take(32).collect::<Vec<_>>();
        let together = parity.texts(&ids);
        for (index, ids) in ids.into_iter().enumerate() {
            let alone = parity.texts(&[ids]);
            assert!(difference(&alone[0], &together[index]) < 1e-5, "{kind}: {:?}", parity.texts[index].0);
        }
        let images = parity.images.iter().map(|(_, image, _)| image.clone()).cycle().take(32).collect::<Vec<_>>();
        let together = parity.images(&images);
        for (index, image) in images.into_iter().enumerate() {
            let alone = parity.images(&[image]);
            assert!(difference(&alone[0], &together[index]) < 1e-5, "{kind}: picture {index}");
        }
    }
}

/// The graph masks zeros, so a text is worth the same at every length up to the longest.
#[test]
fn trimmed_text_equals_padded_text() {
    for kind in ["resnet", "vit"] {
        let mut parity = load(kind);
        let context_length = parity.bundle.context_length;
        let trimmed = parity.texts.iter().map(|(_, ids, _)| ids.clone()).collect::<Vec<_>>();
        for ids in trimmed {
            let mut padded = ids.clone();
            padded.ids.resize(context_length, 0);
            let (short, long) = (parity.texts(&[ids]), parity.texts(&[padded]));
            assert!(difference(&short[0], &long[0]) < 1e-5, "{kind}");
        }
    }
}
