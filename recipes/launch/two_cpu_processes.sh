#!/bin/sh
# Two processes on the cores of this machine: recipes/launch/two_cpu_processes.sh RECIPE --output DIR [KEY=VALUE ..]
# Their numbers are those of one process, so this is also how to try a launch without GPUs.
set -eu
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}"
exec torchrun --standalone --nproc-per-node 2 -m vaopd train "$@" training.parallel=ddp training.device=cpu
