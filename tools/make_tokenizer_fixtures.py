#!/usr/bin/env python3
"""Compares feedlens's tokenizer with Chinese-CLIP's own, and writes the fixtures of its tests.

    tools/make_tokenizer_fixtures.py                        # writes tests/fixtures/tokenizer.jsonl and characters.crc
    tools/make_tokenizer_fixtures.py --differential 100000  # compares so many random texts, and every character

--differential drives `feedlens model tokenize` (--feedlens FILE, default target/release/feedlens) and exits with 1 where
an id differs. --seed N draws other texts.

Needs the package's sources, no PyTorch: `pip install --no-deps cn-clip six`, or --cn-clip FOLDER (an unzipped wheel). The
fixtures were made with cn-clip 1.6.0 and Python 3.11. cn_clip asks Python's `unicodedata`, so what it makes of marks,
punctuation and format characters younger than Unicode 14 depends on the version of Python; feedlens does as 3.11 does. With
another version, --differential lists the characters that this Python treats otherwise, and passes over texts that have them.
"""

import argparse
import importlib.util
import json
import random
import subprocess
import sys
import threading
import unicodedata
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONTEXT_LENGTH = 52
UNICODE = "14.0.0"
RANDOM_FIXTURES = 600

BY_HAND = [
    "", " ", "\t\n\r", "雨后的彩虹", "海边的日落", "a flying animal", "Hello, World!", "[MASK]", "[CLS] [SEP] [UNK] [PAD]",
    "##ing", "# # #", "naïve café Ünïcödé", "ΑΣ ΌΔΟΣ ΣΑΣ Σ ΑΣ. ΑΣΑ ΑΣ\u0301 Σ\u00ad", "İstanbul I ı ſ K Å ß ẞ", "ﬁne ﬂow",
    "ｆｕｌｌ　ｗｉｄｔｈ，。！", "あいう カタカナ がぎぐ 한국어 각", "👍🏽👨‍👩‍👧‍👦🇨🇳❤️", "a\u0000b\ufffdc", "zero\u200bwidth\u200djoiner\ufeff",
    "line\u2028separator\u2029paragraph", "\u2028", "\u2028\u2028", "nbsp\u00a0ideographic\u3000space\u2003em", "\u0085next\u001cline",
    "\ue000private\uf8ff", "𠀀𪜀𫝀𫠠𬺰丽𰀀", "豈更車 㐀䶿 鿿", "x" * 199, "x" * 200, "x" * 201, "é" * 200, "é" * 201, "é" * 200 + "\u0301",
    "각" * 67, "字" * 60, "a" * 200 + "," + "b" * 201, "unaffable running runner", "3.14 1,000 50% $5 €5 ￥5",
    "@user #话题# http://t.cn/A6x?y=z&w=1", "don't it's we’re “quoted” ‘single’ «angles» 「かぎ」『二重』", "a_b-c+d=e|f~g`h^i",
    "ĳ ǆ ǅ ǈ", "é e\u0301 \u0301e", "٠١٢ १२३ ๑๒๓", "Ⅷ ⅷ ① ㈱ ㎏ ﷺ", "한글\u1100\u1161", "क्षि नमस्ते", "ภาษาไทย", "עברית עִבְרִית",
    "العَرَبِيَّة", "\u1e9b\u0323", "𝓗𝓮𝓵𝓵𝓸", "<S> <T> [unused1]", "a" + "\u0301" * 300, "Σ’Σ aΣ’a Σ'Σ", "\u1fef\u037e\u0387",
    "\U0001171e aΣ\U0001171e", "\U0001d15e\U0001d165\U0001d16d", "𞤀𞤁 𐐀𐐨 Ⴀⴀ Აა", "\U0001fae8\U0001e4ec\u0ecf a\u0eceb", "\uffff\ufffe\U0010ffff",
]

POOLS = [
    (0x20, 0x7F, 8), (0x4E00, 0x9FFF, 8), (0x00, 0x20, 1), (0x80, 0x250, 3), (0x250, 0x370, 1), (0x300, 0x370, 2), (0x370, 0x530, 2),
    (0x530, 0x1100, 2), (0x1100, 0x1E00, 1), (0x1E00, 0x2000, 2), (0x2000, 0x2070, 3), (0x2070, 0x2E80, 1), (0x2E80, 0x3400, 2),
    (0x3400, 0x4DC0, 1), (0xA000, 0xAC00, 1), (0xAC00, 0xD7B0, 1), (0xE000, 0xF900, 1), (0xF900, 0xFB00, 1), (0xFB00, 0x10000, 2),
    (0x10000, 0x1F000, 1), (0x1F000, 0x1FB00, 3), (0x20000, 0x31350, 2), (0xE0000, 0xE0200, 1), (0xF0000, 0x110000, 1),
    (0x10000, 0x110000, 1),
]
WORDS = [
    "the", "Running", "unbelievable", "PHOTO", "[MASK]", "[SEP]", "天气", "的", "Σ", "ΟΔΟΣ", "İ", "##a", "2026", "...", " ", "  ",
    "\n", "x" * 199, "ab" * 100, "émigré", "👨‍👩‍👧", "❤️", "\u2028",
]


def random_text(draw: random.Random) -> str:
    weights = [weight for _, _, weight in POOLS]
    parts = []
    for _ in range(draw.choice([1, 2, 3, 5, 8, 20, 60])):
        if draw.random() < 0.2:
            parts.append(draw.choice(WORDS))
            continue
        low, high, _ = draw.choices(POOLS, weights)[0]
        parts.append("".join(chr(draw.randrange(low, high)) for _ in range(draw.choice([1, 1, 2, 4, 12]))))
        if draw.random() < 0.3:
            parts.append(" ")
    return "".join(parts)


def characters() -> range:
    """Every code point but surrogates, which UTF-8 does not have."""
    return (*range(0xD800), *range(0xE000, 0x110000))


def around(character: str) -> str:
    """A character alone, within a word, and beside a sigma, whose lower case depends on its neighbours."""
    return f"{character} ab{character}cd aΣ{character} aΣ{character}a {character}Σ a{character}Σ"


def load_reference(folder: str | None):
    """cn_clip's tokenizer as a function from a text to its ids; the package itself would import PyTorch."""
    found = None if folder else importlib.util.find_spec("cn_clip")
    if not folder and not found:
        sys.exit("cn_clip is not installed: pip install --no-deps cn-clip six, or name its folder with --cn-clip")
    file = Path(folder or found.submodule_search_locations[0]) / "clip/bert_tokenizer.py"
    specification = importlib.util.spec_from_file_location("bert_tokenizer", file)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    tokenizer = module.FullTokenizer()
    start, end = tokenizer.vocab["[CLS]"], tokenizer.vocab["[SEP]"]
    return lambda text: [start, *tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))[: CONTEXT_LENGTH - 2], end]


def write_fixtures(reference) -> None:
    if unicodedata.unidata_version != UNICODE:
        sys.exit(f"this Python has Unicode {unicodedata.unidata_version}; the fixtures are of {UNICODE}: use Python 3.11")
    draw = random.Random(7)
    with open(ROOT / "tests/fixtures/tokenizer.jsonl", "w", encoding="utf-8") as out:
        for text in BY_HAND + [random_text(draw) for _ in range(RANDOM_FIXTURES)]:
            out.write(json.dumps({"text": text, "ids": reference(text)}) + "\n")
    # A checksum for each 256 code points: the ids themselves would be 100 MB.
    with open(ROOT / "tests/fixtures/characters.crc", "w", encoding="ascii") as out:
        for block in range(0, 0x110000, 256):
            checksum = 0
            for code in range(block, block + 256):
                if not 0xD800 <= code < 0xE000:
                    checksum = zlib.crc32(repr(reference(around(chr(code)))).encode(), checksum)
            out.write(f"{checksum:08x}\n")


def tokenize(feedlens: str, model: str, texts: list[str]) -> list[list[int]]:
    """The ids that `feedlens model tokenize` gives."""
    process = subprocess.Popen(
        [feedlens, "model", "tokenize", "--model", model], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    )

    def feed() -> None:
        with process.stdin as stdin:
            stdin.writelines(json.dumps({"text": text}) + "\n" for text in texts)

    feeder = threading.Thread(target=feed)
    feeder.start()
    answers = [json.loads(line) for line in process.stdout]
    feeder.join()
    if process.wait() != 0 or len(answers) != len(texts):
        sys.exit(f"{feedlens} model tokenize gave {len(answers)} lines for {len(texts)} texts, exit code {process.returncode}")
    return [answer.get("ids", answer) for answer in answers]


def compare(reference, options) -> int:
    ours = lambda texts: tokenize(options.feedlens, options.model, texts)
    every = [chr(code) for code in characters()]
    otherwise = [
        character for character, ids in zip(every, ours([around(character) for character in every]))
        if ids != reference(around(character))
    ]
    print(f"{len(every)} characters, {len(otherwise)} differ")
    print("".join(f"  U+{ord(character):04X} {unicodedata.name(character, '')}\n" for character in otherwise[:200]), end="")

    draw = random.Random(options.seed)
    texts = BY_HAND + [random_text(draw) for _ in range(options.differential)]
    passed_over = set() if unicodedata.unidata_version == UNICODE else set(otherwise)
    kept = [text for text in texts if passed_over.isdisjoint(text)]
    differing = [(text, ids) for text, ids in zip(kept, ours(kept)) if ids != reference(text)]
    for text, ids in differing[:20]:
        print(f"  {text!a}\n    cn_clip  {reference(text)}\n    feedlens {ids}")
    print(f"{len(kept)} texts, {len(differing)} differ; Python's Unicode is {unicodedata.unidata_version}")
    if passed_over:
        print(f"{len(texts) - len(kept)} texts passed over: this Python's Unicode is not {UNICODE}, see --help")
    return 1 if differing or (otherwise and not passed_over) else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--differential", type=int, metavar="COUNT")
    parser.add_argument("--feedlens", default=str(ROOT / "target/release/feedlens"), metavar="FILE")
    parser.add_argument("--model", default=str(ROOT / "models/small"), metavar="DIR")
    parser.add_argument("--cn-clip", metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    reference = load_reference(options.cn_clip)
    if options.differential is None:
        write_fixtures(reference)
        return 0
    return compare(reference, options)


if __name__ == "__main__":
    sys.exit(main())
