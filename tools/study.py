#!/usr/bin/env python3
"""Makes a retrieval study of any size from the demo's drawings, and runs `feedlens match` on it.

    tools/study.py make DIR [--pictures 50000] [--texts 50000] [--queries 5000]
    tools/study.py run DIR [--binary target/release/feedlens] [--model models/small]

`make` (needs Pillow) writes DIR/ImageData with varied drawings (hue, crop and size by the picture's number: the same input
gives the same files), and the four tables of a study: word_test.csv (texts that search) with image_data.csv, and
image_test.csv (pictures that search) with word_data.csv. `run` searches both ways. The first way is killed with SIGKILL
half-way and started again; a run that nobody disturbed must give the same bytes. It prints seconds and the peak of the
resident memory of each run.
"""

import argparse
import colorsys
import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path


def read_lines(path):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def write_table(path, header, rows):
    with open(path, "w", encoding="utf-8", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(header)
        writer.writerows(rows)


def texts(demo, count):
    labels = [line["text"] for name in ("zh", "en") for line in read_lines(demo / f"labels_{name}.jsonl")]
    return [(f"Word-{i:05}", labels[i % len(labels)] + ("" if i < len(labels) else f" {i // len(labels)}")) for i in range(count)]


def vary(picture, number):
    """A crop, another hue and another size, all from the number."""
    from PIL import Image
    rng = random.Random(number)
    width, height = picture.size
    left, top = rng.randint(0, width // 8), rng.randint(0, height // 8)
    picture = picture.crop((left, top, width - rng.randint(0, width // 8), height - rng.randint(0, height // 8)))
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), 0.35, 1.0)
    picture = picture.convert("RGB", (red, 0, 0, 0, 0, green, 0, 0, 0, 0, blue, 0))
    return picture.resize((rng.randint(90, 240), rng.randint(90, 240)), Image.Resampling.BILINEAR)


def make(args):
    from PIL import Image
    folder = args.dir / "ImageData"
    folder.mkdir(parents=True, exist_ok=True)
    drawings = sorted((args.demo / "images").glob("*.png"))
    names = [f"Image{i:05}.jpg" for i in range(args.pictures)]
    opened = [Image.open(file).convert("RGB") for file in drawings]
    for number, name in enumerate(names):
        vary(opened[number % len(opened)], number).save(folder / name, quality=85)
    write_table(args.dir / "image_data.csv", ["image_id"], [[name] for name in names])
    write_table(args.dir / "image_test.csv", ["image_id"], [[name] for name in names[:args.queries]])
    write_table(args.dir / "word_data.csv", ["text_id", "caption"], texts(args.demo, args.texts))
    write_table(args.dir / "word_test.csv", ["text_id", "caption"], texts(args.demo, args.queries))


def start(args, out, *options):
    command = [args.binary, "match", "--model", args.model, "--images", args.dir / "ImageData", "--out", args.dir / out,
               "--scores", *options]
    return subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)


def finish(name, process, started):
    log = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    print(json.dumps({"run": name, "exit code": code, "seconds": round(time.monotonic() - started, 1),
                      "peak resident MiB": usage.ru_maxrss // 1024}), flush=True)
    return code, log


def run(args):
    forth = ["--texts", args.dir / "word_test.csv", "--candidates", args.dir / "image_data.csv"]
    back = ["--queries", args.dir / "image_test.csv", "--texts", args.dir / "word_data.csv"]
    for name in ("killed.csv", "whole.csv", "back.csv"):
        (args.dir / name).unlink(missing_ok=True)
    work = args.dir / "killed.csv.work"
    started, process = time.monotonic(), start(args, "killed.csv", *forth)
    half = args.half_bytes
    while process.poll() is None and (not work.exists() or work.stat().st_size < half):
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    finish(f"killed when the work file had {work.stat().st_size} bytes", process, started)
    runs = [("killed.csv", forth, "started again"), ("whole.csv", forth, "undisturbed"), ("back.csv", back, "the other way")]
    for out, options, name in runs:
        started = time.monotonic()
        code, log = finish(name, start(args, out, *options), started)
        print("\n".join(line for line in log.splitlines() if "work file" in line or code != 0), flush=True)
        if code != 0:
            sys.exit(f"{name}: exit code {code}")
    same = (args.dir / "killed.csv").read_bytes() == (args.dir / "whole.csv").read_bytes()
    rows = {name: sum(1 for _ in open(args.dir / name, encoding="utf-8")) - 1 for name in ("whole.csv", "back.csv")}
    print(json.dumps({"rows": rows, "the killed run gives the same bytes": same}))
    if not same:
        sys.exit("the results differ")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    maker = commands.add_parser("make")
    maker.add_argument("--pictures", type=int, default=50_000)
    maker.add_argument("--texts", type=int, default=50_000)
    maker.add_argument("--queries", type=int, default=5_000)
    maker.add_argument("--demo", type=Path, default=Path("demo"))
    maker.set_defaults(call=make)
    runner = commands.add_parser("run")
    runner.add_argument("--binary", type=Path, default=Path("target/release/feedlens"))
    runner.add_argument("--model", type=Path, default=Path("models/small"))
    runner.add_argument("--half-bytes", type=int, default=15_000_000, help="kill when the work file has as many")
    runner.set_defaults(call=run)
    for command in (maker, runner):
        command.add_argument("dir", type=Path, metavar="DIR")
    args = parser.parse_args()
    args.call(args)


if __name__ == "__main__":
    main()
