#!/usr/bin/env bash
# Builds the image's binary twice, from two copies of the committed tree in different folders, and compares. Takes as long as
# two whole builds.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sums=()
for copy in one another/place; do
  mkdir -p "$work/$copy"
  git archive HEAD | tar -x -C "$work/$copy"
  binary=$(cd "$work/$copy" && unset CARGO_TARGET_DIR && scripts/static.sh)
  sums+=("$(sha256sum "$work/$copy/$binary" | cut -d ' ' -f 1)")
  echo "$copy: ${sums[-1]}"
done
[ "${sums[0]}" = "${sums[1]}" ] || { echo "the two differ"; exit 1; }
echo "the same bytes"
