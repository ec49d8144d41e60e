//! `make bench BENCHES=tokenizer`: captions a second through feedlens's tokenizer and through cn_clip's own, in one run.
//!
//! One thread each, the same captions, rounds in turn; CPU time counts, so that other work on the machine does not. The
//! peer is the tokenizer alone (`bert_tokenizer.py`), without the tensor that cn_clip then fills. Python with cn_clip is
//! taken from FEEDLENS_BENCH_PYTHON, or from .cache/bench/venv, which `make bench-peers` fills.

#[path = "support/peer.rs"]
mod peer;

use std::path::Path;

use feedlens::captions::clean;
use feedlens::encode::tokenizer::Tokenizer;
use feedlens::feed::Feed;

use peer::Peer;

/// Of each; the best counts.
const ROUNDS: usize = 5;
/// The ratio that this project promises.
const PROMISED: f64 = 30.0;

/// What feeds write, beside the short captions of the demo.
const LONG: [&str; 6] = [
    "【#周末去哪儿# 打卡】今天终于来到了心心念念的海边！！！日落真的太美了[笑cry][笑cry] @小明同学 http://t.cn/A6xYz12",
    "分享图片：下班路上的晚霞，像打翻了的颜料盘，粉色、橙色、紫色混在一起，路人都停下来拍照。生活里的小确幸大概就是这样吧～",
    "RT @nasa: A new picture of Mars shows dunes near the north pole, frozen carbon dioxide & wind-blown sand... https://t.co/AbC123",
    "Sunset at the beach with my dog, who chased every single wave until he fell asleep in the sand. Unforgettable! #sunset #beach",
    "おはようございます！今日は江ノ島の海に来ました。夕焼けがとてもきれいで、写真をたくさん撮りました。#海 #夕焼け",
    "Ünïcödé café naïve déjà-vu: el niño soñó con el océano, и закат над морем был прекрасен.",
];

/// Tokenises what it is given once a line of its stdin, and says how long it took.
const PEER: &str = r#"
import importlib.util, json, pathlib, sys, time
folder = importlib.util.find_spec("cn_clip").submodule_search_locations[0]
spec = importlib.util.spec_from_file_location("bert_tokenizer", pathlib.Path(folder, "clip/bert_tokenizer.py"))
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
tokenizer = module.FullTokenizer()
captions = json.loads(sys.stdin.readline())
for _ in sys.stdin:
    started = time.process_time()
    ids = sum(len(tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))[:50]) + 2 for text in captions)
    print(json.dumps([time.process_time() - started, ids]), flush=True)
"#;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let captions = captions(root);
    let characters = captions.iter().map(|caption| caption.chars().count()).sum::<usize>();
    println!("{} captions of {:.0} characters in the mean", captions.len(), characters as f64 / captions.len() as f64);
    let tokenizer = Tokenizer::load(&root.join("models/small/vocab.txt"), 52).expect("the shipped vocabulary");
    let mut peer = Peer::start(PEER, &["cn_clip", "six"], &captions);

    let (mut ours, mut theirs, mut cleaning) = (f64::INFINITY, f64::INFINITY, f64::INFINITY);
    for _ in 0..ROUNDS {
        let (seconds, ids) =
            measure(|| captions.iter().map(|text| tokenizer.encode(text).expect("ids").ids.len()).sum());
        ours = ours.min(seconds);
        cleaning = cleaning.min(measure(|| captions.iter().map(|caption| clean(caption).len()).sum()).0);
        if let Some(peer) = &mut peer {
            let (seconds, their_ids) = peer.ask::<(f64, usize)>("");
            assert_eq!(ids, their_ids, "both give as many ids");
            theirs = theirs.min(seconds);
        }
    }

    let line = |name: &str, seconds: f64| {
        let count = captions.len() as f64;
        println!("{name:<32}{:>12.0} captions/s{:>10.3} us each", count / seconds, 1e6 * seconds / count);
    };
    line("feedlens, tokenising", ours);
    line("feedlens, cleaning captions", cleaning);
    if peer.is_none() {
        println!(
            "\n!!! THE PEER WAS NOT RUN, so there is no ratio: run `make bench-peers`, or set FEEDLENS_BENCH_PYTHON to"
        );
        println!("!!! a Python that has cn_clip (pip install --no-deps cn-clip six)");
        return;
    }
    line("cn_clip (Python), tokenising", theirs);
    println!("\nfeedlens tokenises {:.0} times as fast as cn_clip (promised: {PROMISED:.0})", theirs / ours);
}

/// The captions of the demo's feed, and longer ones among them.
fn captions(root: &Path) -> Vec<String> {
    let feed = Feed::open(&root.join("demo/feed.jsonl")).expect("the bundled feed");
    let short = feed.filter_map(|message| {
        let post: serde_json::Value = serde_json::from_slice(&message.ok()?.value).ok()?;
        Some(post["caption"].as_str()?.to_owned())
    });
    let long = LONG.iter().cycle().take(2_000).map(ToString::to_string);
    short.chain(long).collect()
}

/// CPU seconds of this thread, and what the work gave.
fn measure(work: impl FnOnce() -> usize) -> (f64, usize) {
    let started = thread_seconds();
    let result = std::hint::black_box(work());
    (thread_seconds() - started, result)
}

fn thread_seconds() -> f64 {
    // SAFETY: clock_gettime fills the zeroed struct that it is given.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        assert_eq!(libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time), 0, "the clock answers");
        time
    };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
