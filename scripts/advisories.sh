#!/usr/bin/env bash
# Known vulnerabilities, unsound, unmaintained and yanked crates among the dependencies, by cargo-deny and cargo-audit.
#   scripts/advisories.sh          with the databases of advisories that are on this machine; says loudly what is not there
#   scripts/advisories.sh --fetch  with the newest ones; both tools must be there, and no exception of deny.toml be out of date
# ADVISORY_DB: a clone of the database for cargo-audit, instead of the one that it keeps.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { printf 'advisories: %s\n' "$*" >&2; exit 1; }
absent() { printf '\n!!! advisories: %s; dependencies NOT checked by %s\n\n' "$2" "$1" >&2; }
fetch=
case "${1:-}" in
'') ;;
--fetch) fetch=1 ;;
*) fail "use: scripts/advisories.sh [--fetch]" ;;
esac

ids() { grep -o 'RUSTSEC-[0-9]*-[0-9]*' "$1" | sort; }
[ "$(ids deny.toml)" = "$(ids .cargo/audit.toml)" ] || fail "the ids that deny.toml and .cargo/audit.toml ignore differ"
if [ "$fetch" ]; then
  today=$(date -u +%F)
  for id in $(ids deny.toml); do
    last=$(sed -nE "s/.*\"$id\".* until (20[0-9]{2}-[0-9]{2}-[0-9]{2})\".*/\1/p" deny.toml)
    [ "$last" ] || fail "deny.toml: the reason of $id does not end in \"until YYYY-MM-DD\""
    [[ "$today" < "$last" ]] || fail "deny.toml: $id was excepted until $last; judge it again, then drop it or set a new day"
  done
fi

home="${CARGO_HOME:-$HOME/.cargo}"
if ! cargo deny --version >/dev/null 2>&1; then
  [ -z "$fetch" ] || fail "cargo-deny is not installed"
  absent cargo-deny "it is not installed"
elif [ "$fetch" ]; then
  cargo deny check advisories
elif compgen -G "$home/advisory-dbs/*/" >/dev/null; then
  cargo deny --offline check advisories
else
  absent cargo-deny "it has no database (\`cargo deny fetch db\` gets it)"
fi

database="${ADVISORY_DB:-$home/advisory-db}"
audit() { for lock in Cargo.lock fuzz/Cargo.lock; do cargo audit --file "$lock" "$@"; done; }
if ! cargo audit --version >/dev/null 2>&1; then
  [ -z "$fetch" ] || fail "cargo-audit is not installed"
  absent cargo-audit "it is not installed"
elif [ "$fetch" ]; then
  audit
elif [ -d "$database" ]; then
  audit --db "$database" --no-fetch --stale
else
  absent cargo-audit "it has no database ($database)"
fi
