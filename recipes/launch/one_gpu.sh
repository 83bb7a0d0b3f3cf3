#!/bin/sh
# One GPU needs no launcher: recipes/launch/one_gpu.sh RECIPE --output DIR [KEY=VALUE ..]
set -eu
exec vaopd train "$@" training.device=cuda student.gradient_checkpointing=true
