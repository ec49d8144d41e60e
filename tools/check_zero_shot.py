#!/usr/bin/env python3
"""Compares `feedlens eval --zero-shot` with Chinese-CLIP's own zero-shot evaluation.

Needs the package cn-clip (made with 1.6.0) with torch and torchvision, and onnxruntime.

    tools/check_zero_shot.py FOLDER [--bundle models/small] [--names names.txt] [--binary target/release/feedlens]

FOLDER has a folder of pictures for each class. The classifier, the transform, the tokenizer and the accuracy are cn_clip's own
(`zero_shot_classifier` and `accuracy` of `eval/zeroshot_evaluation.py`, with its list of templates); the towers are the
bundle's ONNX files. Exit code 1 where the accuracies differ, or a score of a nearest class by more than 1e-5.
"""

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import tomllib
import types
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"}
TOLERANCE = 1e-5


def of_cn_clip():
    """The functions of the evaluation, without the training code that its module imports and they do not use."""
    unused = types.ModuleType("cn_clip.training.main")
    unused.convert_models_to_fp32 = None
    sys.modules.setdefault("cn_clip.training.main", unused)
    data = types.ModuleType("cn_clip.eval.data")
    data.get_zeroshot_dataset = None
    data._preprocess_text = lambda text: text.lower().replace("“", "\"").replace("”", "\"")
    sys.modules.setdefault("cn_clip.eval.data", data)
    from cn_clip.eval import zeroshot_evaluation
    # Of an array with one value; newer NumPy refuses what it does.
    zeroshot_evaluation.float = lambda value: value.item()
    return zeroshot_evaluation


class Towers:
    """A bundle's graphs, called as cn_clip's model is."""

    def __init__(self, bundle):
        self.settings = tomllib.loads((bundle / "model.toml").read_text(encoding="utf-8"))
        self.sessions = {tower: onnxruntime.InferenceSession(bundle / self.settings[tower]["file"]) for tower in ("image", "text")}

    def __call__(self, images, texts):
        tower, values = ("text", texts) if images is None else ("image", images)
        names = self.settings[tower]
        features = self.sessions[tower].run([names["output"]], {names["input"]: values.numpy()})[0]
        return torch.from_numpy(features.astype(np.float32))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--bundle", type=Path, default=ROOT / "models/small")
    parser.add_argument("--names", type=Path, metavar="FILE")
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/feedlens")
    arguments = parser.parse_args()
    evaluation = of_cn_clip()
    from cn_clip.clip.utils import image_transform

    folders = sorted(path for path in arguments.folder.iterdir() if path.is_dir())
    names = [folder.name for folder in folders]
    if arguments.names:
        names = [line.strip() for line in arguments.names.read_text(encoding="utf-8").splitlines() if line.strip()]
    files = [(file, target) for target, folder in enumerate(folders)
             for file in sorted(folder.iterdir()) if file.suffix.lower() in PICTURES]
    model = Towers(arguments.bundle)
    settings = types.SimpleNamespace(context_length=model.settings["context_length"], gpu="cpu")
    with contextlib.redirect_stderr(io.StringIO()):
        classifier = evaluation.zero_shot_classifier(model, names, evaluation.openai_templates, settings)
    transform = image_transform(model.settings["resolution"])
    right, in_top, scores = 0.0, 0.0, []
    for file, target in files:
        features = model(transform(Image.open(file)).unsqueeze(0), None)
        features /= features.norm(dim=-1, keepdim=True)
        cosines = features @ classifier
        top1, top5 = evaluation.accuracy((100.0 * cosines).softmax(dim=-1), torch.tensor([target]), topk=(1, min(5, len(names))))
        right, in_top = right + top1, in_top + top5
        scores.append(cosines[0].numpy())

    with tempfile.TemporaryDirectory() as folder:
        templates, nearest = Path(folder) / "templates.txt", Path(folder) / "nearest.jsonl"
        templates.write_text("\n".join(template("{}") for template in evaluation.openai_templates), encoding="utf-8")
        command = [str(arguments.binary), "eval", "--zero-shot", "--model", str(arguments.bundle), "--images", str(arguments.folder),
                   "--templates", str(templates), "--predictions", str(nearest)]
        command += ["--classes", str(arguments.names)] if arguments.names else []
        told = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)["zero_shot"]
        lines = [json.loads(line) for line in nearest.read_text(encoding="utf-8").splitlines()]
    keys = [folder.name for folder in folders]
    difference = max(abs(found["score"] - float(expected[keys.index(found["class"])]))
                     for line, expected in zip(lines, scores, strict=True) for found in line["nearest"])
    theirs = (100 * right / len(files), 100 * in_top / len(files))
    print(f"{len(files)} pictures, {len(keys)} classes, {len(evaluation.openai_templates)} templates: "
          f"top-1 {told['top1']:.3f} and {theirs[0]:.3f}, top-5 {told['top5']:.3f} and {theirs[1]:.3f} (feedlens and cn_clip), "
          f"mean per class {told['mean_per_class']:.3f}, largest difference of a score {difference:.1e}")
    if max(abs(told["top1"] - theirs[0]), abs(told["top5"] - theirs[1])) > 1e-9 or difference > TOLERANCE:
        sys.exit("not the same")


if __name__ == "__main__":
    main()
