//! What 10,000 standing topics cost a post, beside what encoding it costs, in one run: CPU seconds of this process on one
//! thread, so that other work on the machine counts little. The promise is a ratio under 0.05 at ViT-B-16.
//!
//! FEEDLENS_BENCH_MODELS names a folder with `vit-b-16-fp32` and `vit-b-16-int8`; `benches/encoder.rs` says how they are made.
//! Without it, the bundled model stands in, whose encoding costs a hundredth: it shows that the bench works, not what it is
//! for.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use feedlens::config::{Config, Overrides};
use feedlens::encode::bundle::Bundle;
use feedlens::encode::onnx::{Loading, OnnxModel};
use feedlens::encode::{Encode, EncoderConfig, PreparedImage, PreparedText};
use feedlens::standing::matrix::{Thresholds, Topics, Vectors};
use feedlens::standing::{Registration, Target};

use support::cpu_seconds;

const TOPICS: usize = 10_000;
const ROUNDS: usize = 5;
/// Pictures encoded at a time; texts of a feed have some 16 tokens.
const BATCH: usize = 8;
const TOKENS: usize = 16;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::env::set_current_dir(root).expect("the repository's root");
    let config = Config::load(&[], &Overrides::default()).expect("the defaults load");
    match std::env::var_os("FEEDLENS_BENCH_MODELS").map(PathBuf::from) {
        Some(models) => {
            for name in ["vit-b-16-fp32", "vit-b-16-int8"] {
                compare(&config, &models.join(name));
            }
        }
        None => {
            println!("FEEDLENS_BENCH_MODELS is not set: measuring models/small, which is NO ViT-B-16\n");
            compare(&config, Path::new("models/small"));
        }
    }
}

fn compare(config: &Config, dir: &Path) {
    let bundle = Bundle::load(dir).expect("the bundle");
    let (dimension, side) = (bundle.dimension, bundle.resolution as usize);
    let encode = encode(config, bundle, side);
    println!(
        "{}: {dimension} values, encoding a picture and a caption: {:.2} CPU ms",
        dir.file_name().expect("a name").to_string_lossy(),
        1e3 * encode
    );
    let posts = config.ingest.write_batch;
    let images = unit_vectors(posts, dimension, 1);
    let captions = unit_vectors(posts, dimension, 2);
    let vectors = images.iter().zip(&captions);
    let vectors = vectors.map(|(image, caption)| Vectors { image: Some(image), caption: Some(caption) });
    let vectors = vectors.collect::<Vec<_>>();
    for (target, name) in [(Target::Image, "the picture"), (Target::Both, "picture and caption")] {
        let mut topics = Topics::new(dimension);
        for (number, vector) in unit_vectors(TOPICS, dimension, 3).iter().enumerate() {
            let topic_id = number.to_string();
            let topic = Registration { topic: topic_id.clone(), topic_id, target, min_score: None, created_at: None };
            topics.insert(&Arc::new(topic), vector, Thresholds { image: 0.5, caption: 0.5 });
        }
        let matching = least(|| {
            let found = topics.compare(&vectors, config.ingest.max_matches_per_post);
            assert_eq!(found.len(), posts);
        }) / posts as f64;
        println!(
            "  {TOPICS} standing topics against {name:<20} {:>8.3} CPU ms a post, {:.4} of encoding",
            1e3 * matching,
            matching / encode
        );
    }
}

/// CPU seconds of encoding a picture and a caption.
fn encode(config: &Config, bundle: Bundle, side: usize) -> f64 {
    let settings = EncoderConfig {
        providers: vec!["cpu".to_owned()],
        workers: 1,
        threads: 1,
        max_batch_images: BATCH,
        max_batch_texts: BATCH,
        ..config.encoder.clone()
    };
    let model = OnnxModel::load(bundle, &settings, Loading::AtStart).expect("the model");
    let mut encoder = model.worker(Loading::AtStart).expect("sessions");
    let mut noise = random(7);
    let rgb = (0..3 * side * side).map(|_| (255.0 * (noise() + 0.5)) as u8).collect::<Vec<_>>();
    let images = vec![PreparedImage { rgb }; BATCH];
    let texts = vec![PreparedText { ids: vec![101; TOKENS] }; BATCH];
    least(|| {
        encoder.images(&images).expect("encodes");
        encoder.texts(&texts).expect("encodes");
    }) / BATCH as f64
}

/// The least CPU seconds of a run, after one that does not count: what others do on the machine only ever adds.
fn least(mut run: impl FnMut()) -> f64 {
    run();
    let timed = (0..ROUNDS).map(|_| {
        let before = cpu_seconds();
        run();
        cpu_seconds() - before
    });
    timed.fold(f64::INFINITY, f64::min)
}

fn unit_vectors(count: usize, dimension: usize, seed: u32) -> Vec<Vec<f32>> {
    let mut random = random(seed);
    let vector = |_| {
        let vector = (0..dimension).map(|_| random()).collect::<Vec<_>>();
        feedlens::encode::normalise(vector).expect("finite")
    };
    (0..count).map(vector).collect()
}

/// From -0.5 to 0.5.
fn random(mut state: u32) -> impl FnMut() -> f32 {
    move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state as f32 / u32::MAX as f32 - 0.5
    }
}
