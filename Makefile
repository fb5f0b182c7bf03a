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
MASTER_PORT ?=
ROUNDS ?= 2000
ARGS ?=
OMP_NUM_THREADS ?= 1

# A value is data: make would run the $(shell ...) in it, and a shell the `...`. So each value is taken as it was given,
# and recipes read it from the environment. ARGS is split into words by .ci/with-args.
VALUES := PYTHON VENV VENV_ARGS CONSTRAINTS NEWEST OLDEST TORCH_INDEX GPUS HOSTFILE MASTER_PORT SEED ROUNDS ARGS DATA RUN OMP_NUM_THREADS
GIVEN := $(sort $(VALUES) $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name))))
$(foreach name,$(GIVEN),$(if $(filter-out undefined,$(origin $(name))),$(eval override $(name) := $$(value $(name)))))
SEED := $(or $(SEED),$(shell date +%s))
export $(VALUES)

# These are also names of targets, which cannot be quoted.
SPECIAL := ; \# $$ : = % | & ' " ` ( ) < > * ? [ ] { } ! ^ \ ~
special = $(filter-out 1,$(words x$($(1))x))$(foreach letter,$(SPECIAL),$(findstring $(letter),$($(1))))
$(foreach name,VENV CONSTRAINTS NEWEST OLDEST,$(if $(strip $(call special,$(name))),$(error \
  error: $(name) holds a space or a special letter. Give another path or version)))

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

.DEFAULT_GOAL := help
.PHONY: help setup check test test-slow fuzz test-newest test-oldest lmms-eval-test demo demo-long chaos shards stage1 stage1.5 stage2 clean need-DATA need-RUN

help: ## list the targets
	@echo "make <target> [VARIABLE=value ...]"
	@awk -F ':.*## ' '/^[a-z0-9.-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile
	@echo "Setup: PYTHON=python3.11  VENV=.venv  TORCH_INDEX=URL (an index with CPU wheels of torch)"
	@echo "  on a GPU machine with PyTorch preinstalled: make setup PYTHON=python3 VENV_ARGS=--system-site-packages CONSTRAINTS="
	@echo "Stages: GPUS=1 ranks (over gloo on a CPU); ARGS='key=value ...' overrides keys of the recipe"
	@echo "  on several nodes: HOSTFILE=hosts instead of GPUS (docs/cluster.md)"
	@echo "  MASTER_PORT=29500: where rank 0 listens (default: a free port)"

setup: $(STAMP) ## create .venv and install everything (again only if setup.py or the constraints changed)

$(STAMP): setup.py $(CONSTRAINTS)
	@"$$PYTHON" -c '' 2>/dev/null || { printf 'error: %s is not installed. Name another interpreter: make setup PYTHON=python3.12\n' "$$PYTHON" >&2; exit 2; }
	@test -x $(BIN)/python || { printf 'setup: %s with %s\n' "$$VENV" "$$PYTHON"; ARGS="$$VENV_ARGS $$VENV" .ci/with-args "$$PYTHON" -m venv; }
	@echo "setup: torch"
	@$(PIP) "setuptools>=77" torch $(if $(TORCH_INDEX),--extra-index-url "$$TORCH_INDEX")
	@echo "setup: ma2mba, its requirements and the tools"
	@$(PIP) --editable '.[serve,dev]'
	@touch $@

check: setup ## ruff (rules and format) and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

test: setup ## run the tests (15 minutes on 2 cores); ARGS='-k magc' selects some
	@.ci/with-args $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: setup ## what `make test` leaves out: long tests, fuzzing, and chaos in full (1 hour)
	@.ci/with-args $(BIN)/python -m pytest -n 2 --dist loadfile -m 'slow or scale'
	@$(MAKE) fuzz ARGS=
	@$(MAKE) chaos ARGS=

fuzz: setup ## random changes to every file that a command reads, random plans and recipes: ROUNDS=2000 of each from seed SEED=<time> (20 to 30 minutes); a failure prints how to repeat it
	@printf 'fuzz: SEED=%s ROUNDS=%s\n' "$$SEED" "$$ROUNDS"
	@FUZZ_SEED="$$SEED" FUZZ_ROUNDS="$$ROUNDS" .ci/with-args $(BIN)/python -m pytest -m fuzz tests/fuzz

test-newest: ## ruff, mypy and all tests with the newest version of every requirement, in .venv-newest-3.13 (NEWEST=3.12; delete it to look for newer ones)
	@python=$$(.ci/find-python $(NEWEST)) && $(MAKE) check test PYTHON="$$python" VENV=.venv-newest-$(NEWEST) CONSTRAINTS=

test-oldest: ## all tests with the oldest version of every requirement that setup.py allows, in .venv-oldest (OLDEST=3.11)
	@python=$$(.ci/find-python $(OLDEST)) && $(MAKE) test PYTHON="$$python" VENV=.venv-oldest CONSTRAINTS=.ci/constraints-oldest.txt

lmms-eval-test: ## run the plugin for lmms-eval on local files, in an environment of its own, .venv-lmms-eval (docs/lmms_eval.md)
	@$(MAKE) lmms-eval-tests VENV=.venv-lmms-eval CONSTRAINTS=.ci/constraints-lmms-eval.txt

.PHONY: lmms-eval-tests
lmms-eval-tests: $(VENV)/.lmms-eval
	@.ci/with-args $(BIN)/python -m pytest tests/lmms_eval

# PyPI's torchvision needs a torch with CUDA, else its import fails, and with it lmms-eval's. Without torchvision,
# lmms-eval runs.
$(VENV)/.lmms-eval: setup.py $(CONSTRAINTS)
	@"$$PYTHON" -c '' 2>/dev/null || { printf 'error: %s is not installed. Name another interpreter: make lmms-eval-test PYTHON=python3.12\n' "$$PYTHON" >&2; exit 2; }
	@test -x $(BIN)/python || { printf 'lmms-eval-test: %s with %s\n' "$$VENV" "$$PYTHON"; ARGS="$$VENV_ARGS $$VENV" .ci/with-args "$$PYTHON" -m venv; }
	@echo "lmms-eval-test: torch"
	@$(PIP) "setuptools>=77" torch $(if $(TORCH_INDEX),--extra-index-url "$$TORCH_INDEX")
	@echo "lmms-eval-test: ma2mba, lmms-eval and their requirements"
	@$(PIP) --editable '.[lmms-eval,decord]' pytest pytest-timeout $(if $(TORCH_INDEX),--extra-index-url "$$TORCH_INDEX")
	@$(BIN)/python -c 'import torchvision' 2>/dev/null || $(BIN)/python -m pip uninstall -qq --yes torchvision
	@touch $@

demo: setup ## train on toy videos through all stages on a CPU, to runs/demo (10 minutes; resumes; ARGS=--fresh starts over)
	@.ci/with-args $(BIN)/python examples/demo/run.py

demo-long: setup ## the same with a longer training, until needles are found in two hours of video, to runs/demo-long (hours; resumes)
	@.ci/with-args $(BIN)/python examples/demo/run.py --long

chaos: setup ## kill a training run 10 times and compare it with an undisturbed run (ARGS='--kills 20 --seed 1')
	@.ci/with-args $(BIN)/python tests/dist/chaos.py

shards: need-DATA need-RUN setup ## turn videos and annotations into token shards: DATA=recipe.yaml RUN=folder to write
	.ci/with-args $(BIN)/ma2mba data build "$$DATA" --out "$$RUN"

stage1: need-DATA need-RUN setup ## train the projector: DATA=shards RUN=folder GPUS=n
	$(train)

stage1.5: need-DATA need-RUN setup ## train everything on long scenes: DATA=shards RUN=folder GPUS=n ARGS=init_from=<stage 1 run>
	$(train)

stage2: need-DATA need-RUN setup ## train everything on questions: DATA=shards RUN=folder GPUS=n ARGS=init_from=<stage 1.5 run>
	$(train)

ranks = $(if $(HOSTFILE),--hostfile "$$HOSTFILE",--gpus "$$GPUS")
train = .ci/with-args $(BIN)/ma2mba train launch/recipes/$(subst .,_,$@).yaml $(ranks) "data=$$DATA" "run=$$RUN"

clean: ## remove caches of builds and tests (keeps runs/ and .venv)
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

need-DATA need-RUN: need-%:
	@test -n "$${$*}" || { echo "error: $* is missing. Set it on the command line: $*=... (see make help)" >&2; exit 2; }
