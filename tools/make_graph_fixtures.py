"""Writes the small graphs of tests/fixtures/graphs: towers in every shape that other people's exports have.

    pip install onnx numpy
    python tools/make_graph_fixtures.py

Each has a few hundred bytes of weights and computes something that a test can foretell:
picture tower  mean of each channel (after normalising), times a matrix [3, 4]
text tower     mean of the rows of a table [100, 4] at the tokens; padding (0) does not count. Id 99 is not a number, ids
               from 100 on are out of range: the run fails.
"""

import pathlib

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

OUT = pathlib.Path(__file__).parent.parent / "tests/fixtures/graphs"
RESOLUTION, DIMENSION, VOCABULARY, CONTEXT = 8, 4, 100, 16
random = numpy.random.default_rng(7)
MIXER = random.standard_normal((3, DIMENSION)).astype("float32")
TABLE = random.standard_normal((VOCABULARY, DIMENSION)).astype("float32")
TABLE[99] = numpy.nan


def constant(name, array):
    return numpy_helper.from_array(numpy.asarray(array), name)


def image_nodes(mixer="mixer", source="image", target="image_features"):
    return [
        helper.make_node("ReduceMean", [source], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["means", mixer], [target]),
    ]


def text_nodes(source="text", mask=None, target="text_features"):
    nodes = [helper.make_node("Cast", [source], ["ids"], to=TensorProto.INT64)]
    if mask:
        nodes.append(helper.make_node("Cast", [mask], ["counted"], to=TensorProto.FLOAT))
    else:
        nodes.append(helper.make_node("Cast", ["ids"], ["as_bool"], to=TensorProto.BOOL))
        nodes.append(helper.make_node("Cast", ["as_bool"], ["counted"], to=TensorProto.FLOAT))
    return nodes + [
        helper.make_node("Gather", ["table", "ids"], ["rows"], axis=0),
        helper.make_node("Unsqueeze", ["counted", "last"], ["weights"]),
        helper.make_node("Mul", ["rows", "weights"], ["weighed"]),
        helper.make_node("ReduceSum", ["weighed", "middle"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["weights", "middle"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], [target]),
    ]


TEXT_CONSTANTS = [constant("table", TABLE), constant("last", [2]), constant("middle", [1])]


def tensor(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def save(name, nodes, inputs, outputs, constants, **options):
    graph = helper.make_graph(nodes, name, inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save_model(model, OUT / f"{name}.onnx", **options)


def image(name, kind=TensorProto.FLOAT, batch="batch", side=RESOLUTION, dimension=DIMENSION):
    mixer = numpy.resize(MIXER, (3, dimension)).astype("float16" if kind == TensorProto.FLOAT16 else "float32")
    inputs = [tensor("image", kind, [batch, 3, side, side])]
    outputs = [tensor("image_features", kind, [batch, dimension])]
    save(name, image_nodes(), inputs, outputs, [constant("mixer", mixer)])


def text(name, kind=TensorProto.INT64, batch="batch", length="length", mask=None, **options):
    inputs = [tensor("text", kind, [batch, length])]
    if mask:
        inputs.append(tensor(mask, kind, [batch, length]))
    outputs = [tensor("text_features", TensorProto.FLOAT, [batch, DIMENSION])]
    save(name, text_nodes(mask=mask), inputs, outputs, TEXT_CONSTANTS, **options)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    image("image")
    image("image_float16", kind=TensorProto.FLOAT16)
    image("image_batch_1", batch=1)
    image("image_16_pixels", side=16)
    image("image_8_values", dimension=8)
    text("text")
    text("text_int32_padded", kind=TensorProto.INT32, length=CONTEXT)
    text("text_batch_1", batch=1, length=CONTEXT)
    text("text_masked", mask="attention_mask")
    text("text_external", save_as_external_data=True, location="text_external.data", size_threshold=100)
    inputs = [
        tensor("input_ids", TensorProto.INT64, ["text_batch", "length"]),
        tensor("pixel_values", TensorProto.FLOAT, ["image_batch", 3, "height", "width"]),
        tensor("attention_mask", TensorProto.INT64, ["text_batch", "length"]),
    ]
    outputs = [
        tensor("logits_per_image", TensorProto.FLOAT, ["image_batch", "text_batch"]),
        tensor("text_features", TensorProto.FLOAT, ["text_batch", DIMENSION]),
        tensor("image_features", TensorProto.FLOAT, ["image_batch", DIMENSION]),
    ]
    nodes = text_nodes("input_ids", "attention_mask") + image_nodes(source="pixel_values") + [
        helper.make_node("Transpose", ["text_features"], ["columns"], perm=[1, 0]),
        helper.make_node("MatMul", ["image_features", "columns"], ["logits_per_image"]),
    ]
    save("both", nodes, inputs, outputs, [constant("mixer", MIXER), *TEXT_CONSTANTS])


if __name__ == "__main__":
    main()
