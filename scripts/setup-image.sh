#!/usr/bin/env bash
# Installs what `make image` and `make image-test` need beside Rust: buildah, skopeo and umoci to make an image and take it
# apart, hadolint and a validator of bills of materials.
set -euo pipefail
cd "$(dirname "$0")/.."
# Version 1.28 of buildah is the first that takes a folder for a stage.
missing=()
for tool in buildah skopeo umoci; do command -v "$tool" >/dev/null || missing+=("$tool"); done
command -v unshare >/dev/null || missing+=(util-linux)
command -v ip >/dev/null || missing+=(iproute2)
if [ ${#missing[@]} != 0 ]; then
  if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    echo "please install ${missing[*]}" >&2
    exit 1
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
sum=$(cksum <scripts/requirements-image.txt)
if [ "$(cat .tools/image.done 2>/dev/null)" != "$sum" ]; then
  mkdir -p .tools
  rm -rf .tools/image .tools/image.done
  python3 -m venv .tools/image
  .tools/image/bin/pip install --quiet --disable-pip-version-check -r scripts/requirements-image.txt
  echo "$sum" >.tools/image.done
fi
