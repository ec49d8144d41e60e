"""Score a bundle on labelled pairs and category words, and check what its interface promises.

`--checkpoint` scores the float32 PyTorch towers beside it, to show what storing the weights as fp16 costs.
"""

import argparse
import json
import os
import time

import numpy as np
import torch
from PIL import Image

from emoji_data import load_emoji
from export import load, preprocess, session, unit
from tokens import Tokenizer


def read_lines(path):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


class Onnx:
    def __init__(self, folder):
        self.image_session = session(os.path.join(folder, "image.onnx"))
        self.text_session = session(os.path.join(folder, "text.onnx"))
        self.tokenizer = Tokenizer()

    def images(self, pixels):
        return unit(np.concatenate([self.image_session.run(None, {"image": pixels[i:i + 64]})[0]
                                    for i in range(0, len(pixels), 64)]))

    def texts(self, texts):
        return unit(np.concatenate([self.text_session.run(None, {"text": self.tokenizer.batch(texts[i:i + 64])})[0]
                                    for i in range(0, len(texts), 64)]))


class Torch:
    def __init__(self, checkpoint):
        self.image, self.text, _ = load(checkpoint)
        self.tokenizer = Tokenizer()

    def images(self, pixels):
        with torch.no_grad():
            return unit(np.concatenate([self.image(torch.from_numpy(pixels[i:i + 64])).numpy()
                                        for i in range(0, len(pixels), 64)]))

    def texts(self, texts):
        with torch.no_grad():
            return unit(np.concatenate([self.text(torch.from_numpy(self.tokenizer.batch(texts[i:i + 64]))).numpy()
                                        for i in range(0, len(texts), 64)]))


def recalls(rank):
    return {f"r{k}": round(100 * float((rank < k).mean()), 2) for k in (1, 5, 10)}


def both_directions(texts, images):
    """Each text has one picture. A rank counts the candidates that score strictly better."""
    scores = texts @ images.T
    own = np.diagonal(scores)
    return {"text_to_image": recalls((scores > own[:, None]).sum(1)),
            "image_to_text": recalls((scores > own[None, :]).sum(0))}


def precision_at_5(words, members, encoder, images, files):
    """Mean share of gold drawings among the first five, and the share of each word."""
    place = {f: i for i, f in enumerate(files)}
    gold = [{place[f] for f in m} for m in members]
    scores = encoder.texts(words) @ images.T
    each = [float(np.mean([i in g for i in np.argsort(-row)[:5]])) for row, g in zip(scores, gold)]
    return round(float(np.mean(each)), 3), dict(zip(words, each))


def score(encoder, pixels, demo, files):
    images = encoder.images(pixels)
    out = {}
    for lang in ("zh", "en"):
        pairs = read_lines(os.path.join(demo, f"labels_{lang}.jsonl"))
        assert [p["image"] for p in pairs] == files
        out[lang] = both_directions(encoder.texts([p["text"] for p in pairs]), images)
    lines = read_lines(os.path.join(demo, "categories_zh.jsonl"))
    out["category_p5"], out["each"] = precision_at_5(
        [c["text"] for c in lines], [c["images"] for c in lines], encoder, images, files)
    return out, images


def subsets(texts, images, files, args):
    """R@1 and R@10, text to picture among all candidates, of the queries in each CLDR group and outside one style."""
    scores = texts @ images.T
    rank = (scores > np.diagonal(scores)[:, None]).sum(1)
    emoji = load_emoji(args.npm)
    known = set(np.load(os.path.join(args.rendered, args.lacking + ".npz"))["index"].tolist())
    groups = {}
    for e in emoji:
        row = files.index(f"images/{e.code}.png")
        groups.setdefault(e.group, []).append(row)
        groups.setdefault(f"{'in' if e.index in known else 'not in'} {args.lacking}", []).append(row)
    return {name: {"queries": len(rows), **{k: v for k, v in recalls(rank[rows]).items() if k != "r5"}}
            for name, rows in groups.items()}


def interface(encoder, pixels):
    """Largest differences between ways that must agree: batch 1 against 32, trimmed against padded to 52."""
    image, text = encoder.image_session, encoder.text_session
    together = image.run(None, {"image": pixels[:32]})[0]
    alone = np.concatenate([image.run(None, {"image": pixels[i:i + 1]})[0] for i in range(32)])
    tokens = encoder.tokenizer.batch(["红苹果", "a photo of a dog", "会飞的动物和很多很多别的东西", "zxqj 未知詞"] * 8)
    padded = np.zeros((32, 52), dtype=np.int64)
    padded[:, :tokens.shape[1]] = tokens
    trimmed = text.run(None, {"text": tokens})[0]
    rows = np.concatenate([text.run(None, {"text": t[None, :int((t != 0).sum())]})[0] for t in tokens])
    return {"image batch 1 and 32": float(np.abs(unit(together) - unit(alone)).max()),
            "text trimmed and padded": float(np.abs(unit(trimmed) - unit(text.run(None, {"text": padded})[0])).max()),
            "text batch 1 and 32": float(np.abs(unit(trimmed) - unit(rows)).max())}


def speed(encoder, pixels, seconds=4):
    """Pictures and texts in a second of processor time, one ONNX Runtime thread, batches of 32."""
    tokens = encoder.tokenizer.batch(["今天买了红苹果，脆甜多汁"] * 32)
    out = {}
    for name, run in (("pictures", lambda: encoder.image_session.run(None, {"image": pixels[:32]})),
                      ("texts", lambda: encoder.text_session.run(None, {"text": tokens}))):
        run()
        started, count = time.process_time(), 0
        while time.process_time() - started < seconds:
            run()
            count += 32
        out[name] = round(count / (time.process_time() - started))
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="models/small")
    parser.add_argument("--demo", default="demo", help="folder with labels_*.jsonl, categories_zh.jsonl and images/")
    parser.add_argument("--checkpoint", help="also score these float32 weights")
    parser.add_argument("--topics", nargs="*", default=["水果", "交通工具", "红苹果", "a flying animal"])
    parser.add_argument("--npm", help="with this, also the recall of each CLDR group and outside one training style")
    parser.add_argument("--rendered", default=".cache/train_small/rendered")
    parser.add_argument("--lacking", default="emojione-v1", help="that style")
    parser.add_argument("--interface-only", action="store_true", help="checks and speed; looks at no score")
    args = parser.parse_args()
    with open(os.path.join(args.bundle, "model.toml"), encoding="utf-8") as f:
        resolution = next(int(line.split("=")[1]) for line in f if line.startswith("resolution"))
    pairs = read_lines(os.path.join(args.demo, "labels_zh.jsonl"))
    files, names = [p["image"] for p in pairs], [p["text"] for p in pairs]
    pixels = np.stack([preprocess(Image.open(os.path.join(args.demo, f)), resolution) for f in files])
    encoder = Onnx(args.bundle)
    print(json.dumps({"interface": interface(encoder, pixels), "per second": speed(encoder, pixels)}))
    if args.interface_only:
        return
    result, images = score(encoder, pixels, args.demo, files)
    print(json.dumps({"shipped": result}, ensure_ascii=False))
    if args.checkpoint:
        exact, _ = score(Torch(args.checkpoint), pixels, args.demo, files)
        print(json.dumps({"float32": {k: v for k, v in exact.items() if k != "each"}}, ensure_ascii=False))
    if args.npm:
        print(json.dumps({"zh text to picture": subsets(encoder.texts(names), images, files, args)}, indent=1))
    for topic, row in zip(args.topics, encoder.texts(args.topics) @ images.T):
        print(topic, [f"{names[i]} {row[i]:.2f}" for i in np.argsort(-row)[:5]])
    for query in ("images/1f34e.png", "images/1f697.png"):
        row = images @ images[files.index(query)]
        print(query, [f"{names[i]} {row[i]:.2f}" for i in np.argsort(-row)[1:6]])


if __name__ == "__main__":
    main()
