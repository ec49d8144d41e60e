use std::path::PathBuf;

use serde_json::json;

use super::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer_json").join(name)
}

fn load(name: &str, context_length: usize) -> HuggingFace {
    HuggingFace::load(&fixture(name).join("tokenizer.json"), context_length).expect("loads")
}

/// Texts whose ids differ from those that Hugging Face's Python package gave, of how many.
fn differing(folder: &Path, context_length: usize) -> (Vec<String>, usize) {
    let tokenizer = HuggingFace::load(&folder.join("tokenizer.json"), context_length).expect("loads");
    let lines = std::fs::read_to_string(folder.join("cases.jsonl")).expect("the fixture");
    let cases: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("a case")).collect();
    let differs = |case: &&Value| {
        let text = case["text"].as_str().expect("a text");
        json!(tokenizer.encode(text).expect("tokenises")) != case["ids"]
    };
    (cases.iter().filter(differs).map(|case| case["text"].to_string()).collect(), cases.len())
}

#[test]
fn ids_equal_those_of_the_python_package() {
    for (name, context_length) in [("clip", 77), ("xlm-roberta", 77), ("bert", 52)] {
        let (differ, of) = differing(&fixture(name), context_length);
        assert!(of > 200 && differ.is_empty(), "{name}: {} of {of}: {differ:?}", differ.len());
    }
}

/// `tools/make_tokenizer_json_fixtures.py --clip-vocabulary FILE --out FOLDER`, then FEEDLENS_TEST_CLIP=FOLDER/clip.
#[test]
#[ignore = "needs OpenAI's vocabulary"]
fn ids_equal_with_openais_vocabulary() {
    let folder = std::env::var("FEEDLENS_TEST_CLIP").expect("FEEDLENS_TEST_CLIP names the folder");
    let (differ, of) = differing(Path::new(&folder), 77);
    assert!(of > 20_000 && differ.is_empty(), "{} of {of}: {differ:?}", differ.len());
}

#[test]
fn long_text_keeps_its_end() {
    for (name, context_length) in [("clip", 77), ("xlm-roberta", 77), ("bert", 52), ("clip", 3)] {
        let tokenizer = load(name, context_length);
        let (short, long) = (tokenizer.encode("sun"), tokenizer.encode(&"sun 日落, ".repeat(5_000)));
        let (short, long) = (short.expect("tokenises"), long.expect("tokenises"));
        assert_eq!((long.len(), long.first(), long.last()), (context_length, short.first(), short.last()), "{name}");
    }
}

#[test]
fn vocabulary_size_is_that_of_the_embedding_table() {
    let ends = |tokenizer: &HuggingFace| *tokenizer.encode("a").expect("tokenises").last().expect("an end") as usize;
    let clip = load("clip", 77);
    assert_eq!(clip.vocabulary_size(), ends(&clip) + 1);
    assert_eq!(clip.vocabulary_size(), clip.tokenizer.get_vocab_size(true));
}

fn write(folder: &Path, name: &str, content: &Value) {
    std::fs::write(folder.join(name), content.to_string()).expect("writes");
}

fn read(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name).join("tokenizer.json")).expect("reads")).expect("JSON")
}

#[test]
fn padding_is_found_where_it_is_said() {
    assert_eq!((load("xlm-roberta", 77).padding_id(), load("clip", 77).padding_id()), (1, 0));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tokenizer.json");
    let padding = || HuggingFace::load(&file, 77).map(|tokenizer| tokenizer.padding_id());
    let mut clip = read("clip");
    write(folder.path(), "tokenizer.json", &clip);
    for (config, expected) in [
        (json!({"pad_token": "<|endoftext|>"}), clip["model"]["vocab"]["<|endoftext|>"].as_i64()),
        (json!({"pad_token": {"content": "<|startoftext|>"}}), clip["model"]["vocab"]["<|startoftext|>"].as_i64()),
        (json!({"pad_token": null}), Some(0)),
    ] {
        write(folder.path(), "tokenizer_config.json", &config);
        assert_eq!(padding().ok(), expected, "{config}");
    }
    write(folder.path(), "tokenizer_config.json", &json!({"pad_token": "<nothing>"}));
    let error = format!("{:#}", padding().expect_err("no such token"));
    assert!(error.contains("\"<nothing>\"") && error.contains("tokenizer_config.json"), "{error}");
    // What the file itself says goes first.
    clip["padding"] = json!({"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": null, "pad_id": 7,
        "pad_type_id": 0, "pad_token": "x"});
    write(folder.path(), "tokenizer.json", &clip);
    assert_eq!(padding().ok(), Some(7));
}

#[test]
fn faulty_file_is_one_clear_sentence() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tokenizer.json");
    let refused = |content: &str| {
        std::fs::write(&file, content).expect("writes");
        let error = format!("{:#}", HuggingFace::load(&file, 77).expect_err(content));
        assert!(error.contains("tokenizer.json") && !error.contains('\n') && error.len() < 500, "{error}");
        error
    };
    let edited = |edit: &dyn Fn(&mut Value)| {
        let mut content = read("xlm-roberta");
        edit(&mut content);
        refused(&content.to_string())
    };
    refused("");
    refused("vocab");
    refused("{}");
    refused("[1, 2]");
    refused(&"[".repeat(100_000));
    let whole = read("clip").to_string();
    refused(&whole[..whole.len() / 2]);
    refused(&std::fs::read_to_string(fixture("clip").join("../../../../models/small/vocab.txt")).expect("reads"));
    edited(&|content| content["model"]["type"] = json!("Magic"));
    edited(&|content| content["model"]["unk_id"] = json!(1_000_000));
    // Without an id for the unknown, a feed has texts that cannot be tokenised.
    assert!(edited(&|content| content["model"]["unk_id"] = Value::Null).contains("cannot tokenise"));
    edited(&|content| content["model"]["vocab"] = json!([]));
    edited(&|content| content["model"]["vocab"] = json!([["a", "b"]]));
    edited(&|content| content["normalizer"]["precompiled_charsmap"] = json!("no base64"));
    edited(&|content| content["post_processor"]["special_tokens"] = json!({}));
    edited(&|content| {
        content["pre_tokenizer"] =
            json!({"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Removed", "invert": true})
    });
    let mut bpe = read("clip");
    bpe["model"]["merges"] = json!([["no", "such"]]);
    refused(&bpe.to_string());
}

/// Found to panic in the crate: the file is refused, or the text is, and the program goes on.
#[test]
fn what_the_crate_panics_over_is_an_error() {
    assert_eq!(guarded::<()>(|| panic!("on purpose")), Err("the tokenizers crate panicked over it".to_owned()));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tokenizer.json");
    // The map's length, in its first bytes, is beyond its end.
    let mut content = read("xlm-roberta");
    for charsmap in ["/////w==", "AAAA", "BAAAAAAAAAA=", "CAAAAP////////8="] {
        content["normalizer"]["precompiled_charsmap"] = json!(charsmap);
        std::fs::write(&file, content.to_string()).expect("writes");
        if let Ok(tokenizer) = HuggingFace::load(&file, 77) {
            for text in ["a", "日落", "ﬁ\u{3000}ｆ\u{10ffff}"] {
                let _ = tokenizer.encode(text);
            }
        }
    }
}

#[test]
fn context_without_room_and_missing_files_are_clear_errors() {
    let refused =
        |file: PathBuf, context_length| format!("{:#}", HuggingFace::load(&file, context_length).expect_err("refused"));
    let error = refused(fixture("clip").join("tokenizer.json"), 2);
    assert!(error.contains("puts 2 ids round a text: in a context of 2"), "{error}");
    assert!(refused(PathBuf::from("nowhere/tokenizer.json"), 77).contains("nowhere/tokenizer.json"));
    assert!(refused(fixture("clip"), 77).contains("tokenizer_json/clip"));
}
