"""Render every style once to uint8 arrays: `<out>/<style>.npz` with `pixels` [n, S, S, 4] and `index` [n].

Colours are premultiplied by alpha, so that laying a drawing on any background is one multiply and one add.
"""

import argparse
import io
import multiprocessing
import os
import subprocess
import tempfile

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from emoji_data import load_emoji
from styles import STYLES, sources


def draw(source, size):
    """One source as an RGBA picture of at most size x size, centred on a square."""
    kind, value = source
    if kind in ("svg", "svg-file"):
        data = value.encode() if kind == "svg" else open(value, "rb").read()
        picture = Image.open(io.BytesIO(subprocess.run(
            ["rsvg-convert", "-w", str(size), "-h", str(size), "-a"], input=data, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, check=True).stdout)).convert("RGBA")
    elif kind == "picture":
        picture = Image.open(value).convert("RGBA")
        picture = picture.resize((size, size), Image.BICUBIC)
    else:
        picture = _glyph(*value, size)
    square = Image.new("RGBA", (size, size))
    square.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
    return square


def _glyph(file, point, size):
    """A black glyph of the monochrome font, fitted into the square."""
    if file not in _FONTS:
        from fontTools.ttLib import TTFont

        font = TTFont(file)
        font.flavor = None
        plain = tempfile.NamedTemporaryFile(suffix=".ttf")
        font.save(plain.name)
        _FONTS[file] = (ImageFont.truetype(plain.name, int(size * 0.8)), plain)
    font = _FONTS[file][0]
    left, top, right, bottom = font.getbbox(chr(point))
    width, height = max(1, right - left), max(1, bottom - top)
    picture = Image.new("RGBA", (width, height))
    ImageDraw.Draw(picture).text((-left, -top), chr(point), font=font, fill=(0, 0, 0, 255))
    picture.thumbnail((size, size), Image.BICUBIC)
    return picture


_FONTS = {}


def premultiplied(picture):
    pixels = np.asarray(picture, dtype=np.uint16)
    alpha = pixels[..., 3:]
    return np.concatenate([(pixels[..., :3] * alpha + 127) // 255, alpha], axis=-1).astype(np.uint8)


def _work(job):
    index, source, size = job
    try:
        return index, premultiplied(draw(source, size))
    except (subprocess.CalledProcessError, OSError, ValueError) as error:
        return index, repr(error)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--npm", default=".cache/train_small/node_modules", help="folder with the npm packages")
    parser.add_argument("--out", default=".cache/train_small/rendered")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--styles", nargs="*", default=list(STYLES))
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    emoji = load_emoji(args.npm)
    with multiprocessing.Pool(args.processes) as pool:
        for style in args.styles:
            jobs = [(i, s, args.size) for i, s in sources(style, emoji, args.npm)]
            done = pool.map(_work, jobs, chunksize=16)
            failed = [r for r in done if isinstance(r[1], str)]
            good = [r for r in done if not isinstance(r[1], str) and r[1][..., 3].any()]
            np.savez(os.path.join(args.out, style + ".npz"), pixels=np.stack([p for _, p in good]),
                     index=np.array([i for i, _ in good], dtype=np.int64))
            print(f"{style}: {len(good)} drawn, {len(failed)} failed {failed[:1]}", flush=True)


if __name__ == "__main__":
    main()
