# The commands of this repository. `make` lists them.

PYTHON ?= python3.11
VENV ?= .venv
VENV_ARGS ?=
CONSTRAINTS ?= .ci/constraints-cpu.txt
NEWEST ?= 3.13
OLDEST ?= 3.11
TORCH_INDEX ?=
GPUS ?= 1
HOSTFILE ?=
SEED := $(or $(SEED),$(shell date +%s))
ROUNDS ?= 200
ARGS ?=
OMP_NUM_THREADS ?= 1
export OMP_NUM_THREADS

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

.DEFAULT_GOAL := help
.PHONY: help setup check test test-slow fuzz test-newest test-oldest demo chaos shards stage1 stage1.5 stage2 clean need-DATA need-OUT need-RUN

help: ## list the targets
	@echo "make <target> [VARIABLE=value ...]"
	@awk -F ':.*## ' '/^[a-z0-9.-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "Setup: PYTHON=python3.11  VENV=.venv  TORCH_INDEX=URL (an index with CPU wheels of torch)"
	@echo "  on a GPU machine with PyTorch preinstalled: make setup PYTHON=python3 VENV_ARGS=--system-site-packages CONSTRAINTS="
	@echo "Stages: GPUS=$(GPUS) ranks (over gloo on a CPU); ARGS='key=value ...' overrides keys of the recipe"
	@echo "  on several nodes: HOSTFILE=hosts instead of GPUS (docs/cluster.md)"

setup: $(STAMP) ## create .venv and install everything (again only if setup.py or the constraints changed)

$(STAMP): setup.py $(CONSTRAINTS)
	@$(PYTHON) -c '' 2>/dev/null || { echo "error: $(PYTHON) is not installed. Name another interpreter: make setup PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || { echo "setup: $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV_ARGS) $(VENV); }
	@echo "setup: torch"
	@$(PIP) "setuptools>=77" torch $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	@echo "setup: ma2mba, its requirements and the tools"
	@$(PIP) --editable '.[dev]'
	@touch $@

check: setup ## ruff (rules and format) and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

test: setup ## run the tests (15 minutes on 2 cores); ARGS='-k magc' selects some
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-slow: setup ## what `make test` leaves out: long tests, fuzzing, and chaos in full (1 hour)
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m 'slow or scale' $(ARGS)
	@$(MAKE) fuzz ROUNDS=2000 ARGS=
	@$(MAKE) chaos ARGS=

fuzz: setup ## random videos, plans and recipes: ROUNDS=200 from seed SEED=<time>; a test that fails prints its round's seed
	@echo "fuzz: SEED=$(SEED) ROUNDS=$(ROUNDS)"
	@FUZZ_SEED=$(SEED) FUZZ_ROUNDS=$(ROUNDS) $(BIN)/python -m pytest -m fuzz tests/fuzz $(ARGS)

test-newest: ## ruff, mypy and all tests with the newest version of every requirement, in .venv-newest-3.13 (NEWEST=3.12; delete it to look for newer ones)
	@python=$$(.ci/find-python $(NEWEST)) && $(MAKE) check test PYTHON=$$python VENV=.venv-newest-$(NEWEST) CONSTRAINTS=

test-oldest: ## all tests with the oldest version of every requirement that setup.py allows, in .venv-oldest (OLDEST=3.11)
	@python=$$(.ci/find-python $(OLDEST)) && $(MAKE) test PYTHON=$$python VENV=.venv-oldest CONSTRAINTS=.ci/constraints-oldest.txt

demo: setup ## train on toy videos through all stages on a CPU, to runs/demo (10 minutes; resumes; ARGS=--fresh starts over)
	@$(BIN)/python examples/demo/run.py $(ARGS)

chaos: setup ## kill a training run 10 times and compare it with an undisturbed run (ARGS='--kills 20 --seed 1')
	@$(BIN)/python tests/dist/chaos.py $(ARGS)

shards: need-DATA need-RUN setup ## turn videos and annotations into token shards: DATA=recipe.yaml RUN=folder to write
	$(BIN)/ma2mba data build $(DATA) --out $(RUN) $(ARGS)

stage1: need-DATA need-RUN setup ## train the projector: DATA=shards RUN=folder GPUS=n
	$(train)

stage1.5: need-DATA need-RUN setup ## train everything on long scenes: DATA=shards RUN=folder GPUS=n ARGS=init_from=<stage 1 run>
	$(train)

stage2: need-DATA need-RUN setup ## train everything on questions: DATA=shards RUN=folder GPUS=n ARGS=init_from=<stage 1.5 run>
	$(train)

ranks = $(if $(HOSTFILE),--hostfile $(HOSTFILE),--gpus $(GPUS))
train = $(BIN)/ma2mba train launch/recipes/$(subst .,_,$@).yaml $(ranks) data=$(DATA) run=$(RUN) $(ARGS)

clean: ## remove caches of builds and tests (keeps runs/ and .venv)
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

need-DATA need-RUN: need-%:
	@test -n "$($*)" || { echo "error: $* is missing. Set it on the command line: $*=... (see make help)" >&2; exit 2; }
