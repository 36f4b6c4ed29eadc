# One target for each thing a contributor does. `make help` lists them.
VENV ?= .venv
PYTHON ?= python3
DURATION ?= 30
SEED ?= 0
HOURS ?= 1
MINUTES ?= 30
# Tests at once. Many of them time real programs: more than the machine has cores makes them fail.
JOBS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.dualrate
DEV_STAMP := $(VENV)/.dualrate-dev
EXTRAS := receiver,sim,serving
# Compiled when the package is installed.
KERNELS := $(wildcard policies/qwen_vla/kernels/*)
# Where PyTorch comes from; https://download.pytorch.org/whl/cpu has the small build without CUDA.
TORCH_INDEX ?=

# LeRobot's packages and the receiver's ask for different versions: it has an environment of its own.
PYTHON312 ?= python3.12
LEROBOT_VENV ?= .venv-lerobot
LEROBOT_STAMP := $(LEROBOT_VENV)/.dualrate

.PHONY: help demo train study test test-slow test-lerobot lint format bench soak soak-serving tune compare profile bench-recording venv venv-lerobot clean clean-runs

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# The virtual environment is stale when what goes into it has changed.
$(STAMP): pyproject.toml setup.py constraints.txt $(KERNELS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) \
	  -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

# What the tests need besides: the vendors' libraries, the checkers.
$(DEV_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS),dev]'
	@touch $@

venv: $(STAMP)  ## build the virtual environment (VENV=.venv names another)

demo: $(STAMP)  ## the whole pipeline on the simulated rig (DURATION=30 s)
	$(BIN)/python scripts/demo.py --duration $(DURATION) --seed $(SEED)

test: lint  ## lint, types and tests, two at a time (JOBS=2)
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-slow: $(DEV_STAMP)  ## the tests that take minutes, one at a time
	$(BIN)/python -m pytest -m slow

$(LEROBOT_STAMP): pyproject.toml setup.py $(KERNELS)
	@test -x $(LEROBOT_VENV)/bin/python || \
	  $(PYTHON312) -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null || \
	  { echo "LeRobot needs Python 3.12, and $(PYTHON312) is none that runs:" \
	    "make PYTHON312=/path/to/python3.12 $(MAKECMDGOALS), or LEROBOT_VENV=DIR for an environment" \
	    "that is there"; exit 2; }
	test -x $(LEROBOT_VENV)/bin/python || $(PYTHON312) -m venv $(LEROBOT_VENV)
	$(LEROBOT_VENV)/bin/python -m pip install --quiet -e '.[lerobot,sim,gym]' 'lerobot[diffusion]' \
	  pytest pytest-timeout hypothesis psutil
	@touch $@

venv-lerobot: $(LEROBOT_STAMP)  ## an environment with LeRobot (Python 3.12; several GB)

test-lerobot: $(LEROBOT_STAMP)  ## the tests against LeRobot itself
	$(LEROBOT_VENV)/bin/python -m pytest tests/lerobot

lint: $(DEV_STAMP)  ## ruff and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(DEV_STAMP)  ## put the code into form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## the benchmarks, ratios of both sides in one run
	LEROBOT_VENV=$(LEROBOT_VENV) $(BIN)/python scripts/bench.py

# For less: make study STUDY="--policy PATH --episodes 20"
STUDY ?= --policy assets/insertion-policy
# The first two stages need nothing of each other: each gets half of the cores.
TRAIN = $(BIN)/python scripts/train.py --data runs/demonstrations --out runs/policy
HALF = $(shell n=$$(nproc); echo $$(( n > 1 ? n / 2 : 1 )))
train: $(STAMP)  ## a policy for the rig from nothing: demonstrations, then three stages (1 to 3 hours)
	$(BIN)/python scripts/demonstrate.py --out runs/demonstrations
	$(MAKE) --no-print-directory -j2 train-feel train-look
	$(TRAIN)

.PHONY: train-feel train-look
train-feel:
	@mkdir -p runs/training
	@echo "feel, beside look: runs/training/feel.log"
	@$(TRAIN) --only feel --threads $(HALF) > runs/training/feel.log 2>&1 || { cat runs/training/feel.log; false; }
train-look:
	$(TRAIN) --only look --threads $(HALF)

study: $(STAMP)  ## success and error over the latency of vision, three ways to run a policy (hours)
	$(BIN)/python scripts/study_latency.py $(STUDY)

soak: $(STAMP)  ## the receiver alone at 10 Hz under full load, counting missed deadlines (HOURS=1)
	$(BIN)/python scripts/bench_lateness.py --hours $(HOURS)

soak-serving: $(DEV_STAMP)  ## four robots on one policy server under random faults (MINUTES=30, SEED=0)
	$(BIN)/python scripts/soak_serving.py --minutes $(MINUTES) --seed $(SEED)

# The figures go in by hand: make tune TUNE="--inference-ms 80 --delay-ms 20 --quick"
TUNE ?=
tune: $(DEV_STAMP)  ## which actions_per_chunk and threshold to use (TUNE="--inference-ms 50 …")
	$(BIN)/python scripts/tune_chunking.py $(TUNE)

# About nine minutes, in real time: make compare COMPARE="--seconds 20" is shorter.
COMPARE ?=
compare: $(DEV_STAMP)  ## four ways to run one policy on the shipped bag, delay 0.8 s and 0
	$(BIN)/python scripts/compare_architectures.py assets/example_bag --delays 0.8 0 $(COMPARE)

profile: $(DEV_STAMP)  ## where the receiver's processor time goes under full load
	$(BIN)/python scripts/profile_receiver.py

bench-recording: $(STAMP)  ## full load, recording switched on and off in turn (DURATION=30 s)
	$(BIN)/python scripts/bench_recording.py --duration $(DURATION)

clean:  ## remove the virtual environments and caches; runs/ is kept
	rm -rf $(VENV) $(LEROBOT_VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf build policies/qwen_vla/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Hours of work lie there: trained policies, demonstrations, studies, recorded sessions.
clean-runs:  ## say what is in runs/, and with YES=1 remove it
	@test ! -d runs || du -sh runs/* 2>/dev/null || true
	@$(if $(filter 1,$(YES)),rm -rf runs,echo "nothing was removed; make clean-runs YES=1 removes the above")
