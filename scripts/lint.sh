#!/usr/bin/env bash
# Formatting, clippy, shell scripts, Kubernetes manifests, Prometheus' rules. A tool that is not on the machine is named loudly and
# passed over.
set -euo pipefail
cd "$(dirname "$0")/.."

absent() { printf '\n!!! lint: %s is not installed; NOT checked: %s\n\n' "$1" "$2" >&2; }

if cargo fmt --version >/dev/null 2>&1; then cargo fmt --check; else absent rustfmt formatting; fi
if cargo clippy --version >/dev/null 2>&1; then
  cargo clippy --release --locked --all-targets -- -D warnings
else
  absent clippy "the code"
fi
if cargo deny --version >/dev/null 2>&1; then cargo deny --offline check licenses bans sources; else absent cargo-deny licences; fi
for script in scripts/*.sh scripts/kafka/*.sh .ci/run; do bash -n "$script"; done
if command -v shellcheck >/dev/null; then shellcheck scripts/*.sh scripts/kafka/*.sh .ci/run; else absent shellcheck "the shell scripts"; fi
if command -v kustomize >/dev/null || command -v kubectl >/dev/null; then
  scripts/kubernetes.sh check
else
  absent "kustomize (or kubectl)" "whether k8s/rendered is what the overlays give; a test compares the hashes of what they were made of"
fi
scripts/kubernetes.sh validate
# Where it is not installed, `make test` has put it into .cache.
promtool=$(command -v promtool || echo .cache/prometheus/promtool)
if [ -x "$promtool" ]; then
  "$promtool" check config observability/prometheus.yml
  "$promtool" check rules observability/alerts.yml
  "$promtool" test rules observability/*_test.yml
else
  absent promtool "the alerts (make test, or scripts/setup.sh tests, fetches it)"
fi
echo "lint: done"
