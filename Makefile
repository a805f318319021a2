# Tidegate. `make` alone lists the targets. Needs Python 3.11 and pip; the rest is installed into .venv.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help venv dev up down status demo test test-fast services bench lint format lock clean

# The first of these that is Python 3.11; `make PYTHON=/path/to/python3.11 ...` overrides it.
PYTHON ?= $(shell for p in python3.11 python3 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
BIN := .venv/bin
ARGS ?=

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  More arguments go in ARGS, for instance: make up ARGS="--gateway-port 9000"'

venv: ## install what the platform needs into .venv (once)
	@$(call need_python)
	@"$(PYTHON)" scripts/install.py

dev: ## the same, and the tools for tests and linting
	@$(call need_python)
	@"$(PYTHON)" scripts/install.py dev

up: venv ## start the platform with the bundled model; returns when it answers
	@$(BIN)/tidegate up --detach $(ARGS)

down: ## stop the platform
	@if [ -x $(BIN)/tidegate ]; then $(BIN)/tidegate down $(ARGS); else echo "nothing is installed, so nothing runs"; fi

status: venv ## what runs now
	@$(BIN)/tidegate status $(ARGS)

demo: venv ## the story with real models: one version promoted, two taken back
	@$(BIN)/python -m tidegate.demo $(ARGS)

test: dev services ## every test that CI runs
	@$(BIN)/python scripts/run_tests.py $(ARGS)

test-fast: dev services ## the tests without real Ray and vLLM
	@$(BIN)/python scripts/run_tests.py -m "not e2e" $(ARGS)

services: ## install PostgreSQL and Prometheus for the tests, where that is possible
	@$(call need_python)
	@"$(PYTHON)" scripts/test_services.py

bench: venv ## the benchmarks: ratios measured side by side
	@$(BIN)/python -m benchmarks $(ARGS)

lint: dev ## style, types and the dependency rule
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: dev ## put the code into the agreed form
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: ## resolve the dependencies anew (needs uv; ARGS=--upgrade moves all of them)
	@scripts/lock.sh $(ARGS)

clean: ## remove caches and build results; .venv and the platform's state stay
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -path ./.venv -prune -o -type d -name __pycache__ -exec rm -rf {} +

define need_python
if [ -z "$(PYTHON)" ]; then echo "no Python 3.11 found (there is: $$(python3 -V 2>/dev/null || echo none)); \
install python3.11, or run: make PYTHON=/path/to/python3.11" >&2; exit 1; fi
endef
