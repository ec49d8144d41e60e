#!/usr/bin/env python3
"""Writes tests/fixtures/parity/{resnet,vit}/: bundles of Chinese-CLIP's two kinds of picture tower and its text tower in
cn_clip's own code, reduced to 100 KB, with vectors from PyTorch.

The widths, depths, vocabulary and weights are not Chinese-CLIP's; everything else is: modules, export, tokenizer,
transform. `tools/check_parity.py` does the same with the true architectures.

    pip install -r tools/chinese_clip/requirements.txt && pip install --no-deps cn-clip==1.6.0
    tools/make_parity_fixtures.py
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from cn_clip.clip.bert_tokenizer import FullTokenizer
from PIL import Image

import export_chinese_clip as exporter
from chinese_clip import graphs, reference

ROOT = Path(__file__).parent.parent
OUT = ROOT / "tests/fixtures/parity"
TEXT = {
    "vocab_size": 0, "text_attention_probs_dropout_prob": 0.1, "text_hidden_act": "gelu",
    "text_hidden_dropout_prob": 0.1, "text_hidden_size": 16, "text_initializer_range": 0.02,
    "text_intermediate_size": 32, "text_max_position_embeddings": 52, "text_num_attention_heads": 2,
    "text_num_hidden_layers": 2, "text_type_vocab_size": 2,
}
PICTURE = {
    "resnet": {"embed_dim": 16, "image_resolution": 64, "vision_layers": [1, 2, 1, 1], "vision_width": 2,
               "vision_patch_size": None, "vision_head_width": 16},
    "vit": {"embed_dim": 24, "image_resolution": 32, "vision_layers": 2, "vision_width": 16, "vision_patch_size": 8,
            "vision_head_width": 8},
}
TEXTS = [
    "雨后的彩虹", "一只会飞的动物", "a photo of a bicycle", "", " ", "狗", "海边的日落", "今天买了甜瓜，脆甜多汁", "水",
    "[MASK]", "Hello, World!", "naïve café", "彩虹" * 25, "海边" * 30, "字" * 49, "字" * 50, "字" * 51, "x" * 201,
    "天气 weather 2026", "👍🏽 好", "a b c d e f g h i j", "买 买 买", "的", "日落" * 5, "甜甜甜甜", "photo", "。", "，，，",
    "飞", "动物 动物", "雨", "虹彩",
]
PICTURES = {
    "rgb.png": ("RGB", (90, 61)), "gray.png": ("L", (32, 200)), "alpha.png": ("RGBA", (70, 70)), "palette.png": ("P", (48, 33)),
    "tiny.png": ("RGB", (3, 2)), "same.png": ("RGB", (64, 64)), "wide.png": ("RGB", (300, 9)),
}


def vocabulary():
    """The pieces of TEXTS in cn_clip's vocabulary, with its special tokens first ([PAD] must be 0)."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    for text in TEXTS:
        pieces += reference.clip._tokenizer.tokenize(text)
    return list(dict.fromkeys(pieces))


def tokenize(tokenizer, texts):
    """cn_clip.clip.tokenize with another vocabulary."""
    rows = torch.zeros(len(texts), reference.CONTEXT_LENGTH, dtype=torch.long)
    for row, text in zip(rows, texts):
        ids = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))[:reference.CONTEXT_LENGTH - 2]
        ids = [tokenizer.vocab["[CLS]"], *ids, tokenizer.vocab["[SEP]"]]
        row[:len(ids)] = torch.tensor(ids)
    return rows


def write_pictures(folder):
    """Smooth noise, so that a resize matters and PNG stays small."""
    draw = np.random.default_rng(7)
    for name, (mode, (width, height)) in PICTURES.items():
        coarse = Image.fromarray(draw.integers(0, 256, size=(5, 6, 4), dtype=np.uint8), "RGBA")
        smooth = coarse.resize((width, height), Image.BICUBIC).quantize(48).convert("RGBA")
        if mode != "RGBA":
            smooth = smooth.convert("RGB").quantize(32) if mode == "P" else smooth.convert(mode)
        smooth.save(folder / name, optimize=True)


def write(kind, config, pieces):
    folder = OUT / kind
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "golden").mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    model = reference.from_seed(config | TEXT | {"vocab_size": len(pieces)}, seed=5)
    tokenizer = FullTokenizer(vocab_file=str(folder / "vocab.txt"))
    for tower in graphs.NAMES:
        graphs.write_tower(model, tower, "fp32", folder)
    write_pictures(folder / "golden")
    names = sorted(PICTURES)
    images = reference.image_features(model, [Image.open(folder / "golden" / name) for name in names])
    texts = reference.text_features(model, tokenize(tokenizer, TEXTS))
    exporter.write_golden(folder, {f"golden/{name}": row for name, row in zip(names, images)}, dict(zip(TEXTS, texts)), 1e-4)
    exporter.write_toml(folder, f"parity-{kind}", model, len(pieces), "fp32")
    for what, rows in (("pictures", images), ("texts", texts)):
        cosines = reference.unit(rows) @ reference.unit(rows).T
        different = cosines[~np.eye(len(rows), dtype=bool)]
        print(f"{kind}: cosines between different {what}: median {np.median(different):.3f}, most {different.max():.5f}")


def main():
    for kind, config in PICTURE.items():
        write(kind, config, vocabulary())


if __name__ == "__main__":
    main()
