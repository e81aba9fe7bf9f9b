# From a bare clone with nothing but Python 3.11+, each target does all of its own set-up.
.DEFAULT_GOAL := help
.PHONY: help setup study test slow gpu check audit format docs browser clean

BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest

help:
	@echo "make study   train with and without batch normalization on real images, write report.html"
	@echo "make test    the tests (make slow: those that take minutes; make check: style, types, spelling)"
	@echo "make docs    the documentation as pages, in build/docs"
	@echo "make gpu     the tests that want a GPU, and what it gains, with the python there is"
	@echo "make setup   only the virtual environment in .venv; make clean removes it and all caches"

.venv/.study: pyproject.toml constraints.txt tools/setup.sh
	@tools/setup.sh study,cpu
	@touch $@

.venv/.dev: pyproject.toml constraints.txt tools/setup.sh
	@tools/setup.sh dev
	@touch .venv/.study $@

# timm wants torchvision, whose operators a torch for CPUs has not and which others would import: apart
# from them, for the tests that put it on their path. Those skip where it cannot be had.
.venv/.timm: .venv/.dev
	@$(BIN)/python -m pip install --quiet --retries 1 --no-deps --upgrade --target .venv/timm -c constraints.txt timm torchvision \
	  >.venv/timm.log 2>&1 && touch $@ || echo "set-up: timm cannot be had, and tests beside it skip (.venv/timm.log says why)"

setup: .venv/.dev

study: .venv/.study
	@$(BIN)/spiritlevel study $(ARGS)

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell
	$(BIN)/vulture

# Not part of the check: what it says depends on a database that may not answer.
audit: .venv/.dev
	@$(BIN)/python tools/audit.py

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/.dev
	$(BIN)/python -m sphinx -E -W --keep-going -n -q docs build/docs
	@echo "build/docs/index.html"

browser: .venv/.dev
	@tools/chromium.sh

test: .venv/.dev .venv/.timm browser
	$(PYTEST) -n 2 --dist loadfile -m "not slow and not gpu"

# In the order of the folders: files of one long test, which xdist would keep for last, come early.
slow: .venv/.dev .venv/.timm browser
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder -m slow

# With the python and the torch that are there: nothing is installed.
gpu:
	@tools/gpu.sh

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
