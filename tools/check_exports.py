#!/usr/bin/env python3
"""Exports models with random weights by the tools that people use, and compares what feedlens makes of the files, as
they are, with the projects' own pipelines in PyTorch.

    make build
    pip install -r tools/chinese_clip/requirements.txt && pip install --no-deps cn-clip==1.6.0
    pip install transformers==4.57.6 "optimum-onnx==0.1.0" open_clip_torch==3.3.0 onnxmltools==1.16.0
    tools/check_exports.py [cn_clip] [hugging_face_chinese] [hugging_face] [hugging_face_split] [open_clip]

cn_clip's own `pytorch_to_onnx.py` (RN50, batch 1, 0.5 GB), Optimum's single graphs of ChineseCLIPModel and CLIPModel,
two graphs as transformers.js keeps them, two graphs of an open_clip model. Each compares pictures whose middle is cut at
whole and half pixels, in four modes, and texts. Exit code 1 where a value of a unit vector differs by more than 1e-4.
"""

import argparse
import gzip
import json
import os
import runpy
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from check_parity import ROOT, embed
from chinese_clip import reference
from chinese_clip.reference import unit

LARGEST = 1e-4
TEXTS = ["雨后的彩虹", "a photo of a cat", "A Flying Animal!", "Crème brûlée à l'été", "hello   world", "海边的日落 sunset",
         "123 456", "it's don't we're", "", "红苹果 on the TABLE, 🍎"]
WIDTH, LAYERS, DIMENSION = 64, 2, 48
TOWER = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 2 * WIDTH}
VISION = TOWER | {"image_size": 224, "patch_size": 32}


def pictures(folder):
    draw = np.random.default_rng(1)
    files = []
    for width, height in [(33, 50), (50, 33), (97, 32), (31, 90), (224, 341), (225, 340), (400, 603), (64, 64), (17, 13)]:
        for mode in ("RGB", "RGBA", "L", "P"):
            coarse = Image.fromarray(draw.integers(0, 256, (max(2, height // 9), max(2, width // 9), 4), np.uint8), "RGBA")
            smooth = coarse.resize((width, height), Image.BICUBIC)
            files.append(folder / f"{mode}-{width}x{height}.png")
            (smooth if mode == "RGBA" else smooth.convert("RGB").convert(mode)).save(files[-1])
    return files


def with_wider_weights(model):
    """The usual initialisation makes all vectors nearly the same."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    return model.eval()


def rows(features, items):
    with torch.no_grad():
        return unit(np.concatenate([features(item).numpy() for item in items]))


def export(model, example, file, input_name, outputs, also=()):
    """A graph with dynamic axes, by PyTorch's exporter for TorchScript."""
    axes = {input_name: {0: "batch"} | {axis: f"axis{axis}" for axis in also}} | {name: {0: "batch"} for name in outputs}
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(model, (example,), str(file), input_names=[input_name], output_names=outputs, dynamic_axes=axes,
                      opset_version=17, dynamo=False)


class Part(torch.nn.Module):
    """One of a model's functions as a module."""

    def __init__(self, model, function):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, value):
        return self.function(self.model, value)


def cn_clip(work, files):
    import cn_clip.clip
    import cn_clip.clip.utils
    import onnxmltools.utils

    model = reference.from_seed(reference.configuration("RN50"), 7)
    torch.save({"state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}}, work / "rn50.pt")
    # Its script was written for PyTorch 1: `clip` is found beside it, opset 13 is too old for today's attention, and its
    # fp16 conversion is no longer where it looks (feedlens' own fixtures have that layout).
    sys.modules |= {"clip": cn_clip.clip, "clip.utils": cn_clip.clip.utils}
    onnxmltools.utils.convert_float_to_float16 = lambda graph, **_: graph
    plain = torch.onnx.export
    torch.onnx.export = lambda *arguments, **options: plain(
        *arguments, **options | {"opset_version": 14, "verbose": False}, dynamo=False)
    (work / "model").mkdir()
    sys.argv = ["pytorch_to_onnx.py", "--model-arch", "RN50", "--pytorch-ckpt-path", str(work / "rn50.pt"),
                "--save-onnx-path", str(work / "model/rn50"), "--convert-text", "--convert-vision"]
    runpy.run_module("cn_clip.deploy.pytorch_to_onnx", run_name="__main__")
    torch.onnx.export = plain
    for file in (work / "model").glob("*.fp16.*"):
        file.unlink()
    images = [reference.image_features(model, [Image.open(file)]) for file in files]
    return unit(np.concatenate(images)), unit(reference.text_features(model, TEXTS))


def save_for_hugging_face(work, *parts):
    """Saves, exports with Optimum, and puts the configuration beside the graph, as model repositories have it."""
    from optimum.exporters.onnx import main_export

    for part in parts:
        part.save_pretrained(work / "source")
    main_export(str(work / "source"), output=str(work / "model"), task="feature-extraction", no_post_process=True)
    copy_configuration(work)


def copy_configuration(work):
    (work / "model").mkdir(exist_ok=True)
    for file in (work / "source").iterdir():
        if file.suffix in (".json", ".txt"):
            shutil.copy(file, work / "model")


def hugging_face_chinese(work, files):
    from transformers import BertTokenizerFast, ChineseCLIPConfig, ChineseCLIPImageProcessor, ChineseCLIPModel

    text = TOWER | {"vocab_size": 21128}
    model = with_wider_weights(ChineseCLIPModel(
        ChineseCLIPConfig(text_config=text, vision_config=VISION, projection_dim=DIMENSION)))
    tokenizer = BertTokenizerFast(str(reference.VOCABULARY), model_max_length=reference.CONTEXT_LENGTH)
    # As in the published repositories; the class' own default does not run.
    processor = ChineseCLIPImageProcessor(size={"height": 224, "width": 224}, do_center_crop=False)
    save_for_hugging_face(work, model, tokenizer, processor)
    blank = torch.zeros(1, 3, 224, 224)

    def text_features(text):
        # `get_text_features` wants a pooling layer that the model does not have.
        return model(**tokenizer([text], truncation=True, return_tensors="pt"), pixel_values=blank).text_embeds

    return rows(lambda file: model.get_image_features(**processor(Image.open(file), return_tensors="pt")), files), \
        rows(text_features, TEXTS)


def clip_tokenizer(work):
    """CLIP's byte-pair encoding, which open_clip's package carries."""
    import open_clip
    from transformers import CLIPTokenizerFast
    from transformers.models.clip.tokenization_clip import bytes_to_unicode

    packed = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(packed.read_bytes()).decode().split("\n")[1:49152 - 256 - 2 + 1]
    letters = list(bytes_to_unicode().values())
    entries = letters + [f"{letter}</w>" for letter in letters] + [merge.replace(" ", "") for merge in merges]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    (work / "vocab.json").write_text(json.dumps({entry: number for number, entry in enumerate(entries)}))
    (work / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return CLIPTokenizerFast(str(work / "vocab.json"), str(work / "merges.txt"), model_max_length=77)


def hugging_face(work, files, split=False):
    from transformers import (CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModelWithProjection,
                              CLIPVisionModelWithProjection)

    text = TOWER | {"vocab_size": 49408, "projection_dim": DIMENSION, "bos_token_id": 49406, "eos_token_id": 49407}
    model = with_wider_weights(CLIPModel(
        CLIPConfig(text_config=text, vision_config=VISION | {"projection_dim": DIMENSION}, projection_dim=DIMENSION)))
    tokenizer, processor = clip_tokenizer(work), CLIPImageProcessor()
    if split:
        for part in (model, tokenizer, processor):
            part.save_pretrained(work / "source")
        copy_configuration(work)
        texts = CLIPTextModelWithProjection.from_pretrained(work / "source").eval()
        images = CLIPVisionModelWithProjection.from_pretrained(work / "source").eval()
        ids = tokenizer(["a cat", "a small dog"], padding=True, return_tensors="pt")["input_ids"]
        export(Part(texts, lambda model, ids: model(input_ids=ids).text_embeds), ids,
               work / "model/onnx/text_model.onnx", "input_ids", ["text_embeds"], also=[1])
        export(Part(images, lambda model, pixels: model(pixel_values=pixels).image_embeds), torch.zeros(2, 3, 224, 224),
               work / "model/onnx/vision_model.onnx", "pixel_values", ["image_embeds"])
    else:
        save_for_hugging_face(work, model, tokenizer, processor)
    return rows(lambda file: model.get_image_features(**processor(Image.open(file), return_tensors="pt")), files), \
        rows(lambda text: model.get_text_features(**tokenizer([text], truncation=True, return_tensors="pt")), TEXTS)


def hugging_face_split(work, files):
    return hugging_face(work, files, split=True)


def open_clip(work, files):
    import open_clip
    from open_clip.model import CLIP

    config = {"embed_dim": DIMENSION,
              "vision_cfg": {"image_size": 224, "layers": LAYERS, "width": WIDTH, "head_width": 32, "patch_size": 32},
              "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": LAYERS}}
    model = with_wider_weights(CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"]))
    transform, tokenize = open_clip.transform.image_transform(224, is_train=False), open_clip.SimpleTokenizer()
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD, "size": 224, "mode": "RGB",
                  "interpolation": "bicubic", "resize_mode": "shortest"}
    (work / "model").mkdir()
    clip_tokenizer(work).save_pretrained(work / "model")
    (work / "model/open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    export(Part(model, lambda model, pixels: model.encode_image(pixels, normalize=True)), torch.zeros(2, 3, 224, 224),
           work / "model/visual.onnx", "image", ["features"])
    export(Part(model, lambda model, ids: model.encode_text(ids, normalize=True)), tokenize(["a", "b"]),
           work / "model/textual.onnx", "text", ["features"])
    return rows(lambda file: model.encode_image(transform(Image.open(file))[None]), files), \
        rows(lambda text: model.encode_text(tokenize([text])), TEXTS)


EXPORTERS = {function.__name__: function
             for function in (cn_clip, hugging_face_chinese, hugging_face, hugging_face_split, open_clip)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exporters", nargs="*", metavar="EXPORTER", help=f"of {', '.join(EXPORTERS)}; all unless told")
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/feedlens")
    arguments = parser.parse_args()
    for name in arguments.exporters:
        if name not in EXPORTERS:
            sys.exit(f"no exporter {name!r}; there are {', '.join(EXPORTERS)}")
    torch.manual_seed(1)
    binary, held = arguments.binary.absolute(), True
    os.chdir(ROOT)
    print("| exporter | pictures: largest difference | texts: largest difference |\n|---|---|---|")
    for name in arguments.exporters or EXPORTERS:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            files = pictures(work)
            expected = EXPORTERS[name](work, files)
            items = [{"image": str(file)} for file in files], [{"text": text} for text in TEXTS]
            differences = [np.abs(embed(binary, work / "model", item, 8) - rows).max()
                           for item, rows in zip(items, expected)]
        print(f"| {name} | {differences[0]:.1e} | {differences[1]:.1e} |", flush=True)
        held = held and max(differences) <= LARGEST
    if not held:
        sys.exit(f"further from its exporter's own pipeline than {LARGEST}")


if __name__ == "__main__":
    main()
