#!/usr/bin/env bash
# Certificates for the test broker's TLS listeners: scripts/kafka/tls.sh FOLDER
#
#   ca.pem         who signed the broker and the client       other-ca.pem    another authority, which signed neither
#   broker.pem     key and certificate, for 127.0.0.1 alone: "localhost" is a wrong name
#   client.pem, client.key   what the listener MTLS wants; the key's password is "key-secret"
set -euo pipefail

command -v openssl >/dev/null || { echo "openssl is missing; install the package openssl" >&2; exit 1; }
mkdir -p "$1"
cd "$1"
[ -e .complete ] && exit
rm -f ./*

ec() { openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 "$@"; }

# sign NAME KEY-PASSWORD EXTENSION: a certificate of ca.pem
sign() {
    openssl req -new -key "$1.key" -passin "pass:$2" -subj "/CN=$1" -out "$1.csr"
    openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 3650 -extfile <(echo "$3") -out "$1.pem" 2>/dev/null
}

for authority in ca other-ca; do
    ec -out "$authority.key"
    openssl req -x509 -new -key "$authority.key" -days 3650 -subj "/CN=feedlens tests $authority" -out "$authority.pem"
done
ec -out broker.key
sign broker "" "subjectAltName=IP:127.0.0.1"
cat broker.key >>broker.pem
ec -aes256 -pass pass:key-secret -out client.key
sign client key-secret "extendedKeyUsage=clientAuth"
touch .complete
