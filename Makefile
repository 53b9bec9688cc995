# Two commands: `make demo` runs the main job, `make test` passes the tests. Both start from Python and make alone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# An environment belongs to one Python: with another, make test PYTHON=python3.13, it is made anew.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')
# Another build of torch and its torchvision, installed first: make test TORCH="torch==2.13.0+cpu torchvision==0.28.0+cpu"
TORCH ?=

# Digits and the nets of the tests are too small to gain from threads, and beside a busy process threads cost a lot.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint format install clean

demo: install
	$(BIN)/ppl-vae compare --data digits --out runs/digits

test: install lint
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/installed-$(VERSION)

$(VENV)/installed-$(VERSION): pyproject.toml
	$(PYTHON) -m venv $(shell test -e $(VENV)/pyvenv.cfg && ! grep -qx "version = $(VERSION)" $(VENV)/pyvenv.cfg && echo --clear) $(VENV)
	$(if $(TORCH),$(BIN)/pip install --quiet $(TORCH))
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
