#!/usr/bin/env bash
# image-root.sh BINARY FOLDER: puts together everything that the image has. The Dockerfile and `make image` both call this.
set -euo pipefail
binary=$1 root=$2
here=$(cd "$(dirname "$0")/.." && pwd)
umask 022
rm -rf "$root"
mkdir -p "$root/etc/ssl/certs" "$root/usr/share/flagtap" "$root/data"
install -m 0755 "$binary" "$root/flagtap"
# Where rustls' native roots and the cloud SDKs look for authorities; mount another bundle over it to add some.
install -m 0644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
# A name for the user, for what asks; nothing logs in.
echo 'flagtap:x:10001:10001:flagtap:/data:/nonexistent' >"$root/etc/passwd"
echo 'flagtap:x:10001:' >"$root/etc/group"
# The order that the C library takes without this file differs between its versions.
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
install -m 0644 "$here/LICENSE" "$root/usr/share/flagtap/LICENSE"
python3 "$here/scripts/sbom.py" >"$root/usr/share/flagtap/sbom.cdx.json"
# The one place that is written to.
chmod 0750 "$root/data"
chown -R 0:0 "$root"
chown 10001:10001 "$root/data"
