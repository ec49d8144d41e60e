#!/usr/bin/env python3
"""Makes a feedlens model bundle from Chinese-CLIP weights.

    python3 -m venv .cache/chinese_clip && . .cache/chinese_clip/bin/activate
    pip install -r tools/chinese_clip/requirements.txt && pip install --no-deps cn-clip==1.6.0
    tools/export_chinese_clip.py --arch ViT-B-16 --checkpoint clip_cn_vit-b-16.pt --precision fp32 --out DIR

The checkpoint is what cn_clip published (clip_cn_*.pt) or saved while fine-tuning, flash attention or not. The graphs
take any batch and any text length up to 52, and are compared here with PyTorch before the bundle gets its name: DIR
appears only when all is well. fp16 suits GPUs, int8 CPUs. --random-weights SEED needs no checkpoint and gives vectors
without meaning: for tests of speed and agreement. Exit code 1: the reason is the last line.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from chinese_clip import graphs, reference
from chinese_clip.reference import CONTEXT_LENGTH, WrongInput, unit

# Largest difference of a value of the normalised vectors to PyTorch in fp32, and least cosine.
TOLERANCES = {"fp32": (1e-4, 0.99999), "fp16": (1e-2, 0.999), "int8": (0.1, 0.95)}
GOLDEN_TEXTS = ["雨后的彩虹", "一只会飞的动物", "a photo of a bicycle"]
GOLDEN_IMAGES = [Path(__file__).parent.parent / "demo/images" / f"{name}.png" for name in ("1f34e", "1f6b2")]
CHECKED_TEXTS = GOLDEN_TEXTS + ["", "狗", "海边的日落", "今天买了甜瓜，脆甜多汁", "杰尼龟是一种小乌龟，会用水攻击敌人。" * 4]
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


class Disagreement(Exception):
    """The graphs do not give PyTorch's vectors."""


def compare(what, rows, expected, tolerance):
    difference = float(np.abs(unit(rows) - unit(expected)).max())
    cosine = float((unit(rows) * unit(expected)).sum(axis=1).min())
    print(f"{what:32} largest difference {difference:.2e}, least cosine {cosine:.7f}")
    if not (difference <= tolerance[0] and cosine >= tolerance[1]):
        raise Disagreement(f"{what}: largest difference {difference:.2e} (at most {tolerance[0]}), least cosine "
                           f"{cosine:.7f} (at least {tolerance[1]}); nothing was written")


def check_images(model, folder, tolerance):
    tower = graphs.session(folder / "image.onnx")
    transform = reference.clip.image_transform(model.visual.input_resolution)
    photos = [transform(Image.open(file)) for file in GOLDEN_IMAGES]
    noise = torch.randn(6, *photos[0].shape, generator=torch.Generator().manual_seed(0))
    pictures = torch.cat([torch.stack(photos), noise])
    expected = reference.image_features(model, pictures)
    for batch in (1, 3, len(pictures)):
        parts = [graphs.run(tower, "image", pictures[at:at + batch]) for at in range(0, len(pictures), batch)]
        compare(f"pictures, batch {batch}", np.concatenate(parts), expected, tolerance)
    return expected[:len(GOLDEN_IMAGES)]


def check_texts(model, folder, tolerance):
    tower = graphs.session(folder / "text.onnx")
    tokens = reference.clip.tokenize(CHECKED_TEXTS, CONTEXT_LENGTH)
    lengths = (tokens != 0).sum(axis=1)
    expected = reference.text_features(model, tokens)
    for batch in (1, 3, len(tokens)):
        for trimmed in (True, False):
            parts = []
            for at in range(0, len(tokens), batch):
                longest = int(lengths[at:at + batch].max()) if trimmed else CONTEXT_LENGTH
                parts.append(graphs.run(tower, "text", tokens[at:at + batch, :longest]))
            what = f"texts, batch {batch}, {'trimmed' if trimmed else 'padded to 52'}"
            compare(what, np.concatenate(parts), expected, tolerance)
    return expected[:len(GOLDEN_TEXTS)]


def write_golden(folder, images, texts, tolerance):
    """Files and texts with PyTorch's vectors, by cn_clip's own transform and tokenizer."""
    def items(key, features):
        return [{key: item, "vector": [round(float(value), 6) for value in unit(row)]} for item, row in features.items()]

    golden = {"texts": items("text", texts), "images": items("file", images), "tolerance": tolerance}
    (folder / "golden.json").write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def write_toml(folder, ident, model, vocab_size, precision):
    lines = [
        f'id = "{ident}"', 'family = "chinese-clip"', f"dimension = {model.text_projection.shape[1]}",
        f"resolution = {model.visual.input_resolution}", f"mean = {MEAN}", f"std = {STD}",
        f"context_length = {CONTEXT_LENGTH}", f"vocab_size = {vocab_size}",
        f"logit_scale = {model.logit_scale.exp().item():.4f}", 'resize = "bicubic"', f'precision = "{precision}"',
    ]
    for tower, (name_in, name_out) in graphs.NAMES.items():
        lines += ["", f"[{tower}]", f'file = "{tower}.onnx"', f'input = "{name_in}"', f'output = "{name_out}"']
    (folder / "model.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def export(arguments, out, partial):
    arch, precision = arguments.arch, arguments.precision
    if arguments.checkpoint:
        model = reference.from_checkpoint(arch, arguments.checkpoint)
        source = reference.checkpoint_hash(arguments.checkpoint)
    else:
        model = reference.from_seed(reference.configuration(arch), arguments.random_weights)
        source = f"random-{arguments.random_weights}"
    tolerance = TOLERANCES[precision]
    for tower in graphs.NAMES:
        graphs.write_tower(model, tower, precision, partial)
    images, texts = check_images(model, partial, tolerance), check_texts(model, partial, tolerance)
    shutil.copyfile(reference.VOCABULARY, partial / "vocab.txt")
    (partial / "golden").mkdir()
    for file in GOLDEN_IMAGES:
        shutil.copyfile(file, partial / "golden" / file.name)
    files = [f"golden/{file.name}" for file in GOLDEN_IMAGES]
    write_golden(partial, dict(zip(files, images)), dict(zip(GOLDEN_TEXTS, texts)), tolerance[0])
    ident = f"chinese-clip-{arch.lower()}-{source}-{precision}"
    write_toml(partial, ident, model, reference.configuration(arch)["vocab_size"], precision)
    # An empty folder may be in the way; a full one was refused at the start.
    os.replace(partial, out)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out}: {ident}, {size / 1e6:.0f} MB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", required=True, choices=reference.ARCHITECTURES)
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument("--checkpoint", type=Path, metavar="FILE")
    weights.add_argument("--random-weights", type=int, metavar="SEED")
    parser.add_argument("--precision", default="fp32", choices=tuple(TOLERANCES))
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="must not exist, or be empty")
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        sys.exit(f"{out} exists already; remove it or give another --out")
    # A fixed name: what a killed run left is taken away by the next one.
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        export(arguments, out, partial)
    except (WrongInput, Disagreement) as error:
        sys.exit(str(error))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


if __name__ == "__main__":
    main()
