#!/usr/bin/env bash
# Build an image of this checkout: docker/build.sh training|airflow BASE_IMAGE IMAGE_CODE CODE_VERSION [gpu]     (`make images` calls it)
set -euo pipefail
cd "$(dirname "$0")/.."
what=$1 base=$2 code=$3 version=$4 gpu=${5:-}
docker version >/dev/null 2>&1 || { echo "no Docker engine answers. Start it: sudo systemctl start docker, or sudo dockerd"; exit 1; }
if ! docker image inspect "$base" >/dev/null 2>&1 && ! docker pull --quiet "$base" >/dev/null 2>&1; then
    echo "the base image $base is neither here nor can it be pulled."
    echo "  Without an image registry in reach make one from Debian's packages: docker/base-image.sh nightfleet-base; then add BASE_IMAGE=nightfleet-base"
    exit 1
fi
repository=nightfleet-$what${gpu:+-gpu}
tag=$code
[ "$what" = training ] || tag=$(echo "$version" | tr + -)
docker build --quiet --file "docker/$what.Dockerfile" --tag "$repository:$tag" --tag "$repository:latest" \
    --build-arg BASE_IMAGE="$base" --build-arg CODE="$code" --build-arg VERSION="$version" \
    ${gpu:+--build-arg REQUIREMENTS=training-gpu-requirements.txt} . >/dev/null
echo "$repository:$tag  $(docker image inspect --format '{{.Size}}' "$repository:$tag" | awk '{printf "%.1f GB", $1 / 1e9}')"
