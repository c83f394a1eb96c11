# make demo: venv, install, the main job. make test: the same venv, all tests. make lint: format, lint, types.
# make matrix: a few steps of every allowed pair of a method and an augmentation, where make test takes a selection.
VENV ?= .venv
PYTHON ?= python3
# FAISS for this machine: faiss-gpu with an NVIDIA GPU, else faiss-cpu. Never both: they own the same module.
EXTRA ?= $(shell [ "$$(uname -m)" = x86_64 ] && nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
OTHER := $(if $(filter gpu,$(EXTRA)),cpu,gpu)
BIN := $(VENV)/bin
UV := $(BIN)/uv pip
INSTALL = $(UV) uninstall --quiet --python $(BIN)/python faiss-$(OTHER); rm -f $(VENV)/.$(OTHER)*; \
	$(UV) install --quiet --compile-bytecode --python $(BIN)/python --editable

.PHONY: demo test matrix lint clean

demo: $(VENV)/.$(EXTRA)
	$(BIN)/idaa-bench run --method simclr --aug idaa --resume

test: $(VENV)/.$(EXTRA)-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 -m "not matrix"

matrix: $(VENV)/.$(EXTRA)-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 -m "matrix or not matrix" tests/test_matrix.py -k trains -v

lint: $(VENV)/.$(EXTRA)-lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV)

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check uv

$(VENV)/.$(EXTRA): pyproject.toml | $(BIN)/uv
	$(INSTALL) ".[$(EXTRA)]"
	touch $@

$(VENV)/.$(EXTRA)-test: pyproject.toml | $(BIN)/uv
	$(INSTALL) ".[$(EXTRA),test]"
	touch $@

$(VENV)/.$(EXTRA)-lint: pyproject.toml | $(BIN)/uv
	$(INSTALL) ".[$(EXTRA),test,lint]"
	touch $@
