#!/bin/sh
# wheel.sh REQUIREMENTS TARGET: takes the ONNX Runtime library, with the providers beside it, out of the wheel that the
# requirements name by version and hash.
set -eu
requirements=$1
target=$2
wheel=$(mktemp -d)
# Any Python 3 serves to unpack; the wheel is asked for by a Python version that it was built for.
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.13 \
    --require-hashes --requirement "$requirements" --dest "$wheel"
python3 -m zipfile -e "$wheel"/*.whl "$wheel"
mkdir -p "$target"
cp "$wheel"/onnxruntime/LICENSE "$wheel"/onnxruntime/ThirdPartyNotices.txt "$target"
cp "$wheel"/onnxruntime/capi/libonnxruntime.so.* "$target/libonnxruntime.so"
# TensorRT's own libraries are in no image: its provider could not be loaded.
for provider in shared cuda; do
    file="$wheel/onnxruntime/capi/libonnxruntime_providers_$provider.so"
    if [ -e "$file" ]; then cp "$file" "$target"; fi
done
chmod 644 "$target"/*
rm -rf "$wheel"
