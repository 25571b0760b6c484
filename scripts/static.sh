#!/usr/bin/env bash
# Builds the binary of the image: static, and the same bytes wherever and whenever it is built from the same sources with the
# same toolchain. Prints its path. The Dockerfile and `make image` both call this.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
target=$(uname -m)-unknown-linux-gnu
home=${CARGO_HOME:-$HOME/.cargo}

# Paths of this machine must not get into the binary: neither Rust's nor those of the C libraries in it.
flags=(-C target-feature=+crt-static
  # Relative relocations take a megabyte less, and the C library starts with them since 2.36.
  -C link-arg=-Wl,-z,pack-relative-relocs
  --remap-path-prefix="$root"=/flagtap --remap-path-prefix="$home"=/cargo)
list=$(printf ',"%s"' "${flags[@]}")
export CFLAGS="-ffile-prefix-map=$root=/flagtap -ffile-prefix-map=$home=/cargo"
export CARGO_INCREMENTAL=0
# With a target of its own the flags are not for build scripts and macros, which cannot be static.
cargo build --locked --profile image --bin flagtap --target "$target" \
  --config "target.$target.rustflags=[${list:1}]" >&2
echo "${CARGO_TARGET_DIR:-target}/$target/image/flagtap"
