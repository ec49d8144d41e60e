#!/usr/bin/env bash
# All tests: starts the services that the integration tests use, and stops those that it started.
set -euo pipefail
cd "$(dirname "$0")/.."

eval "$(scripts/services.sh start)"
trap 'scripts/services.sh stop' EXIT
export KAFKA_BROKERS QDRANT_URL
cargo test --release --locked
