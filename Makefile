# `make demo` and `make test` need nothing but Python 3.11, a C++ compiler and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-slow lint base clean

demo: $(VENV)/compile.stamp
	$(BIN)/tilecompile demo

# Tests of GPU kernels load another compiler with a runtime of its own, so they have a process of their own.
GPU_TESTS = tests/targets/cuda tests/runtime/cuda tests/gpu

test: $(VENV)/test.stamp lint base
	$(BIN)/python -m pytest -m "not slow" $(GPU_TESTS)
	$(BIN)/python -m pytest -m "not slow" $(addprefix --ignore=,$(GPU_TESTS))

test-slow: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m slow $(GPU_TESTS)
	$(BIN)/python -m pytest -m slow $(addprefix --ignore=,$(GPU_TESTS))

lint: $(VENV)/test.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# An engine must load and run where only the base dependencies are installed.
base: $(VENV)/test.stamp .venv-base/stamp
	$(BIN)/tilecompile compile examples/tiny-glm5 --force -o .venv-base/tiny.engine
	.venv-base/bin/python tests/support/base_environment.py .venv-base/tiny.engine

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch comes first: the constraints pin the build that all other packages must accept.
$(VENV)/compile.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) torch
	$(PIP) --editable '.[compile]'
	touch $@

$(VENV)/test.stamp: $(VENV)/compile.stamp
	$(PIP) --editable '.[compile,test,train]'
	touch $@

.venv-base/stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-base
	.venv-base/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

clean:
	rm -rf $(VENV) .venv-base build *.egg-info
