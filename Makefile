# Every target makes its own environment: a bare machine needs python3 (3.11-3.13) and make only.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Of `make bench`: tiny, small or paper; cpu or cuda.
SCALE ?= small
DEVICE ?= cpu
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# glibc returns large blocks to the system at once, which costs a page fault for each tensor.
export MALLOC_MMAP_THRESHOLD_ := 2000000000
export MALLOC_TRIM_THRESHOLD_ := 8000000000

.PHONY: demo test check bench tiny clean

demo: $(VENV)/run
	$(BIN)/vaopd train recipes/quickstart.yaml --output runs/quickstart --overwrite

test: $(VENV)/dev
	$(BIN)/pytest

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

clean:
	rm -rf $(VENV) runs
