#!/usr/bin/env python3
"""Writes tests/fixtures/bundles/: graphs of a kilobyte in the layouts that other projects export.

Needs onnx, numpy and Pillow (made with onnx 1.23.2). A picture's vector is a product of its channel means, a text's the
sum of one of 16 rows for each token, so that the same weights give the same vectors in every layout: expected.json, by
numpy alone.

    tools/make_bundle_fixtures.py
"""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

ROOT = Path(__file__).parent.parent
OUT = ROOT / "tests/fixtures/bundles"
SIDE, DIMENSION, ROWS = 8, 4, 16
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
DRAW = np.random.default_rng(3)
CHANNELS = DRAW.normal(size=(3, 8)).astype(np.float32)
TOKENS = DRAW.normal(size=(ROWS, 8)).astype(np.float32)


def picture_nodes(input_name, output_name, dimension):
    weights = numpy_helper.from_array(CHANNELS[:, :dimension], "channels")
    nodes = [
        helper.make_node("ReduceMean", [input_name], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["means", "channels"], [output_name]),
    ]
    return nodes, [weights]


def text_nodes(input_name, output_name, dimension, mask):
    """The sum over the tokens of a row chosen by id modulo 16. Tokens are what is not 0 ("inside"), what the input `mask`
    says, or, as in OpenAI's CLIP, all up to the first of the highest id ("end")."""
    def constant(name, value):
        return numpy_helper.from_array(np.array(value, dtype=np.int64), name)

    constants = [numpy_helper.from_array(TOKENS[:, :dimension], "rows"), constant("modulus", ROWS),
                 constant("last", [2]), constant("length_axis", [1])]
    nodes = [
        helper.make_node("Cast", [input_name], ["ids"], to=TensorProto.INT64),
        helper.make_node("Mod", ["ids", "modulus"], ["row"]),
        helper.make_node("Gather", ["rows", "row"], ["embedded"]),
    ]
    if mask == "inside":
        constants.append(constant("padding", 0))
        nodes += [helper.make_node("Equal", ["ids", "padding"], ["is_padding"]),
                  helper.make_node("Not", ["is_padding"], ["is_token"])]
    elif mask == "end":
        constants += [constant("axis", 1)]
        one = numpy_helper.from_array(np.array([1], dtype=np.int64))
        nodes += [helper.make_node("ArgMax", ["ids"], ["end"], axis=1, keepdims=1),
                  helper.make_node("Shape", ["ids"], ["shape"]),
                  helper.make_node("ConstantOfShape", ["shape"], ["ones"], value=one),
                  helper.make_node("CumSum", ["ones", "axis"], ["position"], exclusive=1),
                  helper.make_node("LessOrEqual", ["position", "end"], ["is_token"])]
    else:
        nodes.append(helper.make_node("Cast", [mask], ["is_token"], to=TensorProto.BOOL))
    nodes += [
        helper.make_node("Cast", ["is_token"], ["kept"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["kept", "last"], ["kept_column"]),
        helper.make_node("Mul", ["embedded", "kept_column"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "length_axis"], [output_name], keepdims=0),
    ]
    return nodes, constants


def write(path, parts, inputs, outputs, external=False):
    nodes = [node for part in parts for node in part[0]]
    constants = [constant for part in parts for constant in part[1]]
    graph = helper.make_graph(nodes, "fixture", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path = OUT / path
    path.parent.mkdir(parents=True, exist_ok=True)
    if external:
        Path(f"{path}.extra_file").unlink(missing_ok=True)
        # Axes stay inside: ONNX Runtime infers shapes from them before it reads the other file.
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.extra_file", size_threshold=64)
    else:
        onnx.save(model, path)


def pictures(name, batch="batch", side=SIDE):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3, side, side])


def ids(name, batch="batch", length="length", element=TensorProto.INT64):
    return helper.make_tensor_value_info(name, element, [batch, length])


def features(name, batch="batch", dimension=DIMENSION):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, dimension])


def picture_tower(path, name_in, name_out, batch="batch", dimension=DIMENSION, external=False):
    write(path, [picture_nodes(name_in, name_out, dimension)], [pictures(name_in, batch)],
          [features(name_out, batch, dimension)], external)


def text_tower(path, name_in, name_out, batch="batch", length="length", element=TensorProto.INT64,
               mask="inside", dimension=DIMENSION, external=False):
    inputs = [ids(name, batch, length, element) for name in (name_in, mask) if name not in ("inside", "end")]
    write(path, [text_nodes(name_in, name_out, dimension, mask)], inputs, [features(name_out, batch, dimension)],
          external)


def write_json(path, value):
    (OUT / path).write_text(json.dumps(value, indent=1) + "\n")


def feedlens():
    picture_tower("feedlens/image.onnx", "image", "unnorm_image_features")
    text_tower("feedlens/text.onnx", "text", "unnorm_text_features")
    picture_tower("feedlens/other_dimension.onnx", "image", "unnorm_image_features", dimension=5)
    text_tower("feedlens/external.onnx", "text", "unnorm_text_features", external=True)
    lines = [
        'id = "fixture"', 'family = "chinese-clip"', f"dimension = {DIMENSION}", f"resolution = {SIDE}",
        f"mean = {MEAN}", f"std = {STD}", "context_length = 52", "logit_scale = 100.0", 'resize = "bicubic"',
        'precision = "fp32"', "vocab_size = 21128", "", "[image]", 'file = "image.onnx"', 'input = "image"',
        'output = "unnorm_image_features"', "", "[text]", 'file = "text.onnx"', 'input = "text"',
        'output = "unnorm_text_features"',
    ]
    (OUT / "feedlens/model.toml").write_text("\n".join(lines) + "\n")


def cn_clip():
    """As deploy/pytorch_to_onnx.py: a fixed batch of 1, fp16 with its weights in *.extra_file (here they stay fp32)."""
    for precision in ("fp32", "fp16"):
        external = precision == "fp16"
        picture_tower(f"cn_clip_{precision}/vit-b-16.img.{precision}.onnx", "image", "unnorm_image_features", 1,
                      external=external)
        text_tower(f"cn_clip_{precision}/vit-b-16.txt.{precision}.onnx", "text", "unnorm_text_features", 1, 52,
                   external=external)


def hugging_face():
    """As Optimum writes ChineseCLIPModel, in one graph and split; a split one may lack its projection."""
    batches = {"batch": "text_batch_size", "length": "sequence_length"}
    write("hugging_face/model.onnx",
          [text_nodes("input_ids", "text_embeds", DIMENSION, "attention_mask"),
           picture_nodes("pixel_values", "image_embeds", DIMENSION)],
          [ids("input_ids", **batches), pictures("pixel_values", "image_batch_size"), ids("attention_mask", **batches)],
          [features("text_embeds", "text_batch_size"), features("image_embeds", "image_batch_size")])
    for folder in ("hugging_face", "hugging_face_split"):
        (OUT / folder).mkdir(parents=True, exist_ok=True)
        write_json(f"{folder}/config.json", {
            "model_type": "chinese_clip", "projection_dim": DIMENSION, "logit_scale_init_value": 2.6592,
            "text_config": {"model_type": "chinese_clip_text_model", "vocab_size": 21128, "max_position_embeddings": 512},
            "vision_config": {"model_type": "chinese_clip_vision_model", "image_size": SIDE, "patch_size": 4}})
        write_json(f"{folder}/preprocessor_config.json", {
            "crop_size": {"height": SIDE, "width": SIDE}, "do_center_crop": False, "do_convert_rgb": True,
            "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": MEAN,
            "image_processor_type": "ChineseCLIPImageProcessor", "image_std": STD, "resample": 3,
            "rescale_factor": 0.00392156862745098, "size": {"height": SIDE, "width": SIDE}})
    picture_tower("hugging_face_split/onnx/vision_model.onnx", "pixel_values", "image_embeds")
    text_tower("hugging_face_split/onnx/text_model.onnx", "input_ids", "text_embeds", mask="attention_mask")
    picture_tower("hugging_face_split/unprojected.onnx", "pixel_values", "pooler_output")


def open_clip():
    """Immich's layout (fixed batch and length, int32 tokens), and graphs with names of someone's choice."""
    model = {"embed_dim": DIMENSION, "vision_cfg": {"image_size": SIDE, "layers": 12, "width": 768, "patch_size": 4},
             "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}}
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    picture_tower("immich/visual/model.onnx", "image", "embedding", 1)
    text_tower("immich/textual/model.onnx", "text", "embedding", 1, 77, TensorProto.INT32, mask="end")
    write_json("immich/config.json", model)
    write_json("immich/visual/preprocess_cfg.json",
               {"size": [SIDE, SIDE], "mode": "RGB", "fill_color": 0} | preprocess)
    write_json("immich/textual/tokenizer_config.json", {"pad_token": "<|endoftext|>", "model_max_length": 77})
    picture_tower("open_clip/visual.onnx", "input", "output")
    text_tower("open_clip/textual.onnx", "input", "output", mask="end")
    write_json("open_clip/open_clip_config.json", {"model_cfg": model, "preprocess_cfg": preprocess})
    tokenizer = byte_pair_tokenizer()
    for folder in ("immich/textual", "open_clip"):
        write_json(f"{folder}/tokenizer.json", tokenizer)


def byte_pair_tokenizer():
    """The parts of OpenAI's tokenizer.json with the letters alone."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    vocabulary = letters + [letter + "</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    special = [{"id": vocabulary.index(token), "content": token, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": True, "special": True} for token in ("<|startoftext|>", "<|endoftext|>")]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "}, {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "behavior": "Removed", "invert": True, "pattern": {
                "Regex": "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+"}},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}]},
        "post_processor": {"type": "RobertaProcessing", "sep": ["<|endoftext|>", special[1]["id"]],
                           "cls": ["<|startoftext|>", special[0]["id"]], "trim_offsets": False,
                           "add_prefix_space": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<|endoftext|>", "continuing_subword_prefix": "",
                  "end_of_word_suffix": "</w>", "fuse_unk": False,
                  "vocab": {token: number for number, token in enumerate(vocabulary)}, "merges": []},
    }


def expected():
    """The vectors that every layout must give, and a picture of the model's own size."""
    pixels = DRAW.integers(0, 256, size=(SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(OUT / "picture.png")
    means = ((pixels / 255 - MEAN) / STD).mean(axis=(0, 1))
    wordpiece = (ROOT / "models/small/vocab.txt").read_text(encoding="utf-8").split("\n")
    byte_pairs = byte_pair_tokenizer()["model"]["vocab"]

    def item(key, value, row):
        row = row[:DIMENSION] / np.linalg.norm(row[:DIMENSION])
        return {key: value, "vector": [round(float(value), 6) for value in row]}

    def text(words, index, first, last, end):
        ids = [index(first), *(index(word + end) for word in words), index(last)]
        return TOKENS[[number % ROWS for number in ids]].sum(axis=0)

    texts = [["狗"], ["彩", "虹"], [], ["hello"] * 50]
    chinese = [item("text", " ".join(words), text(words, wordpiece.index, "[CLS]", "[SEP]", "")) for words in texts]
    english = [item("text", " ".join(words), text(words, byte_pairs.get, "<|startoftext|>", "<|endoftext|>", "</w>"))
               for words in (["a"], ["b", "c"], ["x"] * 75)]
    image = item("file", "picture.png", means @ CHANNELS)
    write_json("expected.json", {"chinese": chinese, "english": english, "image": image})
    write_json("feedlens/golden.json", {"texts": chinese, "images": [image], "tolerance": 1e-5})
    (OUT / "feedlens/picture.png").write_bytes((OUT / "picture.png").read_bytes())


if __name__ == "__main__":
    for make in (feedlens, cn_clip, hugging_face, open_clip, expected):
        make()
