#!/usr/bin/env bash
# image.sh [BINARY]: makes the image from a binary that is built here (or given), without a registry: the Dockerfile's final
# stage, with a folder in place of its build stage. The result is an OCI layout in target/image/oci; prints sizes and the image's digest.
set -euo pipefail
cd "$(dirname "$0")/.."
out=target/image
binary=${1:-$(scripts/static.sh)}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
# Every time in the image is that of the commit.
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
created=$(date -u -d "@$epoch" +%Y-%m-%dT%H:%M:%SZ)

rm -rf "$out"
mkdir -p "$out/context" "$out/nothing"
scripts/image-root.sh "$binary" "$out/context/image"
storage=(--root "$PWD/$out/storage" --runroot "$PWD/$out/run" --storage-driver vfs)
buildah "${storage[@]}" bud --isolation chroot --target image \
  --build-context build="$PWD/$out/context" --timestamp "$epoch" \
  --build-arg VERSION="$version" --build-arg REVISION="$revision" --build-arg CREATED="$created" \
  -t "flagtap:$version" -f Dockerfile "$out/nothing" >"$out/log" 2>&1 || { cat "$out/log" >&2; exit 1; }
buildah "${storage[@]}" push --quiet "flagtap:$version" "oci:$out/oci:$version" >>"$out/log" 2>&1
buildah "${storage[@]}" rmi --all >>"$out/log" 2>&1
rm -rf "$out/storage" "$out/run" "$out/nothing"

layer=$(du -cb "$out"/oci/blobs/sha256/* | tail -n 1 | cut -f 1)
echo "binary  $(stat -c %s "$binary") bytes, sha256 $(sha256sum "$binary" | cut -d ' ' -f 1)"
echo "image   $(du -sb "$out/context/image" | cut -f 1) bytes unpacked, $layer bytes to pull"
echo "digest  $(skopeo inspect --format '{{.Digest}}' "oci:$out/oci:$version")"
echo "written to $out/oci"
