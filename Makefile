# The two commands are `make demo` and `make test`; each sets everything up by itself.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: help setup demo check test clean
.DEFAULT_GOAL := help

help: ## What can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

setup: $(READY) ## The environment, in .venv

$(READY): pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Espalier needs Python 3.11 or newer; call make with PYTHON=/path/to/python3.11")'
	@echo "Setting up $(VENV); the first time this downloads about 600 MB."
	@"$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(READY)

demo: $(READY) ## Data, teacher, three pruning stages, artifact, a served recommendation (ARGS=--no-serve: then stop)
	@$(BIN)/espalier demo $(ARGS)

check: $(READY) ## Format, lint, types, import walls
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(READY) ## Every test that can run here (ARGS=... for pytest)
	$(BIN)/pytest --cov --cov-report=term:skip-covered $(ARGS)

clean: ## Remove the environment and caches; data and artifacts stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage
