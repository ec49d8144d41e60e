#!/usr/bin/env bash
# make fuzz-api [EXAMPLES=n]: the OpenAPI description is validated, and schemathesis, which reads it, asks the running demo
# thousands of good, odd and broken requests. An answer of 5xx, or one that the description does not have, ends it with exit
# code 1. What it needs is put into .cache/fuzz-api by pip; BINARY is another feedlens than target/release's.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=.cache/fuzz-api
binary="${BINARY:-target/release/feedlens}"
address=127.0.0.1:18080
die() { printf 'fuzz-api: %s\n' "$*" >&2; exit 1; }

[ -x "$binary" ] || die "$binary is not there; run make build"
mkdir -p "$folder"
[ -x "$folder/venv/bin/schemathesis" ] || {
  python3 -m venv --clear "$folder/venv" || die "python3 could not make a virtual environment; install python3-venv"
  "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    schemathesis==4.32.5 openapi-spec-validator==0.9.0 || die "pip could not install schemathesis"
}

"$binary" demo --set query.listen=$address --set admin.listen= >"$folder/demo.log" 2>&1 &
demo=$!
trap 'kill $demo 2>/dev/null || true' EXIT
for _ in $(seq 120); do
  curl --silent --fail "http://$address/v1/openapi.json" >"$folder/openapi.json" && break
  kill -0 $demo 2>/dev/null || die "the demo ended: $(tail -n 1 "$folder/demo.log")"
  sleep 1
done
"$folder/venv/bin/openapi-spec-validator" "$folder/openapi.json"
# It keeps what it found in the folder where it runs.
cd "$folder"
venv/bin/schemathesis run "http://$address/v1/openapi.json" \
  --exclude-path /v1/matches --max-examples "${EXAMPLES:-1500}" --continue-on-failure --request-timeout 30 --suppress-health-check all \
  --checks not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance,unsupported_method,allow_header_conformance,ignored_auth
