# make demo: venv, install, the main job.
# make test: the fast tests. make test-slow: the slow ones. make test-all: both. make test-oldest: the fast tests with
# the oldest versions that pyproject.toml declares. make lint: format, lint, types.
# make docs: the documentation site, in build/site. Warnings are errors.
# make notebooks: the site with its notebooks executed, which takes minutes. Those that did not change come from a cache.
# make matrix: a few steps of every allowed pair of a method and an augmentation, where make test takes a selection.
VENV ?= .venv
VENV_OLDEST ?= .venv-oldest
PYTHON ?= python3
# The oldest declared Python if this machine has it, else $(PYTHON). Each is tried, because pyenv's shims may not work.
PYTHON_OLDEST ?= $(shell for python in python3.10 $(HOME)/.pyenv/versions/3.10*/bin/python; do \
	$$python -c "" 2>/dev/null && echo $$python && exit; done; echo $(PYTHON))
# FAISS for this machine: faiss-gpu with an NVIDIA GPU, else faiss-cpu. Never both: they own the same module.
EXTRA ?= $(shell [ "$$(uname -m)" = x86_64 ] && nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
OTHER := $(if $(filter gpu,$(EXTRA)),cpu,gpu)
BIN := $(VENV)/bin
UV := $(BIN)/uv pip
INSTALL = $(UV) uninstall --quiet --python $(BIN)/python faiss-$(OTHER); rm -f $(VENV)/.$(OTHER)*; \
	$(UV) install --quiet --compile-bytecode --python $(BIN)/python --editable
PYTEST := python -m pytest -n auto --maxprocesses 4

.PHONY: demo test test-slow test-all test-oldest matrix docs notebooks lint clean

demo: $(VENV)/.$(EXTRA)
	$(BIN)/idaa-bench run --method simclr --aug idaa --resume

test: $(VENV)/.$(EXTRA)-test
	OMP_NUM_THREADS=1 $(BIN)/$(PYTEST)

test-slow: $(VENV)/.$(EXTRA)-test
	OMP_NUM_THREADS=1 $(BIN)/$(PYTEST) -m "slow and not matrix"

test-all: $(VENV)/.$(EXTRA)-test
	OMP_NUM_THREADS=1 $(BIN)/$(PYTEST) -m "not matrix"

test-oldest: $(VENV_OLDEST)/.test
	@echo "Oldest declared versions on $$($(VENV_OLDEST)/bin/python -V). Declared: $$(grep ^requires-python pyproject.toml)."
	OMP_NUM_THREADS=1 $(VENV_OLDEST)/bin/$(PYTEST)

matrix: $(VENV)/.$(EXTRA)-test
	OMP_NUM_THREADS=1 $(BIN)/$(PYTEST) -m "matrix or not matrix" tests/test_matrix.py -k trains -v

docs: $(VENV)/.$(EXTRA)-docs
	$(BIN)/sphinx-build -W --keep-going -q -c docs . build/site
	@echo "Open build/site/docs/index.html."

notebooks: $(VENV)/.$(EXTRA)-docs
	OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore $(BIN)/sphinx-build -W --keep-going -q -D nb_execution_mode=cache -c docs . build/site
	@echo "Open build/site/docs/index.html."

lint: $(VENV)/.$(EXTRA)-lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(VENV_OLDEST)

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check uv

$(VENV)/.$(EXTRA): pyproject.toml | $(BIN)/uv
	$(INSTALL) ".[all,$(EXTRA)]"
	touch $@

$(VENV)/.$(EXTRA)-test: pyproject.toml | $(BIN)/uv
	$(INSTALL) ".[all,$(EXTRA),test]"
	touch $@

$(VENV)/.$(EXTRA)-docs: pyproject.toml | $(BIN)/uv
	$(INSTALL) ".[all,$(EXTRA),docs]"
	touch $@

$(VENV)/.$(EXTRA)-lint: pyproject.toml | $(BIN)/uv
	$(INSTALL) ".[all,$(EXTRA),test,lint]"
	touch $@

$(VENV_OLDEST)/.test: pyproject.toml | $(BIN)/uv
	$(PYTHON_OLDEST) -m venv --clear $(VENV_OLDEST)
	$(UV) install --quiet --compile-bytecode --python $(VENV_OLDEST)/bin/python --resolution lowest-direct \
		--editable ".[all,cpu,test]"
	touch $@
