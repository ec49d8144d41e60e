//! Bundles of every layout give the same vectors; what does not fit is one sentence from the real binary.
//! `tools/make_bundle_fixtures.py` writes the graphs, and the vectors by numpy alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use feedlens::config::Config;
use feedlens::encode::bundle::{Bundle, Layout, ModelConfig, Resize};
use feedlens::encode::encoder::Encoder;
use feedlens::encode::worker::Priority;
use feedlens::image::decode::{DecodeOptions, decode};
use feedlens::image::resize::ConvertRgb;
use feedlens::metrics::Metrics;
use serde::Deserialize;
use tempfile::TempDir;

use crate::binary::{refuses, root};

const CHINESE: [&str; 5] = ["feedlens", "cn_clip_fp32", "cn_clip_fp16", "hugging_face", "hugging_face_split"];
const ENGLISH: [&str; 2] = ["immich", "open_clip"];

#[derive(Deserialize)]
struct Expected {
    chinese: Vec<ExpectedText>,
    english: Vec<ExpectedText>,
    image: ExpectedImage,
}

#[derive(Deserialize)]
struct ExpectedText {
    text: String,
    vector: Vec<f32>,
}

#[derive(Deserialize)]
struct ExpectedImage {
    file: String,
    vector: Vec<f32>,
}

fn fixtures() -> PathBuf {
    root().join("tests/fixtures/bundles")
}

pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// A copy of a fixture, with cn_clip's vocabulary where the layout has one.
fn bundle(name: &str) -> TempDir {
    let folder = tempfile::Builder::new().prefix("bundle-").tempdir().unwrap();
    copy(&fixtures().join(name), folder.path());
    if CHINESE.contains(&name) && !name.starts_with("cn_clip") {
        fs::copy(root().join("models/small/vocab.txt"), folder.path().join("vocab.txt")).unwrap();
    }
    folder
}

fn start(folder: &Path) -> Encoder {
    let config = Config::load(&[], &Default::default()).unwrap();
    let model = ModelConfig { dir: folder.to_owned() };
    Encoder::start(&model, &config.encoder, &Arc::new(Metrics::new())).unwrap()
}

#[track_caller]
fn assert_close(what: &str, vector: &[f32], expected: &[f32]) {
    assert_eq!(vector.len(), expected.len(), "{what}");
    for (value, expected) in vector.iter().zip(expected) {
        assert!((value - expected).abs() < 1e-5, "{what}: {vector:?}, expected {expected:?}");
    }
}

#[tokio::test]
async fn every_layout_gives_the_same_vectors() {
    let expected: Expected = serde_json::from_slice(&fs::read(fixtures().join("expected.json")).unwrap()).unwrap();
    let bytes = fs::read(fixtures().join(&expected.image.file)).unwrap();
    let picture = decode(&bytes, &DecodeOptions::default()).unwrap();
    for name in CHINESE.into_iter().chain(ENGLISH) {
        let folder = bundle(name);
        let encoder = start(folder.path());
        encoder.check_golden().await.unwrap();
        // More than one at a time: a graph with a fixed batch of 1 must take them one by one.
        let images = (0..3).map(|_| encoder.handle.image(encoder.preprocessor.prepare(&picture), Priority::Feed));
        for vector in futures::future::join_all(images).await {
            assert_close(name, &vector.unwrap(), &expected.image.vector);
        }
        let texts = if CHINESE.contains(&name) { &expected.chinese } else { &expected.english };
        let vectors = texts.iter().map(|item| {
            let ids = encoder.tokenizer.encode(&item.text).unwrap();
            encoder.handle.text(ids, Priority::Feed)
        });
        for (vector, item) in futures::future::join_all(vectors).await.into_iter().zip(texts) {
            assert_close(&format!("{name}: {:?}", item.text), &vector.unwrap(), &item.vector);
        }
    }
}

#[test]
fn layouts_are_recognised() {
    let of = |name: &str| Bundle::load(bundle(name).path()).unwrap();
    assert_eq!(of("feedlens").layout, Layout::Feedlens);
    assert_eq!(of("cn_clip_fp16").layout, Layout::CnClip);
    assert_eq!(of("hugging_face").layout, Layout::HuggingFace);
    assert_eq!(of("hugging_face_split").layout, Layout::HuggingFace);
    assert_eq!(of("immich").layout, Layout::Immich);
    assert_eq!(of("open_clip").layout, Layout::OpenClip);
    assert_eq!(of("cn_clip_fp16").precision, "fp16");
    // The rules that its makers follow, which a picture of the model's own size does not show.
    let rules = |name| (of(name).resize, of(name).convert_rgb);
    assert_eq!(rules("cn_clip_fp32"), (Resize::Bicubic, ConvertRgb::After));
    assert_eq!(rules("hugging_face"), (Resize::Bicubic, ConvertRgb::Before));
    assert_eq!(rules("immich"), (Resize::BicubicCropDown, ConvertRgb::Before));
    assert_eq!(rules("open_clip"), (Resize::BicubicCrop, ConvertRgb::After));
    let cropping = bundle("hugging_face_split");
    fs::write(cropping.path().join("preprocessor_config.json"), r#"{"size": {"shortest_edge": 8}, "crop_size": 8}"#)
        .unwrap();
    assert_eq!(Bundle::load(cropping.path()).unwrap().resize, Resize::BicubicCropDown);
    assert!(of("feedlens").has_golden() && !of("immich").has_golden());
}

/// An export has no id of its own: the folder's name is it, for the same folder under every path.
#[test]
fn id_of_an_export_is_the_folders_name() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("My Model");
    copy(&fixtures().join("cn_clip_fp32"), &model);
    assert_eq!(Bundle::load(&model).unwrap().id, "my-model-fp32");
    assert_eq!(Bundle::load(&model.join("../My Model/.")).unwrap().id, "my-model-fp32");
}

/// Breaks a copy of a fixture; the binary must refuse it with one sentence that holds all of `says`.
#[track_caller]
fn broken(name: &str, says: &[&str], change: impl FnOnce(&Path)) {
    let folder = bundle(name);
    change(folder.path());
    refuses_model(folder.path(), says);
}

#[track_caller]
fn refuses_model(folder: &Path, says: &[&str]) {
    refuses(&["demo", "--once", "--set", &format!("model.dir={}", folder.display())], 1, says);
}

fn cut(file: PathBuf, bytes: usize) {
    let content = fs::read(&file).unwrap();
    fs::write(file, &content[..bytes]).unwrap();
}

fn replace(file: PathBuf, from: &str, to: &str) {
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(from), "{from:?} is not in {text}");
    fs::write(file, text.replace(from, to)).unwrap();
}

#[test]
fn file_that_is_no_model() {
    broken("feedlens", &["image.onnx", "is no ONNX file"], |dir| {
        fs::write(dir.join("image.onnx"), "<html>404 Not Found</html>").unwrap();
    });
    broken("feedlens", &["text.onnx", "git lfs pull"], |dir| {
        fs::write(dir.join("text.onnx"), "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n").unwrap();
    });
    broken("feedlens", &["image.onnx", "is empty"], |dir| fs::write(dir.join("image.onnx"), "").unwrap());
}

#[test]
fn file_that_was_cut_off() {
    broken("feedlens", &["image.onnx (200 bytes)", "cut off"], |dir| cut(dir.join("image.onnx"), 200));
    broken("cn_clip_fp32", &["vit-b-16.txt.fp32.onnx (500 bytes)", "cut off"], |dir| {
        cut(dir.join("vit-b-16.txt.fp32.onnx"), 500);
    });
}

#[test]
fn towers_that_were_swapped() {
    broken("feedlens", &["swapped"], |dir| {
        fs::rename(dir.join("image.onnx"), dir.join("other.onnx")).unwrap();
        fs::rename(dir.join("text.onnx"), dir.join("image.onnx")).unwrap();
        fs::rename(dir.join("other.onnx"), dir.join("text.onnx")).unwrap();
    });
    broken("immich", &["visual/model.onnx", "input for pictures", "\"text\""], |dir| {
        fs::copy(dir.join("textual/model.onnx"), dir.join("visual/model.onnx")).unwrap();
    });
}

#[test]
fn tower_of_another_dimension() {
    broken("feedlens", &["\"unnorm_image_features\"", "5 values", "dimension = 4"], |dir| {
        fs::rename(dir.join("other_dimension.onnx"), dir.join("image.onnx")).unwrap();
    });
    broken("hugging_face", &["4 values", "config.json", "dimension = 6"], |dir| {
        replace(dir.join("config.json"), "\"projection_dim\": 4", "\"projection_dim\": 6");
    });
}

#[test]
fn tensor_that_the_graph_lacks() {
    broken("feedlens", &["image.onnx", "output \"features\"", "\"unnorm_image_features\""], |dir| {
        replace(dir.join("model.toml"), "\"unnorm_image_features\"", "\"features\"");
    });
    broken("hugging_face_split", &["\"image_embeds\"", "\"pooler_output\"", "without its projection"], |dir| {
        fs::rename(dir.join("unprojected.onnx"), dir.join("onnx/vision_model.onnx")).unwrap();
    });
}

#[test]
fn weights_that_are_not_there() {
    let external = |dir: &Path| replace(dir.join("model.toml"), "text.onnx", "external.onnx");
    broken("feedlens", &["external.onnx.extra_file", "is not there"], |dir| {
        external(dir);
        fs::remove_file(dir.join("external.onnx.extra_file")).unwrap();
    });
    broken("feedlens", &["external.onnx.extra_file", "100 of 256 bytes"], |dir| {
        external(dir);
        cut(dir.join("external.onnx.extra_file"), 100);
    });
    broken("cn_clip_fp16", &["vit-b-16.img.fp16.onnx.extra_file", "is not there"], |dir| {
        fs::remove_file(dir.join("vit-b-16.img.fp16.onnx.extra_file")).unwrap();
    });
}

#[test]
fn vocabulary_of_another_model() {
    broken("feedlens", &["vocab.txt", "105 tokens", "vocab_size = 21128"], |dir| {
        let whole = fs::read_to_string(dir.join("vocab.txt")).unwrap();
        let some = whole.split_inclusive('\n').take(105).collect::<String>();
        fs::write(dir.join("vocab.txt"), some).unwrap();
    });
    broken("open_clip", &["tokenizer.json", "vocab_size = 100"], |dir| {
        replace(dir.join("open_clip_config.json"), "\"vocab_size\": 49408", "\"vocab_size\": 100");
    });
    broken("hugging_face", &["vocab.txt", "no token [UNK]"], |dir| {
        fs::write(dir.join("vocab.txt"), "[PAD]\na\n").unwrap();
    });
}

#[test]
fn rules_that_cannot_be_followed() {
    broken("hugging_face", &["config.json", "\"siglip\""], |dir| {
        replace(dir.join("config.json"), "\"chinese_clip\"", "\"siglip\"");
    });
    broken("hugging_face", &["preprocessor_config.json", "resample = 2"], |dir| {
        replace(dir.join("preprocessor_config.json"), "\"resample\": 3", "\"resample\": 2");
    });
    broken("hugging_face", &["preprocessor_config.json", "8 x 8"], |dir| {
        replace(dir.join("preprocessor_config.json"), "\"height\": 8", "\"height\": 9");
    });
    broken("immich", &["config.json", "SigLIP"], |dir| {
        replace(dir.join("config.json"), "\"embed_dim\": 4,", "\"embed_dim\": 4, \"init_logit_bias\": -10,");
    });
    broken("immich", &["preprocess_cfg.json", "\"longest\""], |dir| {
        replace(dir.join("visual/preprocess_cfg.json"), "\"shortest\"", "\"longest\"");
    });
}

#[test]
fn files_that_are_missing_or_too_many() {
    broken("feedlens", &["lacks golden.json"], |dir| fs::remove_file(dir.join("golden.json")).unwrap());
    broken("hugging_face", &["no vision_model.onnx with text_model.onnx, or model.onnx"], |dir| {
        fs::remove_file(dir.join("model.onnx")).unwrap();
    });
    broken("hugging_face_split", &["no tokenizer.json"], |dir| fs::remove_file(dir.join("vocab.txt")).unwrap());
    broken("immich", &["no textual/model.onnx"], |dir| fs::remove_file(dir.join("textual/model.onnx")).unwrap());
    broken("cn_clip_fp32", &["lacks vit-b-16.txt.fp32.onnx"], |dir| {
        fs::remove_file(dir.join("vit-b-16.txt.fp32.onnx")).unwrap();
    });
    broken("cn_clip_fp32", &["several models", "vit-b-16, vit-l-14"], |dir| {
        fs::copy(dir.join("vit-b-16.img.fp32.onnx"), dir.join("vit-l-14.img.fp32.onnx")).unwrap();
    });
    broken("hugging_face", &["model_fp16.onnx, model_quantized.onnx", "leave one"], |dir| {
        fs::copy(dir.join("model.onnx"), dir.join("model_quantized.onnx")).unwrap();
        fs::rename(dir.join("model.onnx"), dir.join("model_fp16.onnx")).unwrap();
    });
}

#[test]
fn folder_without_a_model() {
    let folder = tempfile::tempdir().unwrap();
    refuses_model(folder.path(), &["no model bundle in", "model.dir"]);
    fs::write(folder.path().join("clip_cn_rn50.pt"), "").unwrap();
    refuses_model(folder.path(), &["clip_cn_rn50.pt", "tools/export_chinese_clip.py"]);
}
