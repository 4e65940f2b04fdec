#!/usr/bin/env bash
# Runs the CUDA tests under compute-sanitizer and says what it ran.
#
#   tools/compute_sanitizer.sh [BIN_DIR [GTEST_FILTER]]      (default: build/cuda/bin, all tests)
#
# Needs a GPU and compute-sanitizer (CUDA toolkit, or on PATH). Exits 0 only if every tool ran every
# test binary and found nothing; 2 if there was nothing to run them on.
set -uo pipefail

bin=${1:-build/cuda/bin}
filter=${2:-*}
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)

if [[ ! -x $sanitizer ]]; then
  echo "compute_sanitizer: SKIPPED, nothing was run: compute-sanitizer is not installed" >&2
  exit 2
fi
if ! nvidia-smi -L >/dev/null 2>&1; then
  echo "compute_sanitizer: SKIPPED, nothing was run: this machine has no GPU (nvidia-smi -L)" >&2
  exit 2
fi

binaries=()
for name in cuda_tests expert_shard_cuda_tests worker_cuda_tests; do
  if [[ -x $bin/$name ]]; then
    binaries+=("$bin/$name")
  else
    echo "compute_sanitizer: $bin/$name is not built and is left out" >&2
  fi
done
if ((${#binaries[@]} == 0)); then
  echo "compute_sanitizer: SKIPPED, nothing was run: no CUDA tests in $bin" >&2
  exit 2
fi

nvidia-smi -L
"$sanitizer" --version | head -n 1
failed=0
# memcheck: accesses out of bounds and leaks; racecheck: hazards in shared memory; initcheck: reads
# of device memory that nobody wrote; synccheck: barriers and masks.
for tool in memcheck racecheck initcheck synccheck; do
  options=(--tool "$tool" --error-exitcode 9)
  [[ $tool == memcheck ]] && options+=(--leak-check full)
  for binary in "${binaries[@]}"; do
    log=$(mktemp)
    "$sanitizer" "${options[@]}" "$binary" --gtest_filter="$filter" >"$log" 2>&1
    code=$?
    passed=$(grep -c '^\[       OK \]' "$log")
    skipped=$(grep -c '^\[  SKIPPED \]' "$log")
    summary=$(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY|LEAK SUMMARY' "$log" | tr '\n' ' ')
    echo "$tool $(basename "$binary"): exit $code, $passed tests passed, $skipped skipped; $summary"
    if ((code != 0 || passed == 0)); then
      failed=1
      tail -n 40 "$log"
    fi
    rm -f "$log"
  done
done
if ((failed)); then
  echo "compute_sanitizer: FAILED"
  exit 1
fi
echo "compute_sanitizer: every tool ran every binary above and found nothing"
