# One target for each thing a contributor does. `make help` lists them.
VENV ?= .venv
PYTHON ?= python3
DURATION ?= 30
SEED ?= 0
BIN := $(VENV)/bin
STAMP := $(VENV)/.dualrate
EXTRAS := receiver,sim,dev
# Where PyTorch comes from; https://download.pytorch.org/whl/cpu has the small build without CUDA.
TORCH_INDEX ?=

.PHONY: help demo test test-slow lint format bench venv clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# The virtual environment is stale when what goes into it has changed.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) \
	  -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

venv: $(STAMP)  ## build the virtual environment (VENV=.venv names another)

demo: $(STAMP)  ## the whole pipeline on the simulated rig (DURATION=30 s)
	$(BIN)/python scripts/demo.py --duration $(DURATION) --seed $(SEED)

test: lint  ## lint, types and tests
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(STAMP)  ## the tests that take minutes: five of the demo, an installation
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)  ## put the code into form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## the benchmarks, ratios of both sides in one run
	$(BIN)/python scripts/bench.py

clean:  ## remove the virtual environment and what the demo wrote
	rm -rf $(VENV) runs
