"""Write a model bundle (image.onnx, text.onnx, vocab.txt, model.toml, golden.json) from a checkpoint.

Weights are stored as fp16 with a Cast to fp32 in the graph, which ONNX Runtime folds away when it loads the file.
"""

import argparse
import json
import os
import shutil
import warnings

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from augment import MEAN, STD
from model import DIMENSION, ImageTower, TextTower
from tokens import CONTEXT_LENGTH, Tokenizer, vocab_file

OPSET = 17
GOLDEN_TEXTS = ["红苹果", "一只会飞的动物", "a photo of a bicycle"]
GOLDEN_IMAGES = ["1f34e", "1f6b2"]


def load(path):
    """Both towers in evaluation mode, and what else the checkpoint holds."""
    checkpoint = torch.load(path, map_location="cpu")
    state = checkpoint["state"]
    image, text = ImageTower(), TextTower(state["text.lookup"], checkpoint["tokens"])
    for name, tower in (("image", image), ("text", text)):
        tower.load_state_dict({k[len(name) + 1:]: v for k, v in state.items() if k.startswith(name + ".")})
        tower.eval()
    return image, text, checkpoint


class Pooled(nn.Module):
    """The image tower with its batch norms folded in and pooling that exports to plain operators."""

    def __init__(self, tower):
        super().__init__()
        self.tower = tower

    def forward(self, image):
        x = image
        for stage in self.tower.stages:
            x = stage(x)
        mean = F.adaptive_avg_pool2d(x, 1).flatten(1)
        peak = F.adaptive_max_pool2d(x, 1).flatten(1)
        return self.tower.project(torch.cat([mean, peak], dim=1))


def to_onnx(module, example, name_in, name_out, axes, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (example,), path, input_names=[name_in], output_names=[name_out],
                          dynamic_axes={name_in: axes, name_out: {0: "batch"}}, opset_version=OPSET, dynamo=False)


def store_half(path):
    """Large fp32 weights become fp16 initialisers behind a Cast."""
    model = onnx.load(path)
    graph, casts = model.graph, []
    for tensor in list(graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < 256:
            continue
        value = numpy_helper.to_array(tensor)
        half = numpy_helper.from_array(value.astype(np.float16), tensor.name + "_fp16")
        graph.initializer.remove(tensor)
        graph.initializer.append(half)
        casts.append(helper.make_node("Cast", [half.name], [tensor.name], to=TensorProto.FLOAT))
    for node in reversed(casts):
        graph.node.insert(0, node)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def small_lookup(path, lookup):
    """The id table is int64 in PyTorch; int16 with a Cast saves 127 KB."""
    model = onnx.load(path)
    for tensor in list(model.graph.initializer):
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.int64 and value.shape == lookup.shape:
            small = numpy_helper.from_array(value.astype(np.int16), tensor.name + "_int16")
            model.graph.initializer.remove(tensor)
            model.graph.initializer.append(small)
            model.graph.node.insert(0, helper.make_node("Cast", [small.name], [tensor.name], to=TensorProto.INT64))
    onnx.save(model, path)


def session(path, threads=1):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def preprocess(picture, resolution):
    """Chinese-CLIP's own: bicubic straight to R x R, before the conversion to RGB."""
    x = np.asarray(picture.resize((resolution, resolution), Image.BICUBIC).convert("RGB"), dtype=np.float32) / 255
    return ((x - np.float32(MEAN)) / np.float32(STD)).transpose(2, 0, 1).astype(np.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def write_toml(path, ident, resolution, logit_scale):
    lines = [
        f'id = "{ident}"', 'family = "chinese-clip"', f"dimension = {DIMENSION}", f"resolution = {resolution}",
        f"mean = {list(MEAN)}", f"std = {list(STD)}", f"context_length = {CONTEXT_LENGTH}",
        f"vocab_size = {Tokenizer().size}", f"logit_scale = {logit_scale:.4f}", 'resize = "bicubic"',
        'precision = "fp16-stored"', "",
        "[image]", 'file = "image.onnx"', 'input = "image"', 'output = "unnorm_image_features"', "",
        "[text]", 'file = "text.onnx"', 'input = "text"', 'output = "unnorm_text_features"', "",
    ]
    with open(path, "w", encoding="utf-8") as f:
        f.write("\n".join(lines))


def write_golden(out, pictures, resolution):
    """A few inputs and the vectors the shipped files give for them."""
    tokenizer = Tokenizer()
    text, image = session(os.path.join(out, "text.onnx")), session(os.path.join(out, "image.onnx"))
    golden = {"texts": [], "images": [], "tolerance": 1e-3}
    for line in GOLDEN_TEXTS:
        vector = unit(text.run(None, {"text": tokenizer.batch([line])})[0])[0]
        golden["texts"].append({"text": line, "vector": [round(float(v), 6) for v in vector]})
    os.makedirs(os.path.join(out, "golden"), exist_ok=True)
    for code in GOLDEN_IMAGES:
        file = f"golden/{code}.png"
        shutil.copyfile(os.path.join(pictures, code + ".png"), os.path.join(out, file))
        pixels = preprocess(Image.open(os.path.join(out, file)), resolution)
        vector = unit(image.run(None, {"image": pixels[None]})[0])[0]
        golden["images"].append({"file": file, "vector": [round(float(v), 6) for v in vector]})
    with open(os.path.join(out, "golden.json"), "w", encoding="utf-8") as f:
        json.dump(golden, f, ensure_ascii=False, indent=1)
        f.write("\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=".cache/train_small/run/average.pt")
    parser.add_argument("--out", default="models/small")
    parser.add_argument("--id", default="feedlens-small-1")
    parser.add_argument("--resolution", type=int, help="default: the one in the checkpoint")
    parser.add_argument("--pictures", default="demo/images", help="where the golden pictures are taken from")
    args = parser.parse_args()
    image, text, checkpoint = load(args.checkpoint)
    resolution = args.resolution or checkpoint["resolution"]
    os.makedirs(args.out, exist_ok=True)
    image_file, text_file = (os.path.join(args.out, f"{n}.onnx") for n in ("image", "text"))
    to_onnx(Pooled(image), torch.randn(2, 3, resolution, resolution), "image", "unnorm_image_features", {0: "batch"},
            image_file)
    example = torch.tensor([[101, 5, 6, 102], [101, 7, 102, 0]])
    to_onnx(text, example, "text", "unnorm_text_features", {0: "batch", 1: "length"}, text_file)
    for file in (image_file, text_file):
        store_half(file)
    small_lookup(text_file, text.lookup.numpy())
    shutil.copyfile(vocab_file(), os.path.join(args.out, "vocab.txt"))
    write_toml(os.path.join(args.out, "model.toml"), args.id, resolution, checkpoint["logit_scale"])
    write_golden(args.out, args.pictures, resolution)
    sizes = {os.path.basename(f): os.path.getsize(f) for f in (image_file, text_file)}
    print(f"step {checkpoint['step']}, resolution {resolution}, bytes {sizes}, together {sum(sizes.values())}")


if __name__ == "__main__":
    main()
