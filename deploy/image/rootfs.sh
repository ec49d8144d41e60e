#!/usr/bin/env bash
# rootfs.sh TARGET FILE...: makes TARGET the root of a container without a distribution, for programs and libraries FILE...:
# the shared libraries that they need, with the notices of their packages, and what the C library reads. Runs as root on Debian.
set -euo pipefail
target=$1
shift

needed=$(ldd "$@")
if grep 'not found' <<<"$needed" >&2; then
    echo "rootfs.sh: these libraries are missing here; install their packages" >&2
    exit 1
fi
mapfile -t libraries < <(grep -o '/[^ :]* (0x' <<<"$needed" | cut -d ' ' -f 1 | sort -u)
mkdir -p "$target"
cp --parents --dereference "${libraries[@]}" "$target"

# What scanners for known weaknesses read where no package manager is, and the licences.
mkdir -p "$target/var/lib/dpkg/status.d" "$target/etc"
for library in "${libraries[@]}"; do
    # Packages know their files by the real path or, before /usr was merged, by the other one.
    real=$(realpath "$library")
    dpkg --search "$real" 2>/dev/null || dpkg --search "${real#/usr}"
done | cut -d : -f 1 | sort -u | while read -r package; do
    dpkg-query --status "$package" >"$target/var/lib/dpkg/status.d/$package"
    cp --parents --dereference "/usr/share/doc/$package/copyright" "$target"
done
cp --parents --dereference /etc/os-release /etc/ssl/certs/ca-certificates.crt "$target"

echo 'nonroot:x:65532:65532:nonroot:/:/sbin/nologin' >"$target/etc/passwd"
echo 'nonroot:x:65532:' >"$target/etc/group"
echo 'hosts: files dns' >"$target/etc/nsswitch.conf"
install -d -m 1777 "$target/tmp"
install -d -m 700 -o 65532 -g 65532 "$target/data"
