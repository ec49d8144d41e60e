#!/usr/bin/env bash
# scripts/package.sh BINARY LIBRARIES FOLDER: the release's archive for this machine's architecture,
# FOLDER/feedlens-VERSION-ARCH-linux.tar.gz: the binary with the files of LIBRARIES (ONNX Runtime, by deploy/image/wheel.sh) beside
# it, the bundled model and feed, completion scripts, manual pages, and the documents with what they point to. Unpacked anywhere, its
# `./feedlens demo` runs in its folder.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=$1
libraries=$2
folder=$(realpath "$3")

version=$("$binary" --version | cut -d ' ' -f 2)
name="feedlens-$version-$(uname -m)-linux"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root="$work/$name"

install -D "$binary" "$root/feedlens"
strip "$root/feedlens"
cp -r "$libraries" "$root/lib"
cp -r config demo docs k8s observability CHANGELOG.md CONTRIBUTING.md LICENSE README.md README.zh.md "$root/"
cp -r --parents deploy/compose models/small "$root/"
mkdir "$root/completions"
# By the names that the shells look for.
for completion in bash:feedlens zsh:_feedlens fish:feedlens.fish; do
  "$root/feedlens" completions "${completion%%:*}" >"$root/completions/${completion#*:}"
done
"$root/feedlens" man --out "$root/man/man1" >/dev/null
# The same for everybody who unpacks it, whoever made it.
tar --create --gzip --sort name --owner 0 --group 0 --mode a+rX,u+w,go-w --directory "$work" --file "$folder/$name.tar.gz" "$name"
echo "$folder/$name.tar.gz"
