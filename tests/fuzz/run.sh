#!/usr/bin/env bash
# Builds the fuzz targets with clang's libFuzzer and AddressSanitizer (apt-get install clang-14
# libclang-rt-14-dev) and runs each for so many minutes, one after another. New inputs are kept in
# build/fuzz/corpus, inputs that break a target in build/fuzz/findings: put such an input into
# tests/fuzz/corpus/<target>/ with its fix.
#
# Usage: tests/fuzz/run.sh MINUTES [TARGET..]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

minutes=${1:?usage: tests/fuzz/run.sh MINUTES [TARGET..]}
shift
if (($# == 0)); then
  for directory in tests/fuzz/corpus/*/; do set -- "$@" "$(basename "$directory")"; done
fi

mkdir -p build/fuzz/findings
cmake --preset fuzz >build/fuzz/configure.log 2>&1 || {
  cat build/fuzz/configure.log >&2
  exit 1
}
ninja -C build/fuzz "${@/#/fuzz_}"

failed=0
for target in "$@"; do
  mkdir -p "build/fuzz/corpus/$target"
  log=build/fuzz/$target.log
  echo "== $target: $minutes min, log in $log"
  # The last options win over libFuzzer's defaults; 10 s for one input is a hang.
  nice -n 15 "build/fuzz/bin/fuzz_$target" -max_total_time=$((minutes * 60)) -max_len=4096 \
    -timeout=10 -rss_limit_mb=2048 -dict=tests/fuzz/dictionary.txt -print_final_stats=1 \
    -artifact_prefix="build/fuzz/findings/$target-" "build/fuzz/corpus/$target" \
    "tests/fuzz/corpus/$target" >"$log" 2>&1 || {
    failed=1
    echo "   found something:"
    grep -m 3 -E 'CHECK failed|ERROR|SUMMARY|Test unit written' "$log" | sed 's/^/   /'
  }
  grep -E 'number_of_executed_units|average_exec_per_sec|^#.*DONE' "$log" | sed 's/^/   /' || true
done
exit "$failed"
