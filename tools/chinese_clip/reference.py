"""Chinese-CLIP in PyTorch, by the code of the package cn-clip: what the exported graphs must agree with."""

import contextlib
import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import torch
from cn_clip import clip
from cn_clip.clip import utils
from cn_clip.clip.model import CLIP, convert_state_dict, convert_weights

ARCHITECTURES = tuple(sorted(utils._MODEL_INFO))
CONTEXT_LENGTH = 52
VOCABULARY = Path(clip.__file__).parent / "vocab.txt"


class WrongInput(Exception):
    """What the caller gave cannot serve; the message is one sentence for people."""


def configuration(arch):
    """The architecture's widths and depths, from the JSON files of the package."""
    merged = {}
    for part in utils._MODEL_INFO[arch]["struct"].split("@"):
        merged |= json.loads((Path(clip.__file__).parent / "model_configs" / f"{part}.json").read_text())
    if isinstance(merged["vision_layers"], str):
        merged["vision_layers"] = json.loads(merged["vision_layers"])
    return merged


def empty_model(config):
    """The model without memory for its weights: names and shapes only."""
    with torch.device("meta"), contextlib.redirect_stdout(io.StringIO()):
        return CLIP(**config)


def finish(model):
    """Rounds weights to fp16 as `load_from_name` and cn_clip's own ONNX export do, then computes in fp32."""
    convert_weights(model)
    return model.float().eval()


def from_checkpoint(arch, path):
    """The model with the weights of a file: released, fine-tuned, or trained with flash attention.

    Raises WrongInput where the file is not a checkpoint of this architecture.
    """
    state = read_state(path)
    model = empty_model(configuration(arch))
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    check_state(arch, path, state, expected)
    model.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    return finish(model)


def read_state(path):
    """A checkpoint's tensors under the names of the model, whatever wrapper it was saved from."""
    try:
        # The format before PyTorch 1.6 is no zip file, and cannot be mapped.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise WrongInput(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:
        # PyTorch's own text advises to load what may run code.
        raise WrongInput(f"{path} is no PyTorch checkpoint, is damaged, or holds more than tensors") from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WrongInput(f"{path} holds no state_dict; give the .pt file that cn_clip published or saved")
    if "text_model.embeddings.word_embeddings.weight" in state:
        raise WrongInput(f"{path} is a Hugging Face checkpoint; give cn_clip's clip_cn_*.pt, or an ONNX export of it")
    state = {"module." + name.removeprefix("module."): value for name, value in state.items()}
    if any("Wqkv" in name for name in state):
        state = convert_state_dict(state)
    return {name.removeprefix("module."): value for name, value in state.items() if "bert.pooler" not in name}


def check_state(arch, path, state, expected):
    found = {name: tuple(value.shape) for name, value in state.items()}
    if found == expected:
        return
    for other in ARCHITECTURES:
        shapes = {name: tuple(value.shape) for name, value in empty_model(configuration(other)).state_dict().items()}
        if found == shapes:
            raise WrongInput(f"{path} holds the weights of {other}, not of {arch}; say --arch {other}")
    for name, shape in expected.items():
        if name not in found:
            raise WrongInput(f"{path} lacks {name!r}, so it is no checkpoint of {arch}")
        if found[name] != shape:
            raise WrongInput(f"{path}: {name!r} has shape {list(found[name])}, {arch} needs {list(shape)}")
    extra = next(name for name in found if name not in expected)
    raise WrongInput(f"{path} holds {extra!r}, which {arch} does not have")


def from_seed(config, seed):
    """The model with random weights that leave no part of it idle.

    The package's own initialisation switches the residual branches of RN50 off (bn3 = 0), sets biases and batch norms to
    constants that hide errors, and makes all texts nearly the same vector; here every tensor counts.
    """
    model = empty_model(config).to_empty(device="cpu")
    draw = torch.Generator().manual_seed(seed)

    def normal(tensor, mean, deviation):
        tensor.copy_(torch.randn(tensor.shape, generator=draw) * deviation + mean)

    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name == "logit_scale":
                tensor.fill_(float(np.log(100)) - 0.1 * float(torch.rand((), generator=draw)))
            elif name.endswith("num_batches_tracked"):
                tensor.fill_(1)
            elif name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=draw))
            elif name.endswith("embeddings.weight") or name.endswith("positional_embedding"):
                normal(tensor, 0.0, 0.3 if "word" in name else 0.1)
            elif name.endswith("bn3.weight"):
                normal(tensor, 0.4, 0.1)
            elif tensor.dim() == 1 and name.endswith("weight"):
                normal(tensor, 1.0, 0.1)
            elif tensor.dim() == 1:
                normal(tensor, 0.0, 0.1)
            elif tensor.dim() == 4:
                normal(tensor, 0.0, (2 / tensor[0].numel()) ** 0.5)
            else:
                inputs = tensor.shape[0] if name in ("text_projection", "visual.proj") else tensor.shape[-1]
                normal(tensor, 0.0, inputs ** -0.5)
    return finish(model)


def checkpoint_hash(path):
    """First 8 hexadecimal digits of the file's SHA-256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def image_features(model, pictures):
    """Unnormalised [N, D] features of PIL pictures or of a tensor [N, 3, R, R]."""
    if not isinstance(pictures, torch.Tensor):
        transform = clip.image_transform(model.visual.input_resolution)
        pictures = torch.stack([transform(picture) for picture in pictures])
    with torch.no_grad():
        return model.encode_image(pictures).numpy()


def text_features(model, texts):
    """Unnormalised [N, D] features of strings, padded to 52 as cn_clip does, or of ids [N, L]."""
    tokens = texts if isinstance(texts, torch.Tensor) else clip.tokenize(list(texts), CONTEXT_LENGTH)
    with torch.no_grad():
        return model.encode_text(tokens).numpy()
