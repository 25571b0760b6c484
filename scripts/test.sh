#!/usr/bin/env bash
# Runs every check and ends with one line: N passed, N failed, N skipped. Fails if anything failed or nothing ran.
set -uo pipefail
cd "$(dirname "$0")/.."
passed=0 failed=0 skipped=0
mkdir -p .tools
rm -f .tools/skipped
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# step NAME COMMAND...: one check that passes or fails as a whole.
step() {
  local name=$1
  shift
  echo "== $name"
  if "$@"; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    echo "FAILED: $name"
  fi
}

# cargo_tests NAME COMMAND...: adds up the summaries of cargo's own harness or of nextest. A command that fails without
# a failed test (it did not compile) counts as one failure.
cargo_tests() {
  local name=$1 status=0 before=$failed
  shift
  echo "== $name"
  "$@" 2>&1 | tee "$log" || status=1
  local counts
  counts=$(sed 's/\x1b\[[0-9;]*m//g' "$log" | awk '
    /^test result:/ { passed += $4; failed += $6; skipped += $8 }
    /^ *Summary \[/ {
      for (i = 1; i < NF; i++) {
        if ($(i + 1) ~ /^passed/) passed += $i
        if ($(i + 1) ~ /^failed/ || $(i + 1) ~ /^timed/ || $(i + 1) ~ /^exec/) failed += $i
        if ($(i + 1) ~ /^skipped/) skipped += $i
      }
    }
    END { print passed + 0, failed + 0, skipped + 0 }')
  read -r p f s <<<"$counts"
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
  if [ "$status" != 0 ] && [ "$failed" = "$before" ]; then
    failed=$((failed + 1))
    echo "FAILED: $name"
  fi
}

# python_tests NAME COMMAND...: adds up the closing lines of unittest.
python_tests() {
  local name=$1 status=0
  shift
  echo "== $name"
  "$@" 2>&1 | tee "$log" || status=1
  local counts
  counts=$(awk '
    /^Ran [0-9]+ test/ { ran += $2 }
    /^(OK|FAILED)/ {
      gsub(/[(),]/, " ")
      for (i = 1; i <= NF; i++) {
        if ($i ~ /^(failures|errors)=/) { split($i, n, "="); failed += n[2] }
        if ($i ~ /^skipped=/) { split($i, n, "="); skipped += n[2] }
      }
    }
    END { if (failed > ran) ran = failed; print ran - failed + 0, failed + 0, skipped + 0 }' "$log")
  read -r p f s <<<"$counts"
  # A file that is skipped as a whole ran no test.
  if [ "$p" = 0 ] && [ "$f" = 0 ] && [ "$s" = 0 ]; then status=1; fi
  if [ "$status" != 0 ] && [ "$f" = 0 ]; then
    f=1
    echo "FAILED: $name"
  fi
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
}

# How long a condition may take before its test fails: a busy machine needs it, and what holds costs nothing.
export RUST_TEST_PATIENCE_MS=${RUST_TEST_PATIENCE_MS:-60000}

echo "== setup"
./scripts/setup-tests.sh || echo "setup-tests failed; the tests that need its tools will be skipped"
step format cargo fmt --check
step clippy cargo clippy --all-targets -- -D warnings
if cargo nextest --version >/dev/null 2>&1; then
  cargo_tests "unit and integration tests" cargo nextest run --no-fail-fast
else
  cargo_tests "unit tests" cargo test --lib --bins --no-fail-fast
  cargo_tests "integration tests" cargo test --test it -- --test-threads 2
fi
cargo_tests "doc tests" cargo test --doc
step oracle ./scripts/oracle.py
chart_python=.tools/helm-python/bin/python
if [ -x "$chart_python" ]; then
  # With the binary that the tests above built: `cargo build` would build it anew, with the features of fewer dependencies.
  python_tests "Helm chart" "$chart_python" -m unittest discover --start-directory tests/helm
elif [ "${FLAGTAP_REQUIRE_TOOLS:-}" = 1 ]; then
  step "Helm chart" false
else
  echo "SKIPPED Helm chart: $chart_python is missing; run scripts/setup-tests.sh"
  skipped=$((skipped + 1))
fi

# A test without its tool returns early, so it was counted as passed.
if [ -s .tools/skipped ]; then
  missing=$(sort -u .tools/skipped | wc -l)
  echo "== skipped"
  sort -u .tools/skipped
  passed=$((passed - missing)) skipped=$((skipped + missing))
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
