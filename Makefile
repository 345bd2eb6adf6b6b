# `make help` lists the targets. The first call installs into .venv; later calls start at once.

PYTHON ?= python3
# 1: .venv also sees the packages of $(PYTHON), and uses its torch whatever the version.
SYSTEM_SITE_PACKAGES ?= 0

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

BIN := .venv/bin
INSTALLED := .venv/.installed
INSTALLED_DEV := .venv/.installed-dev
PINS := .venv/constraints.txt

VENV_FLAGS := $(if $(filter 1,$(SYSTEM_SITE_PACKAGES)),--system-site-packages)
# Of pip's output, the lines that show large downloads and the installation.
PROGRESS := awk '/Downloading .*[MG]B\)/ || /^Installing/ {print substr($$0, 1, 100); fflush()}'

SOURCES := setup.py $(shell find csrc -type f)
BUILT := .venv/.built
CUTLASS := .venv/.installed-cutlass
TRITON36 := .venv-triton36
SANITIZERS ?= memcheck racecheck initcheck synccheck

.PHONY: help install install-dev demo train-demo build cuda cutlass test test-slow test-gpu sanitize
.PHONY: inspect-baseline inspect-baseline-36 lint format docs soak fuzz clean gpu-report

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(BUILT) ## install livetalk into .venv, with its compiled CPU kernels
install-dev: $(BUILT) $(INSTALLED_DEV) ## the same, plus development tools

build: $(BUILT) ## compile the CPU kernels again, where a source has changed

cuda: $(INSTALLED) ## compile the CUDA kernels: needs nvcc, no GPU
	@$(BIN)/python setup.py -q build_cuda

cutlass: $(CUTLASS) ## the same, plus CUTLASS's FP8 kernels: takes a few minutes more
	@$(BIN)/python setup.py -q build_cuda

demo: $(BUILT) ## make a talking video from the bundled portrait and speech: out/demo.mp4
	$(BIN)/livetalk generate --output out/demo.mp4
	@echo "Open out/demo.mp4 in a player or a browser."

# In stages of at most 40 minutes; finished stages are skipped, an interrupted one resumes.
train-demo: $(BUILT) ## train the demo's weights from scratch into out/train-demo; see ARGS=--help
	$(BIN)/python benchmarks/train_demo.py $(ARGS)

# One process per core, one thread each: most tests are too small for more.
test: lint $(BUILT) ## all checks and tests but the long soak
	@command -v espeak-ng > /dev/null || echo "note: espeak-ng is not installed, so the tests of" \
		"its speech are skipped; install it with 'apt-get install espeak-ng'"
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(shell nproc) -m "not soak and not gpu and not slow"

test-slow: $(BUILT) $(INSTALLED_DEV) $(CUTLASS) ## build CUDA and one CUTLASS kernel, and load them
	$(BIN)/pytest -m slow

lint: $(INSTALLED_DEV) ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(INSTALLED_DEV) ## let ruff fix what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(BUILT) $(INSTALLED_DEV) ## build the documentation: out/docs/index.html
	$(BIN)/mkdocs build --strict

test-gpu: $(BUILT) $(INSTALLED_DEV) ## every op's backends on an NVIDIA GPU
	$(BIN)/pytest -m gpu

# With PYTHON set it needs no .venv, and nothing is installed.
GPU_PYTHON = $(if $(and $(filter file,$(origin PYTHON)),$(wildcard $(BIN)/python)),$(BIN)/python,$(PYTHON))

gpu-report: ## measure everything on an NVIDIA GPU into out/gpu-report; see ARGS=--help
	$(GPU_PYTHON) benchmarks/gpu_report $(ARGS)

sanitize: $(BUILT) $(INSTALLED_DEV) cuda ## the same under compute-sanitizer, for our own kernels
	@command -v compute-sanitizer > /dev/null || { echo "error: compute-sanitizer not found;" \
		"it comes with the CUDA toolkit"; exit 2; }
	for tool in $(SANITIZERS); do compute-sanitizer --tool $$tool --error-exitcode 1 \
		$(BIN)/pytest -m gpu tests/kernels/test_ops.py -k "exact and (cuda- or triton or cutlass)"; done

inspect-baseline: $(INSTALLED_DEV) ## record what the Triton kernels compile to
	$(BIN)/livetalk inspect --backend triton --save profiles/data

inspect-baseline-36: $(TRITON36)/.installed ## the same with Triton 3.6
	PYTHONPATH=$(TRITON36) $(BIN)/livetalk inspect --backend triton --save profiles/data

# A folder with Triton alone, ahead of .venv on the path, spares a second torch.
$(TRITON36)/.installed: $(INSTALLED_DEV)
	$(BIN)/python -m pip install --no-deps --upgrade --target $(TRITON36) triton==3.6.0
	@touch $@

fuzz: $(BUILT) $(INSTALLED_DEV) ## 20,000 corrupted files through every loader; see ARGS=--help
	cd tests && $(abspath $(BIN))/python -m fuzz $(ARGS)

soak: $(BUILT) $(INSTALLED_DEV) ## ten minutes of audio
	$(BIN)/pytest -m soak --timeout 7200

clean: ## remove .venv, caches and outputs
	rm -rf .venv $(TRITON36) build dist out .mypy_cache .pytest_cache .ruff_cache .benchmarks
	rm -rf *.egg-info livetalk_kernels/_C.so livetalk_kernels/_C.reason livetalk_kernels/_C_cuda.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Drop torch's pin where torch comes from outside; pip then keeps the one that it finds.
$(PINS): constraints.txt
	$(PYTHON) -m venv $(VENV_FLAGS) .venv
ifeq ($(SYSTEM_SITE_PACKAGES),1)
	@$(BIN)/python -c 'import torch' 2> /dev/null || { echo "error: SYSTEM_SITE_PACKAGES=1, but" \
		"there is no torch: make clean, then set PYTHON to the Python that has it"; exit 2; }
	grep -v '^torch==' constraints.txt > $@
else
	cp constraints.txt $@
endif

# torch comes first: the kernels are compiled against it, not against one that pip would fetch for
# an isolated build.
$(INSTALLED): $(PINS) pyproject.toml setup.py
	@echo "Installing into .venv: a few minutes the first time, torch is large."
	@$(BIN)/python -m pip install --constraint $(PINS) torch setuptools | $(PROGRESS)
	@echo "Compiling the CPU kernels: about a minute."
	@$(BIN)/python -m pip install --constraint $(PINS) --no-build-isolation --editable . \
		| $(PROGRESS)
	@touch $@ $(BUILT)

$(INSTALLED_DEV): $(INSTALLED)
	@$(BIN)/python -m pip install --constraint $(PINS) --no-build-isolation --editable '.[dev,docs]' \
		| $(PROGRESS)
	@touch $@

# Headers only.
$(CUTLASS): $(INSTALLED)
	@$(BIN)/python -m pip install --no-deps nvidia-cutlass==4.2.0.0 | $(PROGRESS)
	@touch $@

# Without a compiler the build leaves the reason, and everything else works.
$(BUILT): $(INSTALLED) $(SOURCES)
	@$(BIN)/python setup.py -q build_cpu
	@touch $@
