#!/usr/bin/env python3
"""Writes tests/fixtures/preprocess: small pictures in each mode, and what Pillow makes of them.

For every picture NAME.png (.gif, .bmp): NAME.<side>.rgb holds side x side x 3 bytes, from Chinese-CLIP's own steps
`Image.open(NAME).resize((side, side), BICUBIC).convert("RGB")`. normalise.f32 holds 256 x 3 values as ToTensor and
Normalize compute them, planar, float32 little-endian.

Needs: pip install pillow numpy (made with Pillow 12.3.0 and numpy 2.4.6).

    tools/make_preprocess_fixtures.py [FOLDER]
    tools/make_preprocess_fixtures.py --random COUNT FOLDER   # for a larger comparison, see src/image/resize/tests.rs
"""

import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

# mode, width, height, side, file ending
FIXED = [
    ("RGB", 40, 26, 16, "png"),
    ("RGB", 9, 14, 24, "png"),
    ("RGB", 1, 33, 12, "png"),
    ("RGB", 2, 240, 12, "png"),
    ("I;16", 2, 240, 12, "png"),
    ("RGB", 24, 24, 24, "png"),
    ("RGB", 131, 5, 7, "bmp"),
    ("RGBA", 37, 29, 16, "png"),
    ("RGBA", 11, 17, 24, "png"),
    ("RGBA", 16, 16, 16, "png"),
    ("RGBA", 16, 20, 16, "png"),
    ("LA", 31, 23, 16, "png"),
    ("LA", 8, 9, 16, "png"),
    ("L", 45, 31, 16, "png"),
    ("L", 7, 5, 24, "png"),
    ("L", 20, 30, 16, "gif"),
    ("L", 20, 30, 16, "bmp"),
    ("P", 30, 41, 16, "png"),
    ("P", 13, 9, 24, "gif"),
    ("P", 13, 29, 16, "bmp"),
    ("P-transparent", 21, 19, 16, "png"),
    ("P-transparent", 21, 19, 16, "gif"),
    ("RGB-transparent", 21, 19, 16, "png"),
    ("1", 35, 22, 16, "png"),
    ("1", 19, 40, 16, "bmp"),
    ("I;16", 28, 33, 16, "png"),
    ("I;16", 12, 12, 24, "png"),
]


def picture(mode: str, width: int, height: int, seed: int) -> Image.Image:
    """Noise on gradients: enough edges for the kernel to overshoot, not only noise that averages out."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    planes = []
    for channel in range(4):
        stripes = ((rows * (channel + 2) // 5 + columns // 3) % 2) * 255
        gradient = (rows * 255 // max(height - 1, 1) + columns * 255 // max(width - 1, 1)) // 2
        noise = generator.integers(0, 256, (height, width))
        pick = generator.integers(0, 3, (height, width))
        planes.append(np.choose(pick, [stripes, gradient, noise]).astype(np.uint8))
    rgb = np.stack(planes[:3], axis=-1)
    alpha = np.where(planes[3] < 60, 0, np.where(planes[3] > 200, 255, planes[3])).astype(np.uint8)
    if mode == "RGB":
        return Image.fromarray(rgb)
    if mode == "RGBA":
        return Image.fromarray(np.dstack([rgb, alpha]))
    if mode == "L":
        return Image.fromarray(planes[0])
    if mode == "LA":
        return Image.fromarray(np.dstack([planes[0], alpha]))
    if mode == "I;16":
        return Image.fromarray(planes[0].astype(np.uint16) * 3)
    if mode == "1":
        return Image.fromarray(planes[0]).convert("1")
    if mode in ("P", "P-transparent"):
        return Image.fromarray(rgb).quantize(37)
    if mode == "RGB-transparent":
        return Image.fromarray(rgb)
    raise ValueError(mode)


def save(image: Image.Image, mode: str, path: Path) -> None:
    options = {}
    if mode == "P-transparent":
        options["transparency"] = 3
    if mode == "RGB-transparent":
        options["transparency"] = image.getpixel((0, 0))
    image.save(path, **options)


def write(folder: Path, name: str, mode: str, width: int, height: int, side: int, ending: str, seed: int) -> None:
    path = folder / f"{name}.{ending}"
    save(picture(mode, width, height, seed), mode, path)
    with Image.open(path) as image:
        resized = image.resize((side, side), Image.Resampling.BICUBIC).convert("RGB")
    (folder / f"{name}.{ending}.{side}.rgb").write_bytes(resized.tobytes())


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] == ["--random"]:
        count, folder = int(arguments[1]), Path(arguments[2])
        folder.mkdir(parents=True, exist_ok=True)
        draw = random.Random(1)
        endings = {"I;16": ["png"], "RGBA": ["png"], "LA": ["png"], "RGB-transparent": ["png"], "P-transparent": ["png", "gif"]}
        for index in range(count):
            mode = draw.choice(["RGB", "RGB", "RGBA", "LA", "L", "P", "1", "I;16", "P-transparent", "RGB-transparent"])
            width, height = (int(2 ** draw.uniform(0, 10)) for _ in range(2))
            side = draw.choice([1, 2, 17, 64, 64, 96, 224])
            ending = draw.choice(endings.get(mode, ["png", "bmp"]))
            write(folder, f"{index:04}", mode, width, height, side, ending, index)
        return
    folder = Path(arguments[0]) if arguments else Path(__file__).parent.parent / "tests/fixtures/preprocess"
    folder.mkdir(parents=True, exist_ok=True)
    for index, (mode, width, height, side, ending) in enumerate(FIXED):
        name = f"{mode.replace(';', '').lower()}-{width}x{height}"
        write(folder, name, mode, width, height, side, ending, index)
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    planes = [(values - np.float32(mean)) / np.float32(std) for mean, std in zip(MEAN, STD)]
    (folder / "normalise.f32").write_bytes(np.concatenate(planes).astype("<f4").tobytes())


main()
