"""The towers as ONNX graphs: dynamic batch and text length, in fp32, fp16 or int8."""

import logging
import os
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import nn

OPSET = 17
# Protocol buffers end at 2 GiB; room for what is not weights.
MAX_INLINE_BYTES = 2 * 1024**3 - 64 * 1024**2
NAMES = {"image": ("image", "unnorm_image_features"), "text": ("text", "unnorm_text_features")}


class ImageTower(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image):
        return self.model.encode_image(image)


class TextTower(nn.Module):
    """The mask is made inside, as text != 0, so what is padded never counts."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, text):
        return self.model.encode_text(text)


def write_tower(model, tower, precision, folder):
    """Writes `<tower>.onnx`, with `<tower>.onnx.data` beside it where it would not fit into one file."""
    folder, scratch = Path(folder), Path(folder) / f"scratch-{tower}"
    scratch.mkdir()
    single = scratch / "fp32.onnx"
    to_onnx(model, tower, single)
    # Above 2 GiB the exporter writes a file for each weight; loading gathers them.
    graph = onnx.load(single)
    remove_all(scratch)
    if precision == "fp16":
        graph = to_half(graph)
    if precision == "int8":
        graph = to_int8(graph, folder / f"scratch-{tower}")
    save(graph, folder / f"{tower}.onnx")


def to_onnx(model, tower, path):
    resolution = model.visual.input_resolution
    if tower == "image":
        module, example, axes = ImageTower(model), torch.zeros(2, 3, resolution, resolution), {0: "batch"}
    else:
        module, axes = TextTower(model), {0: "batch", 1: "length"}
        example = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]])
    name_in, name_out = NAMES[tower]
    # The exporter gives a module its mode back afterwards: a new wrapper's is training, for the model inside as well.
    module.eval()
    with warnings.catch_warnings(), torch.no_grad():
        # It warns that it is the old exporter, and of shapes that are constants of the architecture.
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (example,), str(path), input_names=[name_in], output_names=[name_out],
                          dynamic_axes={name_in: axes, name_out: {0: "batch"}}, opset_version=OPSET, dynamo=False)


def to_half(graph):
    """Weights and arithmetic in fp16; inputs and outputs stay fp32. The text mask's -10000 is within fp16's range."""
    return convert_float_to_float16(graph, keep_io_types=True, disable_shape_infer=too_large(graph))


def to_int8(graph, scratch):
    """Weights of matrix products as int8, one scale for each output channel; activations are quantised as they come, by the
    extremes of the whole batch: a vector depends a little on the items that are encoded with it.

    Convolutions stay fp32: quantised ones are slower on CPUs. `reduce_range` (7 bits) because processors with AVX2 but
    without VNNI add pairs of 8-bit products in 16 bits, which saturates.
    """
    scratch.mkdir(exist_ok=True)
    # The quantiser knows MatMul only, and the exporter writes some linear layers as Gemm.
    wrapped = ONNXModel(graph)
    wrapped.replace_gemm_with_matmul()
    save(wrapped.model, scratch / "fp32.onnx")
    # It advises a preparation that only matters for static quantisation.
    logging.disable(logging.WARNING)
    quantize_dynamic(scratch / "fp32.onnx", scratch / "int8.onnx", op_types_to_quantize=["MatMul"], per_channel=True,
                     reduce_range=True, weight_type=QuantType.QInt8, use_external_data_format=too_large(wrapped.model),
                     extra_options={"MatMulConstBOnly": True})
    quantised = onnx.load(scratch / "int8.onnx")
    remove_all(scratch)
    return quantised


def too_large(graph):
    """Whether the weights alone would not fit into one file; protobuf's own ByteSize fails beyond 2 GiB."""
    return sum(len(tensor.raw_data) for tensor in graph.graph.initializer) > MAX_INLINE_BYTES


def save(graph, path):
    if not too_large(graph):
        onnx.save(graph, path)
    else:
        weights = path.name + ".data"
        onnx.save(graph, path, save_as_external_data=True, all_tensors_to_one_file=True, location=weights)
        # onnx makes it readable to its owner alone, unlike the graph.
        path.with_name(weights).chmod(path.stat().st_mode)


def remove_all(folder):
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def session(path, threads=0):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])


def run(tower_session, tower, batch):
    """Unnormalised [N, D] features of pictures [N, 3, R, R] (f32) or ids [N, L] (i64)."""
    return tower_session.run(None, {NAMES[tower][0]: np.asarray(batch)})[0]
