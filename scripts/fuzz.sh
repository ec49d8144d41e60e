#!/usr/bin/env bash
# make fuzz [TARGET=name] [MINUTES=n]: hostile bytes for what reads bytes of strangers. The demo's feed and the fixtures of the
# tests are the seeds. A crash, an input that takes longer than 5 s or more memory than the limit ends it with exit code 1,
# and its input is named.
set -euo pipefail
cd "$(dirname "$0")/.."

die() { printf 'fuzz: %s\n' "$*" >&2; exit 1; }
cargo fuzz --version >/dev/null 2>&1 || die "cargo-fuzz is not installed: cargo install cargo-fuzz --locked"
cargo +nightly --version >/dev/null 2>&1 || die "the address sanitizer wants a nightly compiler: rustup toolchain install nightly"

minutes="${MINUTES:-1}"
# The C libraries get the sanitizer too, and librdkafka's configure links against them.
export LDFLAGS="${LDFLAGS:-} -fsanitize=address"
seeds=.cache/fuzz/seeds
rm -rf "$seeds"
mkdir -p "$seeds"/{post,picture,request,data_uri,dead_letter}
cp tests/fixtures/preprocess/*.{png,jpeg,webp,gif,bmp} "$seeds/picture/"
head -n 200 demo/feed.jsonl | split --lines=1 --suffix-length=3 - "$seeds/post/"
for picture in "$seeds"/picture/*.jpeg; do
  printf 'data:image/jpeg;base64,%s' "$(base64 --wrap=0 "$picture")" > "$seeds/data_uri/$(basename "$picture")"
done
printf '{"request_id":"r1","topic":"海边","top_k":5,"target":"both","filter":{"lang":"zh","tags_any":["a"],"since":"2026-11-20"}}' \
  > "$seeds/request/topic"
printf '{"image":{"base64":"iVBORw0KGgo="},"target":"caption"}' > "$seeds/request/image"
printf 'feedlens-reason:bad_json\nfeedlens-detail:x\nfeedlens-source-topic:posts\nfeedlens-source-partition:0\nfeedlens-source-offset:1\nversion:7' \
  > "$seeds/dead_letter/ours"

for target in ${TARGET:-post picture request data_uri dead_letter}; do
  echo "fuzz: $target, $minutes min"
  mkdir -p "fuzz/corpus/$target"
  cargo +nightly fuzz run "$target" "fuzz/corpus/$target" "$seeds/$target" -- \
    -max_total_time="$((minutes * 60))" -timeout=5 -rss_limit_mb=1024 -max_len=65536 -print_final_stats=1
done
