#!/usr/bin/env bash
# Formatting, clippy, dependencies, shell scripts, Kubernetes manifests, Prometheus' rules, Dockerfile, compose file and workflows.
# A tool that is not on the machine is named loudly and passed over.
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
scripts/advisories.sh
scripts=(scripts/*.sh scripts/kafka/*.sh deploy/image/*.sh tests/fixtures/docs/*.sh .ci/run)
for script in "${scripts[@]}"; do bash -n "$script"; done
if command -v shellcheck >/dev/null; then shellcheck "${scripts[@]}"; else absent shellcheck "the shell scripts"; fi
# Those of `scripts/setup.sh lint` come last: a person's own win.
PATH="$PATH:$PWD/.cache/lint/bin"
if command -v hadolint >/dev/null; then hadolint Dockerfile; else absent hadolint "the Dockerfile"; fi
if command -v check-jsonschema >/dev/null; then
  check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
  check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
  check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
else
  absent check-jsonschema "docker-compose.yml, the workflows and dependabot.yml against their schemas"
fi
if command -v actionlint >/dev/null; then actionlint; else absent actionlint "what the workflows mean"; fi
if command -v zizmor >/dev/null; then
  zizmor --quiet --offline .github
else
  absent zizmor "the workflows' permissions, pins and injections"
fi
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
