#!/usr/bin/env bash
# Installs the wheel of dist/ into an empty environment outside the checkout and trains three steps there.
# Usage: try_wheel.sh PYTHON
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$1" -m venv "$folder/venv"
install() {
  "$folder/venv/bin/python" -m pip install --quiet "$@"
}
install --require-hashes --requirement requirements/pip.txt
install --no-deps --require-hashes --requirement requirements/run.txt
install --requirement requirements/torch.txt
install --no-deps dist/vaopd-*.whl
cd "$folder"
export PATH="$folder/venv/bin:$PATH"
pip check
vaopd --version
vaopd train quickstart training.max_steps=3 'data.validation=drawn:validation?count=24&seed=7' --output run
vaopd inspect run
