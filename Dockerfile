# syntax=docker/dockerfile:1

# The version is that of rust-toolchain.toml; tests/image/check.py compares.
FROM rust:1.95.0-bookworm AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /flagtap
# Dependencies first, without flagtap's own sources: this layer is made anew when Cargo.toml or Cargo.lock change.
COPY rust-toolchain.toml Cargo.toml Cargo.lock ./
COPY scripts/static.sh scripts/static.sh
RUN mkdir src benches \
    && touch src/lib.rs \
    && echo 'fn main() {}' >src/main.rs \
    && grep -A1 '^\[\[bench\]\]' Cargo.toml | sed -n 's/^name = "\(.*\)"/benches\/\1.rs/p' | xargs touch \
    && scripts/static.sh
COPY . .
# What was built above must not pass for newer than the sources.
RUN touch src/lib.rs src/main.rs \
    && binary=$(scripts/static.sh) \
    && scripts/image-root.sh "$binary" /image

FROM scratch AS image
ARG VERSION=unknown
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="flagtap" \
      org.opencontainers.image.description="LaunchDarkly Data Export in your own cluster: a transparent events relay with a durable tee" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/flagtap/flagtap" \
      org.opencontainers.image.documentation="https://github.com/flagtap/flagtap/blob/main/docs/release.md" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
COPY --from=build /image/ /
# By number, so that `runAsNonRoot` can be checked without /etc/passwd.
USER 10001:10001
# Relative paths of the embedded defaults and of a configuration are below this, the one writable folder.
WORKDIR /data
# The queue's tools copy parts to the folder for temporary files, and there is no /tmp.
ENV TMPDIR=/data
VOLUME ["/data"]
EXPOSE 8030 8031
ENTRYPOINT ["/flagtap"]
CMD ["serve"]
