use std::path::PathBuf;

use super::*;

const SMALL: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n雨\nun\n##aff\n##able\n.\n\u{2028}\n##\u{2028}\n";

fn shipped() -> Tokenizer {
    let vocabulary = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/small/vocab.txt");
    Tokenizer::load(&vocabulary, 52).expect("the shipped vocabulary loads")
}

#[derive(serde::Deserialize)]
struct Case {
    text: String,
    ids: Vec<i64>,
}

/// Compares a file that `tools/make_tokenizer_fixtures.py` wrote. Returns the number of cases and the texts that differ.
fn compare_with_cn_clip(file: &Path) -> (usize, Vec<String>) {
    let tokenizer = shipped();
    let lines = std::fs::read_to_string(file).expect("the fixture");
    let cases = lines.lines().map(|line| serde_json::from_str::<Case>(line).expect("a case"));
    let (mut count, mut differing) = (0, Vec::new());
    for case in cases {
        count += 1;
        if tokenizer.encode(&case.text).expect("tokenises").ids != case.ids {
            differing.push(case.text);
        }
    }
    (count, differing)
}

#[test]
fn ids_equal_cn_clips() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer.jsonl");
    assert_eq!(compare_with_cn_clip(&file), (300, vec![]));
}

/// `tools/make_tokenizer_fixtures.py CN_CLIP --random 40000 FILE` or `--characters FILE`, then
/// FEEDLENS_TEST_TOKENIZER=FILE.
#[test]
#[ignore = "needs a file that tools/make_tokenizer_fixtures.py has written"]
fn many_texts_give_cn_clips_ids() {
    let file = std::env::var("FEEDLENS_TEST_TOKENIZER").expect("FEEDLENS_TEST_TOKENIZER names the file");
    let (count, mut differing) = compare_with_cn_clip(&PathBuf::from(file));
    // A spacing mark in Unicode 14, which Python 3.11 has, and a nonspacing one since.
    differing.retain(|text| !text.contains('\u{1171e}'));
    for text in &differing {
        eprintln!("differs: {}", text.escape_unicode());
    }
    eprintln!("{count} texts, {} differ", differing.len());
    assert!(count > 0 && differing.is_empty());
}

#[test]
fn shipped_vocabulary_is_chinese_berts() {
    let tokenizer = shipped();
    assert_eq!(tokenizer.vocabulary_size(), 21_128);
    assert_eq!(tokenizer.encode("").expect("tokenises").ids, [101, 102]);
}

#[test]
fn pieces_are_found_longest_first() {
    let tokenizer = Tokenizer::parse(SMALL, 8).expect("parses");
    assert_eq!(tokenizer.encode("Unaffable.雨").expect("tokenises").ids, [2, 5, 6, 7, 8, 4, 3]);
    assert_eq!(tokenizer.encode("unaffablex un").expect("tokenises").ids, [2, 1, 5, 3]);
}

#[test]
fn text_is_cut_to_the_context() {
    let tokenizer = Tokenizer::parse(SMALL, 4).expect("parses");
    assert_eq!(tokenizer.encode("unaffable").expect("tokenises").ids, [2, 5, 6, 3]);
    assert_eq!(tokenizer.encode(&"雨".repeat(100_000)).expect("tokenises").ids, [2, 4, 4, 3]);
}

#[test]
fn no_text_is_a_special_token() {
    let ids = shipped().encode("[MASK][SEP]").expect("tokenises").ids;
    assert!(!ids.contains(&103) && ids.iter().filter(|id| **id == 102).count() == 1, "{ids:?}");
}

#[test]
fn faulty_vocabulary_is_a_clear_error() {
    for (vocabulary, mentions) in [
        ("[PAD]\n[UNK]\n[CLS]\n", "[SEP]"),
        ("[UNK]\n[CLS]\n[SEP]\na\na\n", "\"a\" is there twice, as ids 3 and 4"),
        ("", "[UNK]"),
    ] {
        let error = format!("{:#}", Tokenizer::parse(vocabulary, 52).expect_err(mentions));
        assert!(error.contains(mentions), "{error}");
    }
    assert!(Tokenizer::parse(SMALL, 2).is_err());
    let missing = format!("{:#}", Tokenizer::load(Path::new("nowhere/vocab.txt"), 52).expect_err("no file"));
    assert!(missing.contains("nowhere/vocab.txt"), "{missing}");
}

proptest::proptest! {
    #[test]
    fn every_text_gives_ids_of_the_vocabulary(text in ".{0,80}") {
        let tokenizer = Tokenizer::parse(SMALL, 10).expect("parses");
        let ids = tokenizer.encode(&text).expect("tokenises").ids;
        proptest::prop_assert!((2..=10).contains(&ids.len()));
        proptest::prop_assert!(ids.iter().all(|id| (0..11).contains(id)));
        proptest::prop_assert_eq!((ids[0], ids[ids.len() - 1]), (2, 3));
    }
}
