# Every target makes its own environment: a bare machine needs python3 (3.11-3.13) and make only.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Of `make bench`: tiny, small or paper; cpu or cuda.
SCALE ?= small
DEVICE ?= cpu
VLLM := .venv-vllm
# An environment with vLLM that is there already; without one, test-vllm builds its own.
VAOPD_VLLM_PYTHON ?=
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# glibc returns large blocks to the system at once, which costs a page fault for each tensor.
export MALLOC_MMAP_THRESHOLD_ := 2000000000
export MALLOC_TRIM_THRESHOLD_ := 8000000000

.PHONY: demo test test-vllm vllm check bench tiny clean

demo: $(VENV)/run
	$(BIN)/vaopd train recipes/quickstart.yaml --output runs/quickstart --overwrite

test: $(VENV)/dev
	$(BIN)/pytest

# A real vLLM on a CPU. Threads that are bound to cores wait for each other where cores are shared.
test-vllm: $(VENV)/dev $(if $(VAOPD_VLLM_PYTHON),,$(VLLM)/ready)
	VAOPD_VLLM_PYTHON=$(or $(VAOPD_VLLM_PYTHON),$(CURDIR)/$(VLLM)/bin/python) $(BIN)/pytest tests/vllm

# Only the environment of test-vllm.
vllm: $(VLLM)/ready

check: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(VENV)/bench
	$(BIN)/python -m benchmarks --device $(DEVICE) --scale $(SCALE)

# Trains the shipped models again, about two hours on two cores; see recipes/tiny/README.md.
tiny: $(VENV)/run
	recipes/tiny/train_all.sh

$(VENV)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	touch $@

# pip finds the pinned torch wherever this machine keeps its CPU build.
$(VENV)/run: $(VENV)/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/dev: $(VENV)/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/run

$(VENV)/bench: $(VENV)/dev
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
# Without what it declares: its Triton is a GPU compiler, and the loss that is measured needs none.
	$(BIN)/pip install --quiet --no-deps liger-kernel==0.8.5
	touch $@

$(VLLM)/ready: tests/vllm/requirements.txt tests/vllm/torchvision_operators.py
	$(PYTHON) -m venv --clear $(VLLM)
	$(VLLM)/bin/pip install -qq --no-deps --requirement $<
	cp tests/vllm/torchvision_operators.py \
	  $$($(VLLM)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/sitecustomize.py
	touch $@

clean:
	rm -rf $(VENV) $(VLLM) runs
