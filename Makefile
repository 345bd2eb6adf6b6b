# `make help` lists the targets. The first call installs into .venv; later calls start at once.

PYTHON ?= python3
# 1: .venv also sees the packages of $(PYTHON), and its torch is used whatever its version.
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
# Of pip's many lines, those that show that something large is under way.
PROGRESS := awk '/Downloading .*[MG]B\)/ || /^Installing/ {print substr($$0, 1, 100); fflush()}'

.PHONY: help install install-dev demo test test-gpu lint format soak clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(INSTALLED) ## install livetalk into .venv
install-dev: $(INSTALLED_DEV) ## the same, with the tools for development

demo: $(INSTALLED) ## make a talking video from the bundled portrait and speech: out/demo.mp4
	$(BIN)/livetalk generate --preset tiny --portrait examples/portrait.png \
		--audio examples/speech.wav --output out/demo.mp4

test: lint ## all checks and tests but the long soak
	$(BIN)/pytest -m "not soak and not gpu"

lint: $(INSTALLED_DEV) ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(INSTALLED_DEV) ## let ruff mend what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test-gpu: $(INSTALLED_DEV) ## every op's backends on an NVIDIA GPU
	$(BIN)/pytest -m gpu

soak: $(INSTALLED_DEV) ## ten minutes of audio
	$(BIN)/pytest -m soak --timeout 7200

clean: ## remove .venv, caches and outputs
	rm -rf .venv build dist out .mypy_cache .pytest_cache .ruff_cache .benchmarks
	rm -rf *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch's pin goes where torch comes from outside; pip then keeps what it finds there.
$(PINS): constraints.txt
	$(PYTHON) -m venv $(VENV_FLAGS) .venv
ifeq ($(SYSTEM_SITE_PACKAGES),1)
	@$(BIN)/python -c 'import torch' 2> /dev/null || { echo "error: SYSTEM_SITE_PACKAGES=1, but" \
		"there is no torch: make clean, then set PYTHON to the Python that has it"; exit 2; }
	grep -v '^torch==' constraints.txt > $@
else
	cp constraints.txt $@
endif

$(INSTALLED): $(PINS) pyproject.toml setup.py
	@echo "Installing into .venv: a few minutes the first time, torch is large."
	@$(BIN)/python -m pip install --constraint $(PINS) --editable . | $(PROGRESS)
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	@$(BIN)/python -m pip install --constraint $(PINS) --editable '.[dev]' | $(PROGRESS)
	@touch $@
