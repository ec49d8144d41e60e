"""Write the demo feed: the Twemoji drawings as small pictures, posts about them, and labelled pairs for `eval`.

    python tools/make_feed.py --npm .cache/train_small/node_modules --out demo

The same input gives the same files. Needs what tools/train_small/requirements.txt and package.json name, and
rsvg-convert.
"""

import argparse
import base64
import datetime
import io
import json
import multiprocessing
import os
import random
import struct
import sys
import zlib

from PIL import Image

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "train_small"))

from categories import categories  # noqa: E402
from emoji_data import load_emoji  # noqa: E402
from feed_captions import AUTHORS, SENTENCES  # noqa: E402
from render import draw  # noqa: E402
from styles import TEST_STYLE, sources  # noqa: E402

SEED = 2026
FIRST_POST = datetime.datetime(2026, 11, 14, 0, 4, tzinfo=datetime.timezone.utc)
MEAN_SECONDS_BETWEEN_POSTS = 330
COLOURS = 64


def picture(job):
    """On white, few colours but stored as RGB: Chinese-CLIP's preprocessing resizes palette pictures by nearest."""
    index, source, size = job
    drawing = draw(source, size)
    ground = Image.new("RGBA", drawing.size, "white")
    flat = Image.alpha_composite(ground, drawing).convert("RGB")
    flat = flat.quantize(COLOURS, dither=Image.Dither.NONE).convert("RGB")
    out = io.BytesIO()
    flat.save(out, "PNG", optimize=True)
    return index, out.getvalue()


def post(e, number, created_at, dice):
    label = e.label["zh"]
    if e.group == "flags":
        label = label.split(": ")[-1]
        key = "flags" if e.subgroup != "flag" else "other-object"
    else:
        key = e.subgroup if e.subgroup in SENTENCES else e.group
    caption = dice.choice(SENTENCES[key]).replace("{n}", str(1 + number % 60)).replace("{}", label)
    tags = [t for t in e.tags["zh"] if t != e.label["zh"]][:4]
    return {"post_id": f"demo:{e.code}", "author": dice.choice(AUTHORS), "caption": caption, "lang": "zh",
            "created_at": created_at, "tags": tags, "image": {"path": f"images/{e.code}.png"}}


def stamp(moment):
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def bad_lines(some_png):
    """Eight posts that can never be indexed, one for each way a post goes bad."""
    common = {"author": "坏帖机器人", "lang": "zh", "created_at": "2026-11-18T12:00:00Z"}

    def line(post_id, image=None, caption="这条帖子的图片有问题"):
        value = {"post_id": f"demo:bad:{post_id}", **common}
        if caption is not None:
            value["caption"] = caption
        if image is not None:
            value["image"] = image
        return json.dumps(value, ensure_ascii=False)

    def b64(data):
        return {"base64": base64.b64encode(data).decode()}

    whole = line("broken-json", caption="写到一半就断了")
    no_id = {**common, "caption": "没有编号的帖子", "image": {"path": "images/1f34e.png"}}
    return [
        whole[:len(whole) // 2],
        json.dumps(no_id, ensure_ascii=False),
        line("empty", caption=None),
        line("truncated-png", b64(some_png[:len(some_png) // 3])),
        line("text-as-picture", b64("这不是图片，只是一段文字。".encode())),
        line("link-local", {"url": "http://169.254.169.254/latest/meta-data/"}),
        line("outside-root", {"path": "../../etc/passwd"}),
        line("huge-header", b64(huge_png())),
    ]


def huge_png():
    """A valid PNG header that claims 60000 x 60000 pixels, with a few bytes of data behind it."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def write_lines(path, lines):
    with open(path, "w", encoding="utf-8", newline="\n") as f:
        f.writelines(line + "\n" for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--npm", default=".cache/train_small/node_modules")
    parser.add_argument("--out", default="demo")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--no-pictures", action="store_true", help="write the text files only")
    args = parser.parse_args()
    emoji = load_emoji(args.npm)
    os.makedirs(os.path.join(args.out, "images"), exist_ok=True)
    if not args.no_pictures:
        jobs = [(i, s, args.size) for i, s in sources(TEST_STYLE, emoji, args.npm)]
        with multiprocessing.Pool(2) as pool:
            for index, data in pool.imap(picture, jobs, chunksize=16):
                with open(os.path.join(args.out, "images", emoji[index].code + ".png"), "wb") as f:
                    f.write(data)

    def dumps(value):
        return json.dumps(value, ensure_ascii=False)

    file = {e.index: f"images/{e.code}.png" for e in emoji}
    for lang in ("zh", "en"):
        write_lines(os.path.join(args.out, f"labels_{lang}.jsonl"),
                    [dumps({"text": e.label[lang], "image": file[e.index]}) for e in emoji])
    write_lines(os.path.join(args.out, "categories_zh.jsonl"),
                [dumps({"text": word, "images": [file[i] for i in sorted(members)]})
                 for word, members in categories(emoji)])

    dice = random.Random(SEED)
    order = list(emoji)
    dice.shuffle(order)
    moment, lines = FIRST_POST, []
    for number, e in enumerate(order):
        lines.append(dumps(post(e, number, stamp(moment), dice)))
        moment += datetime.timedelta(seconds=1 + int(dice.expovariate(1 / MEAN_SECONDS_BETWEEN_POSTS)))
    with open(os.path.join(args.out, "images", "1f34e.png"), "rb") as f:
        bad = bad_lines(f.read())
    for number, line in enumerate(bad):
        lines.insert((number + 1) * len(lines) // (len(bad) + 1) + dice.randrange(40), line)
    write_lines(os.path.join(args.out, "feed.jsonl"), lines)
    print(f"{len(emoji)} good posts, {len(bad)} bad posts, last at {stamp(moment)}")


if __name__ == "__main__":
    main()
