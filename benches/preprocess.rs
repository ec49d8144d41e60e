//! `make bench BENCHES=preprocess`: pictures a second from JPEG bytes to the float tensor, on one core, beside cn_clip's own
//! transform (Pillow and torchvision) in one run.
//!
//! The photographs are real ones, which `tools/fetch_photos.py` takes out of packages. Feeds send such files out again in
//! their own sizes, at a JPEG quality of 75 to 85 with 4:2:0 chroma: so each photograph is scaled down to the sizes below
//! (never up) and encoded at 80, 4:2:0, baseline. The files as their authors left them (other qualities, progressive ones,
//! 4:4:4) have a row of their own.
//!
//! Every picture goes through all three in turn, several times; the best CPU time of each counts, so that other work on the
//! machine counts little. Python with cn_clip and torchvision is taken from FEEDLENS_BENCH_PYTHON, or from
//! .cache/bench/venv (`make bench-peers TORCH=1`). FEEDLENS_BENCH_MODELS names a folder with `rn50-fp32` and `vit-b-16-fp32`
//! as `benches/encoder.rs` tells; with them, the vectors of the fast pixels are compared with those of the exact ones.

#[path = "support/peer.rs"]
mod peer;
mod support;

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use feedlens::config::{Config, Overrides};
use feedlens::encode::bundle::Bundle;
use feedlens::encode::onnx::{Loading, OnnxModel};
use feedlens::encode::preprocess::{Preprocessor, fill};
use feedlens::encode::{Encode as _, EncoderConfig, normalise};
use feedlens::image::decode::{DecodeOptions, decode};
use feedlens::image::resize::{ConvertRgb, Frame, resize_rgb};
use feedlens::image::{Fidelity, ImagesConfig};
use turbojpeg_sys as tj;

use peer::Peer;
use support::cpu_seconds;

/// Turns of each.
const ROUNDS: usize = 5;
/// Times in a row that a picture is preprocessed in each turn: whoever comes first would find the caches cold.
const REPEATS: usize = 3;
/// Millions of pixels.
const SIZES: [f64; 5] = [0.3, 0.6, 1.0, 2.0, 3.0];
const QUALITY: i32 = 80;
const SIDE: usize = 224;
const MEAN: [f32; 3] = [0.48145466, 0.4578275, 0.40821073];
const STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// Exact and fast against Pillow and torchvision.
const PROMISED: [f64; 2] = [1.7, 3.0];
const PROMISED_COSINE: f32 = 0.998;

/// Preprocesses the file whose number it reads as often as it is told, and says how long the quickest time took.
const PEER: &str = r#"
import base64, io, json, sys, time
import torch
from cn_clip.clip.utils import image_transform
from PIL import Image
torch.set_num_threads(1)
files = [base64.b64decode(file) for file in json.loads(sys.stdin.readline())]
transform = image_transform(224)
def seconds(file):
    started = time.process_time()
    tensor = transform(Image.open(io.BytesIO(file)))
    return time.process_time() - started
for line in sys.stdin:
    number, repeats = map(int, line.split())
    print(min(seconds(files[number]) for _ in range(repeats)), flush=True)
"#;

struct File {
    bytes: Vec<u8>,
    pixels: usize,
}

/// Seconds of one file: Pillow and torchvision, exact, fast.
type Seconds = [f64; 3];

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::env::set_current_dir(root).expect("the repository's root");
    let originals = originals();
    if originals.is_empty() {
        println!("!!! NOTHING WAS MEASURED: there are no photographs; run tools/fetch_photos.py, which needs pip");
        return;
    }
    let at_size = |size: &f64| (format!("{size} MP, quality {QUALITY}, 4:2:0"), sized(&originals, *size));
    let mut rows = SIZES.iter().map(at_size).collect::<Vec<_>>();
    rows.push(("as their authors left them".to_owned(), originals));
    let files = rows.iter().flat_map(|(_, files)| files).collect::<Vec<_>>();
    let encoded = files.iter().map(|file| STANDARD.encode(&file.bytes)).collect::<Vec<_>>();
    let mut peer = Peer::start(PEER, &["cn_clip", "six", "tqdm", "torch", "torchvision", "PIL"], &encoded);
    let seconds = measure(&files, peer.as_mut());

    println!(
        "{:<32}{:>9}{:>11}{:>26}{:>18}{:>18}",
        "", "pictures", "bits/pixel", "Pillow + torchvision", "exact", "fast"
    );
    let sum = |seconds: &[Seconds]| -> Seconds {
        std::array::from_fn(|way| seconds.iter().map(|seconds| seconds[way]).sum())
    };
    let mut start = 0;
    for (name, of_row) in &rows {
        let row = start..start + of_row.len();
        start = row.end;
        report(name, &files[row.clone()], sum(&seconds[row]));
    }
    let sized = files.len() - rows[SIZES.len()].1.len();
    let total = sum(&seconds[..sized]);
    report("all at the sizes above", &files[..sized], total);
    if peer.is_none() {
        println!("\n!!! THE PEER WAS NOT RUN, so there are no ratios: run `make bench-peers TORCH=1`, or set");
        println!("!!! FEEDLENS_BENCH_PYTHON to a Python that has cn_clip and torchvision");
    } else {
        let [exact, fast] = [1, 2].map(|way| total[0] / total[way]);
        let [least_exact, least_fast] = PROMISED;
        println!(
            "\nexact: {exact:.2} times the peer (promised: {least_exact}); fast: {fast:.2} (promised: {least_fast})"
        );
    }
    compare_vectors(&files);
}

fn report(name: &str, files: &[&File], [peer, exact, fast]: Seconds) {
    let sum = |of: fn(&File) -> usize| files.iter().map(|file| of(file)).sum::<usize>() as f64;
    let bits = 8.0 * sum(|file| file.bytes.len()) / sum(|file| file.pixels);
    let rate = |seconds: f64| files.len() as f64 / seconds;
    let beside = |seconds: f64| {
        let ratio = if peer.is_finite() { format!("{:.2} x", peer / seconds) } else { "no peer".to_owned() };
        format!("{:.0}/s {ratio:>8}", rate(seconds))
    };
    let peer = if peer.is_finite() { format!("{:.0}/s", rate(peer)) } else { "not run".to_owned() };
    println!("{name:<32}{:>9}{bits:>11.2}{peer:>26}{:>18}{:>18}", files.len(), beside(exact), beside(fast));
}

/// The photographs between 0.25 and 5 megapixels.
fn originals() -> Vec<File> {
    let Ok(folder) = std::fs::read_dir(".cache/photos") else { return vec![] };
    let mut paths = folder.map(|entry| entry.expect("an entry").path()).collect::<Vec<_>>();
    paths.sort();
    let files = paths.iter().map(|path| {
        let bytes = std::fs::read(path).expect("a photograph");
        let (width, height) = decode(&bytes, &DecodeOptions::default()).expect("a photograph").size();
        File { bytes, pixels: width * height }
    });
    files.filter(|file| (250_000..5_000_000).contains(&file.pixels)).collect()
}

/// Those that have nearly so many megapixels, scaled down to them.
fn sized(originals: &[File], megapixels: f64) -> Vec<File> {
    let wanted = megapixels * 1e6;
    let large = originals.iter().filter(|file| file.pixels as f64 >= 0.9 * wanted);
    let scaled = large.map(|file| {
        let picture = decode(&file.bytes, &DecodeOptions::default()).expect("a photograph");
        let factor = (wanted / file.pixels as f64).sqrt().min(1.0);
        let (width, height) = picture.size();
        let [width, height] = [width, height].map(|side| (side as f64 * factor).round() as usize);
        let rgb = resize_rgb(&picture, &Frame::whole(width, height), ConvertRgb::After);
        File { bytes: jpeg(&rgb, width, height), pixels: width * height }
    });
    scaled.collect()
}

fn jpeg(rgb: &[u8], width: usize, height: usize) -> Vec<u8> {
    let (mut data, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: the handle is valid until it is destroyed, `rgb` has as many pixels, and the library allocates what it writes.
    unsafe {
        let handle = tj::tj3Init(tj::TJINIT_TJINIT_COMPRESS as i32);
        let settings = [(tj::TJPARAM_TJPARAM_QUALITY, QUALITY), (tj::TJPARAM_TJPARAM_SUBSAMP, tj::TJSAMP_TJSAMP_420)];
        for (parameter, value) in settings {
            assert_eq!(tj::tj3Set(handle, parameter as i32, value), 0, "libjpeg-turbo has the setting");
        }
        let (width, height, format) = (width as i32, height as i32, tj::TJPF_TJPF_RGB);
        let status = tj::tj3Compress8(handle, rgb.as_ptr(), width, 0, height, format, &raw mut data, &raw mut size);
        assert_eq!(status, 0, "libjpeg-turbo encodes");
        let bytes = std::slice::from_raw_parts(data, size as usize).to_vec();
        tj::tj3Free(data.cast());
        tj::tj3Destroy(handle);
        bytes
    }
}

fn options(fidelity: Fidelity, resolution: u32) -> DecodeOptions {
    let images = Config::load(&[], &Overrides::default()).expect("the defaults load").images;
    ImagesConfig { decode: fidelity, ..images }.decode_options(resolution)
}

fn measure(files: &[&File], mut peer: Option<&mut Peer>) -> Vec<Seconds> {
    let ways = [Fidelity::Exact, Fidelity::Fast].map(|fidelity| options(fidelity, SIDE as u32));
    let frame = Frame::whole(SIDE, SIDE);
    let mut tensor = vec![0.0; 3 * SIDE * SIDE];
    let mut best = vec![[f64::INFINITY; 3]; files.len()];
    for _ in 0..ROUNDS {
        for (number, (file, best)) in files.iter().zip(&mut best).enumerate() {
            if let Some(peer) = &mut peer {
                best[0] = best[0].min(peer.ask(&format!("{number} {REPEATS}")));
            }
            for (way, best) in ways.iter().zip(&mut best[1..]) {
                for _ in 0..REPEATS {
                    let started = cpu_seconds();
                    let picture = decode(&file.bytes, way).expect("a photograph");
                    let rgb = resize_rgb(&picture, &frame, ConvertRgb::After);
                    fill(&rgb, MEAN, STD, std::hint::black_box(&mut tensor));
                    *best = best.min(cpu_seconds() - started);
                }
            }
        }
    }
    best
}

/// The smallest cosine between the vectors of fast and of exact pixels: of the bundled model, the only one with trained
/// weights, and of the true architectures.
fn compare_vectors(files: &[&File]) {
    let mut folders = vec![PathBuf::from("models/small")];
    match std::env::var_os("FEEDLENS_BENCH_MODELS").map(PathBuf::from) {
        Some(models) => folders.extend(["rn50-fp32", "vit-b-16-fp32"].map(|name| models.join(name))),
        None => println!("!!! NO VECTORS OF THE TRUE ARCHITECTURES WERE COMPARED: FEEDLENS_BENCH_MODELS is not set"),
    }
    for folder in folders {
        let name = folder.display();
        if !folder.is_dir() {
            println!("!!! NO VECTORS OF {name} WERE COMPARED: there is no such folder");
            continue;
        }
        let cosine = smallest_cosine(&folder, files);
        println!("{name}: smallest cosine of fast to exact {cosine:.5} (promised: {PROMISED_COSINE})");
    }
}

fn smallest_cosine(folder: &Path, files: &[&File]) -> f32 {
    let config = Config::load(&[], &Overrides::default()).expect("the defaults load").encoder;
    let config = EncoderConfig { providers: vec!["cpu".to_owned()], workers: 1, threads: 1, ..config };
    let bundle = Bundle::load(folder).expect("the bundle");
    let (preprocessor, resolution) = (Preprocessor::new(&bundle), bundle.resolution);
    let model = OnnxModel::load(bundle, &config, Loading::OnFirstUse).expect("the model");
    let mut worker = model.worker(Loading::OnFirstUse).expect("a worker");
    let ways = [Fidelity::Exact, Fidelity::Fast].map(|fidelity| options(fidelity, resolution));
    let cosines = files.iter().map(|file| {
        let both = ways.map(|way| preprocessor.prepare(&decode(&file.bytes, &way).expect("a photograph")));
        let vectors = worker.images(&both).expect("encodes").into_iter();
        let vectors = vectors.map(|vector| normalise(vector).expect("a vector")).collect::<Vec<_>>();
        vectors[0].iter().zip(&vectors[1]).map(|(exact, fast)| exact * fast).sum::<f32>()
    });
    cosines.fold(1.0, f32::min)
}
