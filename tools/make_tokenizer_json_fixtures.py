#!/usr/bin/env python3
"""Writes tests/fixtures/tokenizer_json: small tokenizers in the configurations that models ship with, and texts with the ids
that Hugging Face's Python package gives.

    pip install tokenizers==0.22.2 sentencepiece
    tools/make_tokenizer_json_fixtures.py [--clip-vocabulary bpe_simple_vocab_16e6.txt.gz --out FOLDER]

Vocabularies are learned from the captions of the demo, so nothing of others is copied. With --clip-vocabulary (the wheel
open_clip_torch has it) OpenAI's own goes into FOLDER/clip, for a comparison at true size.
"""

import argparse
import gzip
import json
import random
import tempfile
from pathlib import Path

import sentencepiece
import sentencepiece.sentencepiece_model_pb2 as sentencepiece_model
from make_tokenizer_fixtures import BY_HAND, random_text
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

ROOT = Path(__file__).resolve().parent.parent
RANDOM_TEXTS = 150
START, END = "<|startoftext|>", "<|endoftext|>"
# OpenAI's pattern, as transformers converts it.
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# What sentencepiece's nmt_nfkc does, in small: full-width forms, a ligature, an ideographic space, a zero-width space.
NORMALISATION = [(chr(0xFEE0 + code), chr(code)) for code in range(0x21, 0x7F)] + [("ﬁ", "fi"), ("\u3000", " "), ("\u200b", "")]


def corpus() -> list[str]:
    lines = (ROOT / "demo/feed.jsonl").read_text(encoding="utf-8").splitlines()
    captions = [json.loads(line).get("caption") or "" for line in lines if line.startswith("{") and line.endswith("}")]
    words = "a photo of the sun setting over the sea, running dogs and flying birds; don't we've it's they'll I'm you'd"
    return captions[:600] + [words] * 20


def clip_parts(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(CLIP_WORDS), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def clip_merges(vocabulary: str | None) -> list[tuple[str, str]]:
    if vocabulary:
        lines = gzip.open(vocabulary, "rt", encoding="utf-8").read().split("\n")
        return [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    clip_parts(trained)
    trainer = trainers.BpeTrainer(vocab_size=1200, end_of_word_suffix="</w>", show_progress=False)
    trained.train_from_iterator(corpus(), trainer)
    return [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]


def bytes_in_openais_order() -> list[str]:
    """bytes_to_unicode() of OpenAI's simple_tokenizer.py: the printable bytes first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def clip(vocabulary: str | None) -> Tokenizer:
    merges = clip_merges(vocabulary)
    letters = bytes_in_openais_order()
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(merge) for merge in merges] + [START, END]
    ids = {token: index for index, token in enumerate(tokens)}
    model = models.BPE(
        vocab=ids, merges=merges, continuing_subword_prefix="", end_of_word_suffix="</w>", fuse_unk=False, unk_token=END
    )
    tokenizer = Tokenizer(model)
    clip_parts(tokenizer)
    tokenizer.post_processor = processors.RobertaProcessing(
        sep=(END, ids[END]), cls=(START, ids[START]), add_prefix_space=False, trim_offsets=False
    )
    tokenizer.add_special_tokens([AddedToken(START, normalized=True, special=True), AddedToken(END, special=True)])
    return tokenizer


def charsmap() -> bytes:
    """Sentencepiece compiles its rules of normalisation while it trains."""
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder, "rules.tsv")
        hexadecimal = lambda text: " ".join(f"{ord(character):X}" for character in text)
        rules.write_text("".join(f"{hexadecimal(before)}\t{hexadecimal(after)}\n" for before, after in NORMALISATION))
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus()), model_prefix=f"{folder}/m", vocab_size=2000, minloglevel=2,
            normalization_rule_tsv=str(rules), hard_vocab_limit=False,
        )
        model = sentencepiece_model.ModelProto()
        model.ParseFromString(Path(folder, "m.model").read_bytes())
        return model.normalizer_spec.precompiled_charsmap


def xlm_roberta() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Precompiled(charsmap())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=2000, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return tokenizer


def bert() -> Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=1500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def write(folder: Path, tokenizer: Tokenizer, context_length: int, random_texts: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    tokenizer.enable_truncation(context_length)
    draw = random.Random(5)
    texts = BY_HAND + ["a photo of the sun " * 60, "日落" * 100, "sun<|endoftext|>sea", "a <s> b </s> <pad> <mask> c"]
    with open(folder / "cases.jsonl", "w", encoding="utf-8") as out:
        for text in texts + [random_text(draw) for _ in range(random_texts)]:
            out.write(json.dumps({"text": text, "ids": tokenizer.encode(text).ids}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip-vocabulary", metavar="FILE")
    parser.add_argument("--out", type=Path, default=ROOT / "tests/fixtures/tokenizer_json", metavar="FOLDER")
    options = parser.parse_args()
    if options.clip_vocabulary:
        write(options.out / "clip", clip(options.clip_vocabulary), 77, 20_000)
        return
    write(options.out / "clip", clip(None), 77, RANDOM_TEXTS)
    write(options.out / "xlm-roberta", xlm_roberta(), 77, RANDOM_TEXTS)
    write(options.out / "bert", bert(), 52, RANDOM_TEXTS)


main()
