#!/usr/bin/env python3
"""Writes tests/fixtures/tokenizer.jsonl: texts, and the ids that Chinese-CLIP's own tokenizer gives.

Needs the package's sources, no PyTorch: pip download --no-deps cn-clip, unzip the wheel (made with cn-clip 1.6.0).
Only characters that Python's Unicode tables know are used: what they do not know depends on the version of Python.

    tools/make_tokenizer_fixtures.py CN_CLIP_FOLDER [FILE]
    tools/make_tokenizer_fixtures.py CN_CLIP_FOLDER --random COUNT FILE   # a larger comparison
    tools/make_tokenizer_fixtures.py CN_CLIP_FOLDER --characters FILE     # every known character, alone and in a word
"""

import importlib.util
import json
import random
import sys
import unicodedata
from pathlib import Path

CONTEXT_LENGTH = 52

BY_HAND = [
    "", " ", "\t\n\r", "雨后的彩虹", "海边的日落", "a flying animal", "Hello, World!", "[MASK]", "[CLS] [SEP] [UNK] [PAD]",
    "##ing", "# # #", "naïve café Ünïcödé", "ΑΣ ΌΔΟΣ ΣΑΣ Σ ΑΣ. ΑΣΑ ΑΣ\u0301 Σ\u00ad", "İstanbul I ı ſ K Å ß ẞ", "ﬁne ﬂow",
    "ｆｕｌｌ　ｗｉｄｔｈ，。！", "あいう カタカナ がぎぐ 한국어 각", "👍🏽👨‍👩‍👧‍👦🇨🇳❤️", "a\u0000b\ufffdc", "zero\u200bwidth\u200djoiner\ufeff",
    "line\u2028separator\u2029paragraph", "nbsp\u00a0ideographic\u3000space\u2003em", "\u0085next\u001cline", "\ue000private\uf8ff",
    "𠀀𪜀𫝀𫠠𬺰丽𰀀", "豈更車 㐀䶿 鿿", "x" * 200, "x" * 201, "字" * 60, "unaffable running runner", "3.14 1,000 50% $5 €5 ￥5",
    "@user #话题# http://t.cn/A6x?y=z&w=1", "don't it's we're", "a_b-c+d=e|f~g`h^i", "ĳ ǆ ǅ ǈ", "é e\u0301 \u0301e", "٠١٢ १२३ ๑๒๓",
    "Ⅷ ⅷ ① ㈱ ㎏ ﷺ", "한글\u1100\u1161", "क्षि नमस्ते", "ภาษาไทย", "עברית עִבְרִית", "العَرَبِيَّة", "\u1e9b\u0323", "𝓗𝓮𝓵𝓵𝓸", "<S> <T> [unused1]", "a" + "\u0301" * 300,
]

POOLS = [
    (0x20, 0x7F, 8), (0x4E00, 0x9FFF, 8), (0x00, 0x20, 1), (0x80, 0x250, 3), (0x250, 0x370, 1), (0x300, 0x370, 2), (0x370, 0x530, 2),
    (0x530, 0x1100, 2), (0x1100, 0x1E00, 1), (0x1E00, 0x2000, 2), (0x2000, 0x2070, 3), (0x2070, 0x2E80, 1), (0x2E80, 0x3400, 2),
    (0x3400, 0x4DC0, 1), (0xA000, 0xAC00, 1), (0xAC00, 0xD7B0, 1), (0xE000, 0xF900, 1), (0xF900, 0xFB00, 1), (0xFB00, 0x10000, 2),
    (0x10000, 0x1F000, 1), (0x1F000, 0x1FB00, 3), (0x20000, 0x31350, 2), (0xE0000, 0xE0200, 1), (0xF0000, 0x110000, 1),
]
WORDS = ["the", "Running", "unbelievable", "PHOTO", "[MASK]", "[SEP]", "天气", "的", "Σ", "ΟΔΟΣ", "İ", "##a", "2026", "...", " ", "  ", "\n", "x" * 199, "ab" * 100, "émigré"]


def known(character: str) -> bool:
    return unicodedata.category(character) not in ("Cn", "Cs")


def random_text(draw: random.Random) -> str:
    weights = [weight for _, _, weight in POOLS]
    parts = []
    for _ in range(draw.choice([1, 2, 3, 5, 8, 20, 60])):
        if draw.random() < 0.2:
            parts.append(draw.choice(WORDS))
            continue
        low, high, _ = draw.choices(POOLS, weights)[0]
        run = [chr(draw.randrange(low, high)) for _ in range(draw.choice([1, 1, 2, 4, 12]))]
        parts.append("".join(filter(known, run)))
        if draw.random() < 0.3:
            parts.append(" ")
    return "".join(parts)


def main() -> None:
    folder, arguments = Path(sys.argv[1]), sys.argv[2:]
    specification = importlib.util.spec_from_file_location("bert_tokenizer", folder / "clip/bert_tokenizer.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    tokenizer = module.FullTokenizer()

    draw = random.Random(7)
    if arguments[:1] == ["--random"]:
        texts = (random_text(draw) for _ in range(int(arguments[1])))
        file = arguments[2]
    elif arguments[:1] == ["--characters"]:
        characters = filter(known, map(chr, (*range(0xD800), *range(0xE000, 0x110000))))
        texts = (f"{character} ab{character}cd Σ{character}" for character in characters)
        file = arguments[1]
    else:
        texts = BY_HAND + [random_text(draw) for _ in range(300 - len(BY_HAND))]
        default = Path(__file__).parent.parent / "tests/fixtures/tokenizer.jsonl"
        file = arguments[0] if arguments else default
    with open(file, "w", encoding="utf-8") as out:
        for text in texts:
            ids = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))[: CONTEXT_LENGTH - 2]
            out.write(json.dumps({"text": text, "ids": [tokenizer.vocab["[CLS]"], *ids, tokenizer.vocab["[SEP]"]]}) + "\n")


main()
