#!/usr/bin/env python3
"""Writes tests/fixtures/preprocess: small pictures in every format and mode, and what the reference makes of them.

For a picture NAME (such as rgb-40x26.png) the file NAME.SIDE.RULE.rgb holds side x side x 3 bytes:

    squeeze   Chinese-CLIP: torchvision's Resize((SIDE, SIDE), BICUBIC), then RGB
    crop      OpenAI's CLIP and open_clip: Resize(SIDE, BICUBIC), CenterCrop(SIDE), then RGB
    before    Hugging Face: transformers' CLIPImageProcessor, which makes it RGB first and cuts its middle otherwise
    upright   ImageOps.exif_transpose, then as squeeze

It is empty where Pillow refuses the picture. jpeg-420-45x43.npy is the tensor that cn_clip's whole transform gives for a
resolution of 72. normalise.f32 holds 256 x 3 values as ToTensor and Normalize compute them,
planar, float32 little-endian.

Needs: pip install pillow numpy torchvision transformers (made with Pillow 13.0.0, numpy 2.4.6, torchvision 0.29.2,
transformers 4.57.6). The order of the two passes changed in Pillow 13: earlier versions give other pixels for pictures
that shrink in height above all.

    tools/make_preprocess_fixtures.py [FOLDER]
    tools/make_preprocess_fixtures.py --random COUNT FOLDER   # for a larger comparison, see src/image/resize/tests.rs
"""

import io
import random
import sys
from pathlib import Path

import numpy as np
from picture_files import write_bmp, write_png
from PIL import Image, ImageOps
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor
from transformers import CLIPImageProcessor

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

# Kind, width, height, side.
FIXED = [
    ("png-rgb", 40, 26, 16),
    ("png-rgb", 9, 14, 24),
    ("png-rgb", 1, 33, 12),
    ("png-rgb", 2, 240, 12),
    ("png-rgb", 24, 24, 24),
    ("png-rgb", 61, 97, 12),
    ("png-rgb", 16, 40, 16),
    ("png-rgb", 1, 1, 8),
    ("png-rgb16", 19, 23, 16),
    ("png-rgb-interlaced", 23, 17, 16),
    ("png-rgb-transparent", 21, 19, 16),
    ("png-rgba", 37, 29, 16),
    ("png-rgba", 11, 17, 24),
    ("png-rgba", 16, 16, 16),
    ("png-rgba", 16, 20, 16),
    ("png-rgba16", 14, 22, 16),
    ("png-la", 31, 23, 16),
    ("png-la", 8, 9, 16),
    ("png-la16", 17, 13, 16),
    ("png-l", 45, 31, 16),
    ("png-l", 7, 5, 24),
    ("png-l2", 17, 21, 16),
    ("png-l4", 22, 15, 16),
    ("png-l-transparent", 18, 27, 16),
    ("png-l16", 28, 33, 16),
    ("png-l16", 12, 12, 24),
    ("png-l16", 2, 240, 12),
    ("png-l16-transparent", 15, 18, 16),
    ("png-p", 30, 41, 16),
    ("png-p1", 19, 12, 16),
    ("png-p2", 19, 12, 16),
    ("png-p4-interlaced", 25, 18, 16),
    ("png-p-short-palette", 20, 14, 16),
    ("png-p-transparent", 21, 19, 16),
    ("png-p-alpha", 21, 19, 16),
    ("png-1", 35, 22, 16),
    ("png-1-interlaced", 35, 22, 16),
    ("gif-p", 13, 9, 24),
    ("gif-l", 20, 30, 16),
    ("gif-p-transparent", 21, 19, 16),
    ("gif-p-interlaced", 30, 26, 16),
    ("gif-frames", 24, 18, 16),
    ("bmp-rgb", 131, 5, 7),
    ("bmp-rgb-top-down", 13, 11, 16),
    ("bmp-rgb32", 13, 11, 16),
    ("bmp-rgba", 15, 17, 16),
    ("bmp-555", 21, 9, 16),
    ("bmp-565", 9, 21, 16),
    ("bmp-l", 20, 30, 16),
    ("bmp-p", 13, 29, 16),
    ("bmp-p4", 13, 29, 16),
    ("bmp-rle8", 18, 12, 16),
    ("bmp-1", 19, 40, 16),
    ("webp-lossless-rgb", 33, 21, 16),
    ("webp-lossless-rgba", 21, 33, 16),
    ("webp-lossy-rgb", 47, 35, 16),
    ("webp-lossy-rgba", 35, 47, 16),
    ("webp-frames", 24, 18, 16),
    ("jpeg-444", 37, 50, 16),
    ("jpeg-422", 50, 37, 16),
    ("jpeg-420", 45, 43, 16),
    ("jpeg-420", 8, 5, 16),
    ("jpeg-progressive", 43, 61, 16),
    ("jpeg-restarts", 64, 40, 16),
    ("jpeg-rgb", 31, 33, 16),
    ("jpeg-l", 52, 29, 16),
    ("jpeg-cmyk", 26, 35, 16),
    ("jpeg-ycck", 35, 26, 16),
    ("jpeg-damaged", 48, 40, 16),
    ("jpeg-cut-off", 48, 40, 16),
    ("jpeg-turned-6", 30, 20, 16),
    ("jpeg-turned-7", 20, 30, 16),
    ("png-turned-5", 12, 20, 16),
    ("webp-turned-8", 14, 20, 16),
]


def planes(width: int, height: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """RGB and alpha: noise on stripes and gradients, so that the kernel overshoots, and not everything averages out."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    channels = []
    for channel in range(4):
        stripes = ((rows * (channel + 2) // 5 + columns // 3) % 2) * 255
        gradient = (rows * 255 // max(height - 1, 1) + columns * 255 // max(width - 1, 1)) // 2
        noise = generator.integers(0, 256, (height, width))
        pick = generator.integers(0, 3, (height, width))
        channels.append(np.choose(pick, [stripes, gradient, noise]).astype(np.uint8))
    alpha = np.where(channels[3] < 60, 0, np.where(channels[3] > 200, 255, channels[3])).astype(np.uint8)
    return np.stack(channels[:3], axis=-1), alpha


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = orientation
    return data


def png(kind: list[str], rgb: np.ndarray, alpha: np.ndarray, seed: int) -> bytes:
    draw = np.random.default_rng(seed + 1)
    wide = lambda values: values.astype(np.uint16) * 256 + draw.integers(0, 256, values.shape)  # noqa: E731
    interlaced = "interlaced" in kind
    gray = rgb[..., :1]
    match kind[0]:
        case "rgb" if "transparent" in kind:
            return write_png(rgb, 2, 8, transparency=rgb[0, 0].astype(">u2").tobytes())
        case "rgb":
            return write_png(rgb, 2, 8, interlaced)
        case "rgb16":
            return write_png(wide(rgb), 2, 16, interlaced)
        case "rgba":
            return write_png(np.dstack([rgb, alpha]), 6, 8, interlaced)
        case "rgba16":
            return write_png(wide(np.dstack([rgb, alpha])), 6, 16, interlaced)
        case "la":
            return write_png(np.dstack([gray, alpha]), 4, 8, interlaced)
        case "la16":
            return write_png(wide(np.dstack([gray, alpha])), 4, 16, interlaced)
        case "l":
            return write_png(gray, 0, 8, interlaced, transparency=b"\0\x07" if "transparent" in kind else b"")
        case "l16":  # mostly below 256, since Pillow saturates there
            values = gray.astype(np.uint16) * 3
            return write_png(values, 0, 16, interlaced, transparency=b"\0\x07" if "transparent" in kind else b"")
        case "l2" | "l4" | "1":
            bits = {"l2": 2, "l4": 4, "1": 1}[kind[0]]
            return write_png(gray >> (8 - bits), 0, bits, interlaced)
        case _:  # a palette
            bits = int(kind[0][1:] or 8)
            colors = min(37, 1 << bits)
            image = Image.fromarray(rgb).quantize(colors)
            palette = bytes(image.getpalette()[: 3 * colors]).ljust(3 * colors, b"\0")
            indices = np.asarray(image)[..., None] % colors
            if "short" in kind:
                palette = palette[:30]
            transparency = {"transparent": b"\xff\xff\0", "alpha": bytes(range(0, 220, 20))}.get(kind[-1], b"")
            return write_png(indices, 3, bits, interlaced, palette, transparency)


def gif(kind: list[str], rgb: np.ndarray, seed: int) -> bytes:
    if kind[0] == "l":
        return saved(Image.fromarray(rgb[..., 0]), "GIF")
    image = Image.fromarray(rgb).quantize(37)
    if kind[0] == "frames":  # the first frame covers a part of the canvas
        others = [Image.fromarray(np.roll(rgb, shift, 1)).quantize(20) for shift in (3, 7)]
        data = bytearray(saved(image, "GIF", save_all=True, append_images=others, disposal=2, transparency=2))
        width, height = rgb.shape[1], rgb.shape[0]
        data[6:10] = (width + 5).to_bytes(2, "little") + (height + 3).to_bytes(2, "little")
        at = data.index(b",")
        data[at + 1 : at + 5] = b"\x02\0\x01\0"
        return bytes(data)
    options = {"transparency": 3} if "transparent" in kind else {}
    return saved(image, "GIF", interlace="interlaced" in kind, **options)


def webp(kind: list[str], rgb: np.ndarray, alpha: np.ndarray, seed: int) -> bytes:
    image = Image.fromarray(rgb)
    if kind[-1] == "rgba":
        image = Image.fromarray(np.dstack([rgb, alpha]))
    if kind[0] == "frames":
        first = Image.fromarray(np.dstack([rgb, alpha]))
        others = [Image.fromarray(np.roll(rgb, shift, 1)) for shift in (3, 7)]
        return saved(first, "WEBP", save_all=True, append_images=others, lossless=True)
    if kind[0] == "lossless":
        return saved(image, "WEBP", lossless=True, exact=bool(seed % 2))
    return saved(image, "WEBP", quality=(30, 60, 80, 95)[seed % 4])


def jpeg(kind: list[str], rgb: np.ndarray, alpha: np.ndarray, seed: int) -> bytes:
    # Photographs are smoother than the other test pictures.
    smooth = Image.fromarray(rgb).resize((max(rgb.shape[1] // 3, 1), max(rgb.shape[0] // 3, 1))).resize(rgb.shape[1::-1])
    quality = (35, 60, 75, 85, 92, 98)[seed % 6]
    match kind[0]:
        case "444" | "422" | "420":
            return saved(smooth, "JPEG", quality=quality, subsampling=":".join(kind[0]))
        case "progressive":
            return saved(smooth, "JPEG", quality=quality, progressive=True)
        case "restarts":
            return saved(smooth, "JPEG", quality=quality, restart_marker_blocks=3)
        case "rgb":
            return saved(smooth, "JPEG", quality=quality, keep_rgb=True)
        case "l":
            return saved(smooth.convert("L"), "JPEG", quality=quality)
        case "cmyk" | "ycck":
            black = Image.fromarray(alpha).resize(smooth.size)
            inks = Image.merge("CMYK", (*smooth.split(), black))
            data = bytearray(saved(inks, "JPEG", quality=quality))
            if kind[0] == "ycck":  # the last byte of Adobe's marker is the colour transform
                data[data.index(b"Adobe") + 11] = 2
            return bytes(data)
        case "damaged":
            data = bytearray(saved(smooth, "JPEG", quality=quality))
            data[len(data) * 2 // 3] ^= 0x55
            return bytes(data)
        case "cut":
            data = saved(smooth, "JPEG", quality=quality, progressive=bool(seed % 2))
            return data[: len(data) * 3 // 4]
        case _:
            return saved(smooth, "JPEG", quality=quality, exif=exif(int(kind[-1])))


def file_of(name: str, width: int, height: int, seed: int) -> bytes:
    rgb, alpha = planes(width, height, seed)
    format_, *kind = name.split("-")
    if kind[0] == "turned" and format_ != "jpeg":
        return saved(Image.fromarray(rgb), format_, exif=exif(int(kind[1])), lossless=True)
    match format_:
        case "png":
            return png(kind, rgb, alpha, seed)
        case "gif":
            return gif(kind, rgb, seed)
        case "bmp":
            return write_bmp("-".join(kind), rgb, alpha)
        case "webp":
            return webp(kind, rgb, alpha, seed)
        case _:
            return jpeg(kind, rgb, alpha, seed)


BICUBIC = InterpolationMode.BICUBIC


def transformed(rule: str, side: int, data: bytes) -> bytes:
    """What the reference makes of a picture; nothing where Pillow refuses it."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError, ValueError):
        return b""
    if rule == "upright":
        image = ImageOps.exif_transpose(image)
    if rule == "before":
        size = {"shortest_edge": side}, {"height": side, "width": side}
        processor = CLIPImageProcessor(size=size[0], crop_size=size[1], do_rescale=False, do_normalize=False)
        pixels = processor(image, input_data_format="channels_last", data_format="channels_last")["pixel_values"]
        return pixels[0].astype(np.uint8).tobytes()
    if rule in ("squeeze", "upright"):
        resize = Resize((side, side), BICUBIC)
    else:
        resize = Compose([Resize(side, BICUBIC), CenterCrop(side)])
    return resize(image).convert("RGB").tobytes()


def write(folder: Path, name: str, kind: str, width: int, height: int, side: int, seed: int) -> None:
    data = file_of(kind, width, height, seed)
    (folder / name).write_bytes(data)
    rules = ["squeeze", "upright"] if "turned" in kind else ["squeeze", "crop", "before"]
    # torchvision makes the whole resized picture before it crops: not of a line of pixels.
    if max(width, height) > 40 * min(width, height):
        rules = ["squeeze"]
    for rule in rules:
        (folder / f"{name}.{side}.{rule}.rgb").write_bytes(transformed(rule, side, data))


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] == ["--random"]:
        count, folder = int(arguments[1]), Path(arguments[2])
        folder.mkdir(parents=True, exist_ok=True)
        draw = random.Random(1)
        kinds = sorted({kind for kind, *_ in FIXED})
        for index in range(count):
            kind = draw.choice(kinds)
            width, height = (int(2 ** draw.uniform(0, 9.5)) for _ in range(2))
            side = draw.choice([1, 2, 17, 64, 96, 224])
            write(folder, f"{kind}__{index:04}.{kind.split('-')[0]}", kind, width, height, side, index)
        for index, (width, height) in enumerate([(1, 900), (900, 1), (3000, 2000), (2000, 3000), (1, 1), (5, 3000)]):
            for kind in ("png-rgb", "png-rgba", "png-l16", "png-p", "jpeg-420"):
                write(folder, f"{kind}__large{index}.{kind.split('-')[0]}", kind, width, height, 224, index)
        return
    folder = Path(arguments[0]) if arguments else Path(__file__).parent.parent / "tests/fixtures/preprocess"
    folder.mkdir(parents=True, exist_ok=True)
    for index, (kind, width, height, side) in enumerate(FIXED):
        write(folder, f"{kind}-{width}x{height}.{kind.split('-')[0]}", kind, width, height, side, index)
    # The whole transform of cn_clip, for the small model's resolution.
    whole = Compose([Resize((72, 72), BICUBIC), lambda image: image.convert("RGB"), ToTensor(), Normalize(MEAN, STD)])
    np.save(folder / "jpeg-420-45x43.npy", whole(Image.open(folder / "jpeg-420-45x43.jpeg")).numpy())
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    normalised = [(values - np.float32(mean)) / np.float32(std) for mean, std in zip(MEAN, STD)]
    (folder / "normalise.f32").write_bytes(np.concatenate(normalised).astype("<f4").tobytes())


main()
