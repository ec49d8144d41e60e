#!/usr/bin/env bash
# scripts/package.sh BINARY FOLDER: the release's archive for this machine's architecture, FOLDER/feedlens-VERSION-ARCH-linux.tar.gz:
# the binary with ONNX Runtime beside it, the bundled model and feed, completion scripts and manual pages. Unpacked anywhere, its
# `./feedlens demo` runs in its folder.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=$1
folder=$(realpath "$2")

version=$("$binary" --version | cut -d ' ' -f 2)
name="feedlens-$version-$(uname -m)-linux"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root="$work/$name"

install -D "$binary" "$root/feedlens"
strip "$root/feedlens"
deploy/image/wheel.sh deploy/image/onnxruntime-cpu.txt "$root/lib"
mkdir -p "$root/models" "$root/completions"
cp -r models/small "$root/models/"
cp -r demo LICENSE README.md CHANGELOG.md "$root/"
install -D -m 644 config/default.toml "$root/config/default.toml"
for shell in bash zsh fish; do "$root/feedlens" completions "$shell" >"$root/completions/feedlens.$shell"; done
"$root/feedlens" man --out "$root/man/man1" >/dev/null
tar --create --gzip --owner 0 --group 0 --directory "$work" --file "$folder/$name.tar.gz" "$name"
echo "$folder/$name.tar.gz"
