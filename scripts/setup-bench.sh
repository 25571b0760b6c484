#!/usr/bin/env bash
# Installs what the benches compare with: nginx and wrk. Does nothing where both are there already.
set -euo pipefail
if command -v nginx >/dev/null && command -v wrk >/dev/null; then exit 0; fi
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq nginx-light wrk
else
  echo "please install nginx and wrk; without them the relay and memory benches are skipped" >&2
fi
