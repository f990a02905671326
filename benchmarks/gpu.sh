#!/usr/bin/env bash
# What there is to check and to measure on a machine with an NVIDIA GPU; docs/gpu-results.md says what comes of it.
#
#   benchmarks/gpu.sh [--quick] [PART...]      parts: tests kernels parity throughput offload (default: all)
#
# Needs no Ray, no network and no installation: Python with torch, triton, numpy, ml_dtypes, grpcio, protobuf, pyarrow,
# safetensors, tokenizers, transformers, xxhash, sympy, tqdm, and pytest with pytest-timeout and hypothesis for the tests.
# Kernels come before models: a model's sizes are tuned once, here on full batches, and kept on disk for what follows.
# Each part goes on where another failed. Its results are written to $RESULTS (default: build/gpu) as JSON, its output as
# text. --quick runs the short forms, which a CPU does too. PYTHON names the interpreter (default: python3).
set -uo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
results=${RESULTS:-build/gpu}
quick=()
if [[ ${1:-} == --quick ]]; then
  quick=(--quick)
  shift
fi
parts=("$@")
[[ ${#parts[@]} -gt 0 ]] || parts=(tests kernels parity throughput offload)
mkdir -p "$results"
export PYTHONUNBUFFERED=1

benchmark() { "$python" -m "benchmarks.$1" "${quick[@]}" --json "$results/$1.json" "${@:2}"; }

run() {
  case $1 in
    parity | throughput | offload) benchmark "$1" --device "${DEVICE:-auto}" ;;
    kernels) benchmark kernels ;;
    tests) "$python" -m pytest tests/kernels tests/reasoning/engine/test_graphs.py tests/reasoning/engram/test_staging.py ;;
    *) echo "unknown part $1: use tests, kernels, parity, throughput or offload" && return 2 ;;
  esac
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo "no NVIDIA GPU here"
failed=()
for part in "${parts[@]}"; do
  echo "== $part"
  run "$part" 2>&1 | tee "$results/$part.txt" || failed+=("$part")
done
[[ ${#failed[@]} -eq 0 ]] || { echo "failed: ${failed[*]}" && exit 1; }
