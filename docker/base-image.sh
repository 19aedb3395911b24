#!/usr/bin/env bash
# Make a local base image with Python 3.11 from Debian's packages, for a machine that reaches no image registry.
#   docker/base-image.sh NAME        needs debootstrap, tar, docker, and root
# This machine's certificates and its settings of pip and apt go into it, since builds need them here: never publish it.
set -euo pipefail
name=${1:?usage: docker/base-image.sh NAME}
command -v debootstrap >/dev/null || { echo "debootstrap is missing. Install it: apt-get install debootstrap"; exit 1; }
docker version >/dev/null 2>&1 || { echo "no Docker engine answers. Start it: systemctl start docker, or dockerd"; exit 1; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates,tini bookworm "$folder" >"$folder.log" 2>&1 ||
    { tail -n 20 "$folder.log"; exit 1; }
rm -f "$folder.log"
cp /etc/ssl/certs/ca-certificates.crt "$folder/etc/ssl/certs/ca-certificates.crt"
[ ! -f /etc/pip.conf ] || cp /etc/pip.conf "$folder/etc/pip.conf"
rm -rf "$folder/var/cache/apt/archives" "$folder/var/lib/apt/lists"
mkdir -p "$folder/var/lib/apt/lists/partial" "$folder/var/cache/apt/archives/partial"
tar -C "$folder" -c . | docker import --change 'ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt' - "$name" >/dev/null
echo "$name: $(docker run --rm "$name" python3 --version)"
