#!/usr/bin/env python3
"""Compares feedlens with cn_clip in PyTorch, from picture files and raw texts to vectors, and prints a table.

    make build
    pip install -r tools/chinese_clip/requirements.txt && pip install --no-deps cn-clip==1.6.0
    tools/export_chinese_clip.py --arch ViT-B-16 --checkpoint clip_cn_vit-b-16.pt --precision fp32 --out DIR
    tools/check_parity.py --arch ViT-B-16 --checkpoint clip_cn_vit-b-16.pt DIR [DIR ...] [--pictures FOLDER]

Each DIR is a bundle of these weights, in any precision (--random-weights SEED where it was exported with it). cn_clip
tokenizes, pads to 52, transforms and computes in fp32; feedlens runs as `feedlens embed`, in batches of 32 with texts
trimmed, and one by one. Pictures are those of a folder; without one, the demo's and some that are made here, JPEG among
them. Exit code 1 where fp32 or fp16 is outside what feedlens promises; int8 is reported.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from chinese_clip import reference
from chinese_clip.reference import unit

ROOT = Path(__file__).parent.parent
PROMISES = {"fp32": (1e-4, 0.99999), "fp16": (float("inf"), 0.999)}
TEXTS = 96


def texts():
    """The first captions of the demo's feed, and what is hard in a text."""
    lines = (ROOT / "demo/feed.jsonl").read_text(encoding="utf-8").splitlines()[:TEXTS]
    captions = [json.loads(line).get("caption", "") for line in lines]
    hard = ["", " ", "[MASK] [SEP]", "naïve café ΑΣ", "x" * 201, "字" * 60, "👍🏽👨‍👩‍👧", "a\u2028b", "http://t.cn/A6x #话题# @某人"]
    return [caption for caption in captions if caption][:TEXTS - len(hard)] + hard


def made_pictures(folder):
    """Some of the demo's, and smooth noise in the formats, modes and sizes that feeds hold."""
    files = sorted((ROOT / "demo/images").glob("*.png"))[::120]
    draw = np.random.default_rng(11)
    cases = [("RGB", (640, 427), "jpg"), ("RGB", (1280, 854), "jpg"), ("RGB", (333, 500), "jpg"), ("L", (300, 300), "jpg"),
             ("RGB", (224, 224), "png"), ("RGB", (1, 1), "png"), ("RGB", (1, 900), "png"), ("RGB", (3000, 40), "png"),
             ("RGBA", (500, 400), "png"), ("LA", (200, 300), "png"), ("P", (400, 300), "png"), ("1", (400, 300), "png"),
             ("L", (90, 600), "png"), ("RGB", (500, 333), "webp"), ("P", (320, 240), "gif"), ("RGB", (320, 240), "bmp")]
    for number, (mode, size, kind) in enumerate(cases):
        coarse = Image.fromarray(draw.integers(0, 256, size=(9, 12, 4), dtype=np.uint8), "RGBA")
        picture = coarse.resize(size, Image.BICUBIC)
        picture = picture if mode == "RGBA" else picture.convert("RGB").convert(mode) if mode != "LA" else picture.convert("LA")
        file = Path(folder) / f"{number}-{mode}-{size[0]}x{size[1]}.{kind}"
        picture.save(file, **({"quality": 88} if kind == "jpg" else {"lossless": True} if kind == "webp" else {}))
        files.append(file)
    return files


def embed(binary, bundle, items, batch):
    lines = "".join(json.dumps(item) + "\n" for item in items)
    command = [str(binary), "embed", "--model", str(bundle), "--set", f"encoder.max_batch_images={batch}",
               "--set", f"encoder.max_batch_texts={batch}"]
    answers = subprocess.run(command, input=lines, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    answers = [json.loads(answer) for answer in answers]
    for item, answer in zip(items, answers, strict=True):
        if "vector" not in answer:
            sys.exit(f"feedlens gives no vector for {item}: {answer}")
    return np.array([answer["vector"] for answer in answers], dtype=np.float32)


def in_batches(features, items, size=16):
    return np.concatenate([features(items[at:at + size]) for at in range(0, len(items), size)])


def precision_of(bundle):
    for line in (bundle / "model.toml").read_text(encoding="utf-8").splitlines():
        if line.startswith("precision"):
            return line.split('"')[1]
    sys.exit(f"{bundle}/model.toml names no precision")


def check(binary, bundle, what, items, expected):
    """Prints a row; returns whether the promise holds."""
    precision = precision_of(bundle)
    together, alone = embed(binary, bundle, items, 32), embed(binary, bundle, items, 1)
    differences = np.abs(together - expected).max(axis=1)
    cosines = (together * expected).sum(axis=1) / np.linalg.norm(together, axis=1)
    worst = int(differences.argmax())
    print(f"| {bundle.name} | {what} | {len(items)} | {differences.max():.1e} | {cosines.min():.7f} | "
          f"{np.abs(together - alone).max():.1e} | {next(iter(items[worst].values()))[-40:]!r} |", flush=True)
    largest, least = PROMISES.get(precision, (float("inf"), -1.0))
    return differences.max() <= largest and cosines.min() >= least


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--arch", required=True, choices=reference.ARCHITECTURES)
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument("--checkpoint", type=Path, metavar="FILE")
    weights.add_argument("--random-weights", type=int, metavar="SEED")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER")
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/feedlens")
    arguments = parser.parse_args()
    try:
        if arguments.checkpoint:
            model = reference.from_checkpoint(arguments.arch, arguments.checkpoint)
        else:
            model = reference.from_seed(reference.configuration(arguments.arch), arguments.random_weights)
    except reference.WrongInput as error:
        sys.exit(str(error))
    with tempfile.TemporaryDirectory() as folder:
        files = sorted(arguments.pictures.iterdir()) if arguments.pictures else made_pictures(folder)
        captions = texts()
        image_features = in_batches(lambda part: reference.image_features(model, [Image.open(file) for file in part]), files)
        text_features = in_batches(lambda part: reference.text_features(model, part), captions)
        print("| bundle | items | number | largest difference | least cosine | batch 1 to 32 | worst |")
        print("|---|---|---|---|---|---|---|")
        held = []
        for bundle in arguments.bundles:
            pictures = [{"image": str(file.absolute())} for file in files]
            held.append(check(arguments.binary, bundle, "pictures", pictures, unit(image_features)))
            held.append(check(arguments.binary, bundle, "texts", [{"text": text} for text in captions], unit(text_features)))
    if not all(held):
        sys.exit("outside what feedlens promises: fp32 1e-4 and 0.99999, fp16 0.999")


if __name__ == "__main__":
    main()
