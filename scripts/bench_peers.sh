#!/usr/bin/env bash
# The Python packages that benches compare with, in .cache/bench/venv. Run again at any time.
#   scripts/bench_peers.sh          what benches/tokenizer.rs needs
#   scripts/bench_peers.sh torch    and what benches/preprocess.rs needs: some gigabytes, and photographs in .cache/photos
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.cache/bench/venv
die() { printf 'bench-peers: %s\n' "$*" >&2; exit 1; }

[ -x "$venv/bin/python" ] && "$venv/bin/python" -m pip --version >/dev/null 2>&1 ||
  python3 -m venv --clear "$venv" || die "python3 could not make a virtual environment; install the package python3-venv"
# Without what it depends on: its tokenizer needs no PyTorch.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps cn-clip==1.6.0 six ||
  die "pip could not install cn-clip"
[ "${1:-}" = torch ] || exit 0
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check torch torchvision 'pillow>=13' tqdm ||
  die "pip could not install torch, torchvision and pillow"
"$venv/bin/python" tools/fetch_photos.py || die "tools/fetch_photos.py could not fetch photographs"
