#!/usr/bin/env python3
"""Compares `feedlens eval` with Chinese-CLIP's own evaluation, or writes fixtures of the latter.

Needs the package cn-clip (made with 1.6.0) with torch, torchvision and lmdb, and onnxruntime. Its scripts run as they
are; only `.cuda()` is taken away, for machines without a GPU.

    tools/check_recall.py --pairs demo/labels_zh.jsonl [--images demo] [--bundle models/small] [--binary target/release/feedlens]
    tools/check_recall.py --write-fixtures tests/fixtures/eval

Three comparisons. Ranking: the features that feedlens saved, through `make_topk_predictions*.py` and `evaluation*.py`.
The whole way: cn_clip's LMDB, transform and tokenizer with the same ONNX files, through the same scripts. And the
features of that way, read by `feedlens eval`. The recall figures must be equal to the last digit in the first and the
third; the second also tells by how much features differ.
"""

import argparse
import base64
import contextlib
import io
import json
import os
import random
import runpy
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

FIXTURE_PICTURES = ["1f34e", "1f34f", "1f350", "1f351", "1f352", "1f353", "1f436", "1f431", "1f697", "1f68c", "26bd"]


def cn_clip(module, *arguments):
    """Runs one of the package's scripts as `python -m` would, without its output."""
    import torch
    torch.set_num_threads(1)
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    sys.argv = [module, *map(str, arguments)]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        runpy.run_module(f"cn_clip.{module}", run_name="__main__")


def read_lines(path):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def write_lines(path, lines):
    with open(path, "w", encoding="utf-8") as f:
        f.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def write_pictures(path, pictures):
    """`pictures`: (id, file)."""
    with open(path, "w", encoding="utf-8") as f:
        for image_id, file in pictures:
            f.write(f"{image_id}\t{base64.urlsafe_b64encode(Path(file).read_bytes()).decode()}\n")


def convert(pairs, images, folder):
    """Writes pairs as Chinese-CLIP's files: ids are places of the first occurrence, from 0."""
    texts, pictures = {}, {}
    for line in read_lines(pairs):
        golds = texts.setdefault(line["text"], [])
        for name in [line["image"]] if "image" in line else line["images"]:
            image_id = pictures.setdefault(name, len(pictures))
            if image_id not in golds:
                golds.append(image_id)
    write_lines(folder / "test_texts.jsonl", [{"text_id": i, "text": text, "image_ids": golds}
                                              for i, (text, golds) in enumerate(texts.items())])
    write_pictures(folder / "test_imgs.tsv", [(i, Path(images) / name) for name, i in pictures.items()])


def extract(folder, bundle):
    """Features as `extract_features_onnx.py` makes them, at the bundle's resolution."""
    import onnxruntime
    import torch
    from cn_clip.eval.data import EvalImgDataset, EvalTxtDataset
    model = tomllib.loads((bundle / "model.toml").read_text(encoding="utf-8"))
    cn_clip("preprocess.build_lmdb_dataset", "--data_dir", folder, "--splits", "test")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    towers = {
        "text": EvalTxtDataset(str(folder / "test_texts.jsonl"), max_txt_length=model["context_length"]),
        "image": EvalImgDataset(str(folder / "lmdb/test/imgs"), resolution=model["resolution"]),
    }
    for name, data in towers.items():
        tower = model[name]
        session = onnxruntime.InferenceSession(str(bundle / tower["file"]), options)
        lines = []
        for start in range(0, len(data), 64):
            ids, inputs = zip(*(data[i] for i in range(start, min(start + 64, len(data)))))
            features = torch.tensor(session.run([tower["output"]], {tower["input"]: torch.stack(inputs).numpy()})[0])
            features /= features.norm(dim=-1, keepdim=True)
            lines += [{f"{name}_id": i, "feature": row} for i, row in zip(ids, features.tolist())]
        write_lines(folder / f"reference_{name}.jsonl", lines)
    return [folder / "reference_text.jsonl", folder / "reference_image.jsonl"]


def evaluate(folder, text_features, image_features, name):
    """cn_clip's predictions and figures for these features, in both directions."""
    texts = folder / "test_texts.jsonl"
    cn_clip("eval.transform_ir_annotation_to_tr", "--input", texts)
    figures = {}
    for direction, suffix, gold in (("text_to_image", "", texts), ("image_to_text", "_tr", folder / "test_texts.tr.jsonl")):
        predictions, result = folder / f"{name}{suffix}.jsonl", folder / f"{name}{suffix}.json"
        cn_clip(f"eval.make_topk_predictions{suffix}", "--image-feats", image_features, "--text-feats", text_features,
                "--top-k", 10, "--output", predictions)
        cn_clip(f"eval.evaluation{suffix}", gold, predictions, result)
        answer = json.loads(result.read_text())
        if not answer["success"]:
            sys.exit(f"cn_clip's evaluation failed: {answer['errorMsg']}")
        figures[direction] = {k: answer["scoreJson"][k] for k in ("r1", "r5", "r10", "mean_recall")}
    return figures


def feedlens(binary, folder, *arguments):
    command = [binary, "eval", "--pairs", folder / "test_texts.jsonl", "--predictions", folder / "ours.jsonl",
               "--predictions-tr", folder / "ours_tr.jsonl", "--set", "log.level=warn", *arguments]
    report = json.loads(subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE).stdout)
    keys = ("r1", "r5", "r10", "mean_recall")
    return {direction: {k: report[direction][k] for k in keys} for direction in ("text_to_image", "image_to_text")}


def differing(folder, name):
    """Lines of our predictions that differ from theirs; lines of pictures that no text names are theirs alone."""
    count = 0
    for suffix, key in (("", "text_id"), ("_tr", "image_id")):
        theirs = {line[key]: line for line in read_lines(folder / f"{name}{suffix}.jsonl")}
        count += sum(line != theirs[line[key]] for line in read_lines(folder / f"ours{suffix}.jsonl"))
    return count


def largest_difference(ours, theirs):
    import numpy as np
    pairs = [({next(iter(line.values())): line["feature"] for line in read_lines(path)}) for path in (ours, theirs)]
    return max(float(np.abs(np.float32(pairs[0][i]) - np.float32(pairs[1][i])).max()) for i in pairs[0])


def compare(args):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        convert(args.pairs, args.images or args.pairs.parent, folder)
        saved = [folder / "text_features.jsonl", folder / "image_features.jsonl"]
        ours = feedlens(args.binary, folder, "--model", args.bundle, "--save-features", folder)
        same_features = evaluate(folder, *saved, "theirs")
        print(json.dumps({"feedlens": ours}))
        print(json.dumps({"cn_clip, on feedlens' features": same_features, "predictions that differ": differing(folder, "theirs")}))
        reference = extract(folder, args.bundle)
        whole = evaluate(folder, *reference, "reference")
        print(json.dumps({"cn_clip, the whole way": whole, "predictions that differ": differing(folder, "reference"),
                          "largest difference of a feature": [largest_difference(*pair) for pair in zip(saved, reference)]}))
        read = feedlens(args.binary, folder, "--text-features", reference[0], "--image-features", reference[1])
        print(json.dumps({"feedlens, on cn_clip's features": read, "predictions that differ": differing(folder, "reference")}))
        if ours != same_features or read != whole:
            sys.exit("the figures differ")
        print("equal" if ours == whole else "equal on the same features; the whole way differs")


def constructed(folder):
    """Features of small whole numbers: every product is exact, ties are many, and rows occur several times."""
    rng = random.Random(3)
    rows = [[rng.randint(-1, 1) for _ in range(4)] for _ in range(12)]
    texts = [(1000 - 7 * i, rng.choice(rows)) for i in range(60)]
    images = [(3 * i + 8, rng.choice(rows)) for i in range(45)]
    rng.shuffle(images)
    write_lines(folder / "test_texts.jsonl", [
        {"text_id": i, "text": f"text {i}", "image_ids": [rng.choice(images)[0] for _ in range(rng.randint(0, 3))]}
        for i, _ in texts])
    write_lines(folder / "text_features.jsonl", [{"text_id": i, "feature": list(map(float, row))} for i, row in texts])
    write_lines(folder / "image_features.jsonl", [{"image_id": i, "feature": list(map(float, row))} for i, row in images])
    return evaluate(folder, folder / "text_features.jsonl", folder / "image_features.jsonl", "predictions")


def drawings(folder, demo):
    """Pictures, some of which are the same under several ids, in the order in which cn_clip reads them back, and texts as
    it prepares them. Which vectors they get is the model's affair, and no part of the fixture."""
    from cn_clip.eval.data import EvalImgDataset, _preprocess_text
    twice = [("9", 0), ("10", 0), ("100", 0), ("2", 6), ("19", 6)]
    pictures = [(30 + i, place) for i, place in enumerate(range(len(FIXTURE_PICTURES)))] + twice
    names = {line["image"]: line["text"] for line in read_lines(demo / "labels_zh.jsonl")}
    files = [f"images/{code}.png" for code in FIXTURE_PICTURES]
    write_pictures(folder / "test_imgs.tsv", [(i, demo / files[place]) for i, place in pictures])
    golds = [[int(i) for i, other in pictures if other == place] for place in range(len(files))]
    texts = [f"“{names[file]}” PHOTO" for file in files]
    write_lines(folder / "test_texts.jsonl", [
        {"text_id": 5 + i, "text": text, "image_ids": golds[i][-2:]} for i, text in enumerate(texts)])
    cn_clip("preprocess.build_lmdb_dataset", "--data_dir", folder, "--splits", "test")
    data = EvalImgDataset(str(folder / "lmdb/test/imgs"), resolution=8)
    expected = {"image_ids": [data[i][0] for i in range(len(data))], "texts": [_preprocess_text(text) for text in texts],
                "same": [[int(i) for i, other in pictures if other == place] for place in (0, 6)]}
    del data
    shutil.rmtree(folder / "lmdb")
    return expected


def write_fixtures(args):
    for name, make in (("ties", constructed), ("drawings", lambda folder: drawings(folder, args.demo))):
        folder = args.write_fixtures / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "expected.json").write_text(json.dumps(make(folder), ensure_ascii=False) + "\n", encoding="utf-8")
        for file in [*folder.glob("predictions*.json"), *folder.glob("*.tr.jsonl")]:
            file.unlink()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--images", type=Path, help="folder that picture names are relative to; otherwise that of the pairs")
    parser.add_argument("--bundle", type=Path, default=Path("models/small"))
    parser.add_argument("--binary", default="target/release/feedlens")
    parser.add_argument("--demo", type=Path, default=Path("demo"))
    parser.add_argument("--write-fixtures", type=Path, metavar="DIR")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if args.write_fixtures:
        write_fixtures(args)
    elif args.pairs:
        compare(args)
    else:
        parser.error("give --pairs or --write-fixtures")


if __name__ == "__main__":
    main()
