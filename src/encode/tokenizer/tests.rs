use std::path::PathBuf;

use super::*;

const SMALL: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n雨\nun\n##aff\n##able\n.\n\u{2028}\n##\u{2028}\nσ\n##σ\n##ς\n";

fn repository(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

fn shipped() -> Tokenizer {
    Tokenizer::load(&repository("models/small/vocab.txt"), 52).expect("the shipped vocabulary loads")
}

fn small(context_length: usize) -> WordPiece {
    WordPiece::parse(SMALL, context_length).expect("parses")
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<i64> {
    tokenizer.encode(text).expect("tokenises").ids
}

#[derive(serde::Deserialize)]
struct Case {
    text: String,
    ids: Vec<i64>,
}

/// Texts of a fixture whose ids differ, of how many.
fn differing(tokenizer: &Tokenizer, file: &str) -> (Vec<String>, usize) {
    let lines = std::fs::read_to_string(repository(file)).expect("the fixture");
    let cases: Vec<Case> = lines.lines().map(|line| serde_json::from_str(line).expect("a case")).collect();
    let differ = cases.iter().filter(|case| ids(tokenizer, &case.text) != case.ids);
    (differ.map(|case| case.text.clone()).collect(), cases.len())
}

/// `tools/make_tokenizer_fixtures.py` wrote cn_clip's ids, and with --differential compares as many texts as one likes.
#[test]
fn ids_equal_cn_clips() {
    let (differ, of) = differing(&shipped(), "tests/fixtures/tokenizer.jsonl");
    assert!(of > 600 && differ.is_empty(), "{} of {of}: {differ:?}", differ.len());
}

/// Every code point, alone, within a word, and where it decides on the form of a sigma: the same tool wrote a checksum of
/// cn_clip's ids for each 256.
#[test]
fn every_character_gives_cn_clips_ids() {
    let checksums = std::fs::read_to_string(repository("tests/fixtures/characters.crc")).expect("the fixture");
    let tokenizer = shipped();
    let mut blocks = 0;
    for (block, expected) in checksums.lines().enumerate() {
        let mut checksum = crc32fast::Hasher::new();
        let codes = block as u32 * 256..(block as u32 + 1) * 256;
        for c in codes.filter_map(char::from_u32) {
            let text = format!("{c} ab{c}cd aΣ{c} aΣ{c}a {c}Σ a{c}Σ");
            checksum.update(format!("{:?}", ids(&tokenizer, &text)).as_bytes());
        }
        assert_eq!(format!("{:08x}", checksum.finalize()), expected, "a character from U+{:04X} on", block * 256);
        blocks += 1;
    }
    assert_eq!(blocks, 0x1100);
}

#[test]
fn shipped_vocabulary_is_chinese_berts() {
    let tokenizer = shipped();
    assert_eq!((tokenizer.vocabulary_size(), tokenizer.padding_id()), (21_128, 0));
    assert_eq!(ids(&tokenizer, ""), [101, 102]);
}

#[test]
fn pieces_are_found_longest_first() {
    assert_eq!(small(8).encode("Unaffable.雨"), [2, 5, 6, 7, 8, 4, 3]);
    assert_eq!(small(8).encode("unaffablex un"), [2, 1, 5, 3]);
}

#[test]
fn sigmas_form_depends_on_the_whole_word() {
    // Final, though punctuation and marks follow; not final before a letter; the word before a space does not count.
    assert_eq!(small(20).encode("ΣΣ ΣΣ. ΣΣ\u{301} ΣΣΣ Σ"), [2, 11, 13, 11, 13, 8, 11, 13, 11, 12, 13, 11, 3]);
}

#[test]
fn text_is_cut_to_the_context() {
    assert_eq!(small(4).encode("unaffable"), [2, 5, 6, 3]);
    assert_eq!(small(4).encode(&"雨".repeat(100_000)), [2, 4, 4, 3]);
    assert_eq!(small(4).encode(&"Σ.".repeat(100_000)), [2, 11, 8, 3]);
}

#[test]
fn words_beyond_200_characters_are_unknown() {
    let tokenizer = WordPiece::parse("[UNK]\n[CLS]\n[SEP]\na\n##a\n", 300).expect("parses");
    assert_eq!(tokenizer.encode(&"a".repeat(200)).len(), 202);
    assert_eq!(tokenizer.encode(&"a".repeat(201)), [1, 0, 2]);
    // As counted when marks are gone.
    assert_eq!(tokenizer.encode(&"á".repeat(200)).len(), 202);
}

#[test]
fn no_text_is_a_special_token() {
    let ids = ids(&shipped(), "[MASK][SEP]");
    assert!(!ids.contains(&103) && ids.iter().filter(|id| **id == 102).count() == 1, "{ids:?}");
}

#[test]
fn faulty_vocabulary_is_a_clear_error() {
    for (vocabulary, mentions) in [
        ("[PAD]\n[UNK]\n[CLS]\n", "[SEP]"),
        ("[UNK]\n[CLS]\n[SEP]\na\na\n", "\"a\" is there twice, as ids 3 and 4"),
        ("", "[UNK]"),
    ] {
        let error = format!("{:#}", WordPiece::parse(vocabulary, 52).expect_err(mentions));
        assert!(error.contains(mentions), "{error}");
    }
    assert!(WordPiece::parse(SMALL, 2).is_err());
    let missing = format!("{:#}", Tokenizer::load(Path::new("nowhere/vocab.txt"), 52).expect_err("no file"));
    assert!(missing.contains("nowhere/vocab.txt"), "{missing}");
}

proptest::proptest! {
    #[test]
    fn every_text_gives_ids_of_the_vocabulary(text in ".{0,80}") {
        let ids = small(10).encode(&text);
        proptest::prop_assert!((2..=10).contains(&ids.len()));
        proptest::prop_assert!(ids.iter().all(|id| (0..14).contains(id)));
        proptest::prop_assert_eq!((ids[0], ids[ids.len() - 1]), (2, 3));
    }
}
