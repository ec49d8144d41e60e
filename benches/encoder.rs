//! The encoder on CPU, one thread, each figure beside its peer in one run, interleaved; the ratios count.
//!
//! FEEDLENS_BENCH_MODELS names a folder with `vit-b-16-fp32` and `vit-b-16-int8`, made by
//!
//! ```sh
//! python tools/export_chinese_clip.py --arch ViT-B-16 --random-weights 1 --precision fp32 --out DIR/vit-b-16-fp32
//! ```
//!
//! Without it, the bundled model stands in: it shows that the bench works, not what it is for. Times are CPU seconds of
//! this process (getrusage), so that other work on the machine counts little.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use feedlens::config::{Config, Overrides};
use feedlens::encode::bundle::Bundle;
use feedlens::encode::encoder::Encoder;
use feedlens::encode::onnx::{Loading, OnnxEncoder, OnnxModel};
use feedlens::encode::worker::Priority;
use feedlens::encode::{Encode, EncoderConfig, PreparedImage, PreparedText};
use feedlens::metrics::Metrics;
use ort::value::TensorRef;

use support::cpu_seconds;

/// Each pair is measured so often, in turns.
const ROUNDS: usize = 7;
const BATCH: usize = 8;
const TEXT_BATCH: usize = 32;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::env::set_current_dir(root).expect("the repository's root");
    let small = PathBuf::from("models/small");
    let (fp32, int8) = match std::env::var_os("FEEDLENS_BENCH_MODELS").map(PathBuf::from) {
        Some(models) => (models.join("vit-b-16-fp32"), models.join("vit-b-16-int8")),
        None => {
            println!("FEEDLENS_BENCH_MODELS is not set: measuring models/small, which is NO ViT-B-16\n");
            (small.clone(), small)
        }
    };
    quantised_against_float(&fp32, &int8);
    let captions = captions(&fp32);
    grouped_against_padded(&fp32, &captions);
    handle_against_bare_session(&fp32, &captions);
}

fn settings(max_batch: usize) -> EncoderConfig {
    let config = Config::load(&[], &Overrides::default()).expect("the defaults load").encoder;
    let providers = vec!["cpu".to_owned()];
    EncoderConfig {
        providers,
        workers: 1,
        threads: 1,
        max_batch_images: max_batch,
        max_batch_texts: TEXT_BATCH,
        ..config
    }
}

fn worker(dir: &Path) -> OnnxEncoder {
    let bundle = Bundle::load(dir).expect("the bundle");
    let model = OnnxModel::load(bundle, &settings(BATCH), Loading::OnFirstUse).expect("the model");
    model.worker(Loading::OnFirstUse).expect("a worker")
}

fn side(dir: &Path) -> usize {
    Bundle::load(dir).expect("the bundle").resolution as usize
}

/// Pictures of noise: what they show costs nothing.
fn pictures(count: usize, side: usize) -> Vec<PreparedImage> {
    let mut state = 1_u32;
    let mut noise = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..count).map(|_| PreparedImage { rgb: (0..3 * side * side).map(|_| noise()).collect() }).collect()
}

/// The first captions of the demo's feed as tokens.
fn captions(dir: &Path) -> Vec<PreparedText> {
    let config =
        Config::load(&[("model.dir", dir.display().to_string().into())], &Overrides::default()).expect("loads");
    let encoder = Encoder::start_lazily(&config.model, &settings(BATCH), &Arc::new(Metrics::new())).expect("starts");
    let feed = std::fs::read_to_string("demo/feed.jsonl").expect("the demo's feed");
    let posts = feed.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let captions = posts.filter_map(|post| Some(post.get("caption")?.as_str()?.to_owned()));
    captions.filter_map(|caption| encoder.tokenizer.encode(&caption).ok()).take(8 * TEXT_BATCH).collect()
}

fn quantised_against_float(fp32: &Path, int8: &Path) {
    let (mut float, mut quantised) = (worker(fp32), worker(int8));
    let images = pictures(BATCH, side(fp32));
    let texts = vec![PreparedText { ids: vec![101; 16] }; TEXT_BATCH];
    let [slow, fast] = in_turns([&mut || drop(float.images(&images).expect("encodes")), &mut || {
        drop(quantised.images(&images).expect("encodes"))
    }]);
    report("pictures, batch of 8: fp32 / int8", slow, fast, images.len());
    let [slow, fast] = in_turns([&mut || drop(float.texts(&texts).expect("encodes")), &mut || {
        drop(quantised.texts(&texts).expect("encodes"))
    }]);
    report("texts of 16 tokens, batch of 32: fp32 / int8", slow, fast, texts.len());
}

/// Batches of captions as they come, against the same batches padded to the context's length.
fn grouped_against_padded(dir: &Path, captions: &[PreparedText]) {
    let context = Bundle::load(dir).expect("the bundle").context_length;
    let padded = |text: &PreparedText| {
        let mut ids = text.ids.clone();
        ids.resize(context, 0);
        PreparedText { ids }
    };
    let padded = captions.iter().map(padded).collect::<Vec<_>>();
    let tokens = captions.iter().map(|text| text.ids.len()).sum::<usize>();
    println!("{} captions of {:.1} tokens in the mean", captions.len(), tokens as f64 / captions.len() as f64);
    let (mut first, mut second) = (worker(dir), worker(dir));
    let [slow, fast] = in_turns([
        &mut || padded.chunks(TEXT_BATCH).for_each(|batch| drop(first.texts(batch).expect("encodes"))),
        &mut || captions.chunks(TEXT_BATCH).for_each(|batch| drop(second.texts(batch).expect("encodes"))),
    ]);
    report(&format!("captions: padded to {context} / in groups of like length"), slow, fast, captions.len());
}

/// Everything around `Session::run` (queue, worker thread, batcher, filling the tensor, normalising, replies) against
/// `Session::run` alone on the same tensors.
fn handle_against_bare_session(dir: &Path, captions: &[PreparedText]) {
    const BATCHES: usize = 4;
    let config =
        Config::load(&[("model.dir", dir.display().to_string().into())], &Overrides::default()).expect("loads");
    let metrics = Arc::new(Metrics::new());
    let encoder = Encoder::start(&config.model, &settings(BATCH), &metrics).expect("starts");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let side = side(dir);
    let images = pictures(BATCHES * BATCH, side);
    let mut bare = worker(dir);
    let tower = bare.image().expect("loads");
    let input = tower.plan().input.name.clone();
    let floats = images[..BATCH].iter().flat_map(|image| image.rgb.iter().map(|value| f32::from(*value) / 255.0));
    let floats = floats.collect::<Vec<_>>();
    let mut session = tower.session();
    let [whole, alone] = in_turns([
        &mut || {
            let vectors = images.iter().map(|image| encoder.handle.image(image.clone(), Priority::Feed));
            let vectors = runtime.block_on(futures::future::join_all(vectors));
            assert!(vectors.iter().all(Result::is_ok), "encodes");
        },
        &mut || {
            for _ in 0..BATCHES {
                let tensor = TensorRef::from_array_view(([BATCH, 3, side, side], floats.as_slice())).expect("a tensor");
                drop(session.run(vec![(input.as_str(), tensor)]).expect("runs"));
            }
        },
    ]);
    report("pictures: whole encoder / Session::run alone", whole, alone, images.len());
    drop(session);

    // Texts of one length, so that both run the same tensors.
    let length = captions[0].ids.len();
    let texts = vec![captions[0].clone(); BATCHES * TEXT_BATCH];
    let tower = bare.text().expect("loads");
    let input = tower.plan().input.name.clone();
    let ids = texts[..TEXT_BATCH].iter().flat_map(|text| text.ids.clone()).collect::<Vec<_>>();
    let mut session = tower.session();
    let [whole, alone] = in_turns([
        &mut || {
            let vectors = texts.iter().map(|text| encoder.handle.text(text.clone(), Priority::Feed));
            let vectors = runtime.block_on(futures::future::join_all(vectors));
            assert!(vectors.iter().all(Result::is_ok), "encodes");
        },
        &mut || {
            for _ in 0..BATCHES {
                let tensor = TensorRef::from_array_view(([TEXT_BATCH, length], ids.as_slice())).expect("a tensor");
                drop(session.run(vec![(input.as_str(), tensor)]).expect("runs"));
            }
        },
    ]);
    report(&format!("texts of {length} tokens: whole encoder / Session::run alone"), whole, alone, texts.len());
}

fn report(name: &str, first: f64, second: f64, items: usize) {
    let (first, second) = (1e3 * first / items as f64, 1e3 * second / items as f64);
    println!("{name:<58} {first:>9.3} / {second:>9.3} CPU ms each = {:.3}", first / second);
}

/// The least CPU seconds of each, after one round that does not count: what others do on the machine only ever adds.
fn in_turns(mut both: [&mut dyn FnMut(); 2]) -> [f64; 2] {
    let mut least = [f64::INFINITY; 2];
    for round in 0..=ROUNDS {
        for (run, least) in both.iter_mut().zip(&mut least) {
            let before = cpu_seconds();
            run();
            if round > 0 {
                *least = least.min(cpu_seconds() - before);
            }
        }
    }
    least
}
