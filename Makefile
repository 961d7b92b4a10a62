# `make` lists the targets. PYTHON chooses the interpreter (3.10 to 3.13), VENV where its environment goes, TRAINING_VENV
# where the one with onnxruntime-training does, which cannot be in an environment with onnxruntime.

PYTHON ?= python3
VENV ?= .venv
TRAINING_VENV ?= .venv-ort-training
export EDGEFL_TRAINING_PYTHON ?= $(abspath $(TRAINING_VENV))/bin/python
BIN := $(VENV)/bin
ROUNDS ?= 10
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test slow test-web test-arm64 test-runtimes test-ort-training check fix bench coverage soak mutate \
  package clean mosquitto ort-training

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "%-17s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.all ## Train a model on emulated devices over MQTT, on this machine
	$(BIN)/edgefl demo

test: check mosquitto ort-training ## Check, then run every test
	$(BIN)/pytest -n 2 --dist worksteal

slow: $(VENV)/.test ## Run the tests that take minutes: every model of the zoo, exported and proven in its own size
	$(BIN)/pytest -n 2 --dist worksteal -m slow

test-web: $(VENV)/.test ## Prove bundles in onnxruntime-web (WebAssembly), under Node; part of `make test`
	$(BIN)/pytest tests/platforms -k web

test-arm64: $(VENV)/.test ## Prove bundles on emulated arm64 Linux; brings it, on Debian, as root
	PYTHON=$(BIN)/python bench/arm64_root.sh
	$(BIN)/pytest tests/platforms -k arm64

test-runtimes: $(VENV)/.test ## Prove bundles in every runtime that is here; part of `make test`
	$(BIN)/pytest tests/platforms/test_runtimes.py

test-ort-training: $(VENV)/.test mosquitto ort-training ## Only the tests that need onnxruntime-training
	$(BIN)/pytest tests/ort_training

check: $(VENV)/.test ## Lint, format, types and who imports whom; changes nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

fix: $(VENV)/.test ## Format, and repair what ruff can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.test ## Run the benchmarks; those that need a data set only with DATA=FOLDER and CIFAR=FOLDER
	@for file in $$(grep -l '^@options' bench/*.py); do \
	  case $$file in *cifar*) folder="$(CIFAR)"; what="CIFAR=FOLDER, train.npz and test.npz of CIFAR-10";; \
	    *) folder="$(DATA)"; what="DATA=FOLDER, MNIST's four files";; esac; \
	  if ! grep -q '@data_option' $$file; then data=; \
	  elif [ -n "$$folder" ]; then data="--data $$folder"; \
	  else echo "$$file left out: it needs $$what"; continue; fi; \
	  echo "== $$file"; $(BIN)/python $$file $$data || exit 1; \
	done

coverage: $(VENV)/.test ort-training ## Write docs/coverage.md: every model in every runtime; some minutes
	PYTHON=$(BIN)/python bench/arm64_root.sh
	$(BIN)/python bench/coverage.py -o docs/coverage.md

soak: $(VENV)/.test mosquitto ## Run the tests ROUNDS times (10), each time with other random seeds and a minute of each siege
	@for round in $$(seq $(ROUNDS)); do \
	  echo "== round $$round of $(ROUNDS)"; \
	  EDGEFL_SIEGE_S=60 PYTHONHASHSEED=$$round $(BIN)/pytest -n 2 --dist worksteal --hypothesis-seed=$$round || exit 1; \
	done

mutate: $(VENV)/.mutate ## Say how many small mistakes in the core its tests see: 4,700, about 1 s each; MODULES=journal for few
	$(BIN)/python tests/mutate.py $(MODULES)

package: $(VENV)/.test ## Build the wheel and the source archive into dist/, and say what a device installs, in MB
	$(BIN)/python -m hatchling build -d dist
	$(BIN)/python bench/package_size.py

clean: ## Remove the environments, what was built and every cache
	rm -rf $(VENV) $(TRAINING_VENV) .venv-onnxruntime-* .arm64 .arm64.new devices/web/node_modules dist build \
	  .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment is installed once, and again when pyproject.toml changes.
$(VENV)/.%: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "== installing edgefl[$*] into $(VENV), once: minutes, since torch is large; pip says how far it is"
	@$(PIP_INSTALL) --upgrade 'pip>=24'
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[$*]'
	@touch $@

# The last onnxruntime-training has wheels for x86-64 and macOS, Python 3.8 to 3.12. Elsewhere its tests are skipped.
ort-training:
	@test -x $(TRAINING_VENV)/bin/python || $(PYTHON) -m venv $(TRAINING_VENV)
	@$(TRAINING_VENV)/bin/python -c 'from edgefl.training_artifacts import training_api; training_api()' 2> /dev/null || \
	$(TRAINING_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
	  onnxruntime-training-cpu==1.19.2 --editable . || \
	echo "onnxruntime-training-cpu 1.19.2 cannot be installed for this machine and Python: its tests are skipped"

# Tests need a real mosquitto. Where it cannot be installed they are skipped and say so; with CI set they fail.
mosquitto:
	@if PATH="$$PATH:/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin" command -v mosquitto > /dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then root=; else root="sudo -n"; fi; \
	if command -v apt-get > /dev/null && $$root true 2> /dev/null; then \
	  $$root apt-get update -qq && $$root env DEBIAN_FRONTEND=noninteractive \
	    apt-get install -y -qq --no-install-recommends --no-upgrade mosquitto openssl; \
	else echo "mosquitto is missing and cannot be installed from here: tests that need it are skipped"; fi
