#!/bin/sh
# Eight GPUs of one machine, weights spread: recipes/launch/eight_gpus.sh RECIPE --output DIR [KEY=VALUE ..]
# training.parallel=ddp at the end keeps a copy of both models on every GPU instead.
set -eu
# How long SIGTERM leaves for finishing a step and saving; torchrun's own 30 s are too short.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-1800}"
exec torchrun --standalone --nproc-per-node 8 -m vaopd train training.parallel=fsdp2 student.gradient_checkpointing=true "$@"
