#!/usr/bin/env bash
# All tests: starts the services that the integration tests use, and stops those that it started.
set -euo pipefail
cd "$(dirname "$0")/.."

running=$(scripts/services.sh env)
stop_ours() {
    local ours=()
    [[ "$running" == *KAFKA_BROKERS=* ]] || ours+=(kafka)
    [[ "$running" == *QDRANT_URL=* ]] || ours+=(qdrant)
    [ "${#ours[@]}" = 0 ] || scripts/services.sh stop "${ours[@]}"
}
trap stop_ours EXIT
# Not inside `eval`, which would hide that the start failed; the tests that need the services would only be skipped.
environment=$(scripts/services.sh start)
eval "$environment"
# What scripts/setup.sh installs is there: a test that lacks it fails.
export KAFKA_BROKERS KAFKA_SASL_BROKERS KAFKA_MTLS_BROKERS KAFKA_TLS_DIR QDRANT_URL FEEDLENS_ALL_TESTS=1
cargo test --release --locked
