# Everything that one does with a clone. `make` lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where torch comes from, if not from PyPI: https://download.pytorch.org/whl/cpu is the small build
# for machines without a GPU, …/whl/cu130 the one for a recent NVIDIA driver.
TORCH_INDEX ?=
# Of the tests. Each takes up to 8 GB for models, and runs the services that its tests share.
TEST_PROCESSES ?= 2
PIP := $(BIN)/python -m pip --disable-pip-version-check
PIP_INSTALL := $(PIP) install --quiet -c constraints.txt
SOURCES := app worker migrations tests bench

.DEFAULT_GOAL := help
.PHONY: help demo serve test check format openapi acceptance canaries chaos bench-training bench-loading bench-serving clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

demo: $(VENV)/.demo ## Fine-tune a real model on real data and talk to the result (minutes)
	@$(BIN)/tunesmith demo

serve: $(VENV)/.demo ## Run the service until Ctrl-C
	@$(BIN)/tunesmith up

test: $(VENV)/.dev ## Run the tests, with real Postgres and Redis-protocol servers
	@$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadscope --no-loadscope-reorder

check: $(VENV)/.dev ## Format, lint, types, import rule, OpenAPI document up to date
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	@$(BIN)/tunesmith openapi | diff -u openapi.json - || \
		(echo "openapi.json is not up to date: run 'make openapi' and review the change"; exit 1)

format: $(VENV)/.dev ## Format the code and mend what the linter can
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

openapi: $(VENV)/.dev ## Write openapi.json anew
	$(BIN)/tunesmith openapi > openapi.json

acceptance: $(VENV)/.dev ## Train and ask every task at full size, and print the table of docs/tasks.md (an hour)
	@$(BIN)/python -m tests.acceptance.table $(ACCEPTANCE)

canaries: $(VENV)/.dev ## Ask eight adapters 2,000 times while others come and go, and hear that none answers for another (minutes)
	@$(BIN)/python -m pytest -q -s -m slow tests/acceptance/test_canaries.py

chaos: $(VENV)/.dev ## Kill, freeze and starve the real service, and check that nothing is lost (40 minutes)
	@$(BIN)/python -m pytest -q -m slow tests/integration/test_lease_machine.py
	@$(BIN)/python -m tests.chaos $(CHAOS)

bench-training: $(VENV)/.demo ## Compare training speed with TRL's SFTTrainer (about 15 minutes)
	@PYTHON=$(PYTHON) bash bench/training.sh

bench-serving: $(VENV)/.demo ## Compare generation with transformers, PEFT, vLLM and llama.cpp (about 20 minutes)
	@PYTHON=$(PYTHON) bash bench/serving.sh $(BENCH)

bench-loading: $(VENV)/.dev ## Compare the first call of a new adapter with PEFT's load_adapter (2 minutes)
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=. $(BIN)/python -W ignore bench/adapter_loading.py $(BENCH)

clean: ## Remove the virtual environments; the data in .tunesmith stays
	rm -rf $(VENV) $(VENV)-*

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or newer is needed: set PYTHON=<path>"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, found $$($(PYTHON) -V): set PYTHON=<path>"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# A stamp holds what was installed last, so that a second run does not ask pip again.
$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing (a few minutes the first time) ..."
	@$(PIP_INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@$(PIP_INSTALL) -e '.[ml,demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "Installing what the tests and checks need ..."
	@$(PIP_INSTALL) -e '.[ml,demo,test,dev]'
	@touch $@
