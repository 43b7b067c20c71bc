# make demo   sets up .venv, builds, and compares losses on real imbalanced data
# make test   the same set-up, then the whole test suite
# make test-all   that, and the whole table in the interpreter of Triton: half an hour
# make lint   what reviewers would otherwise have to say
# make bench  benchmarks of this machine, into docs/performance.md
# Every target sets up what it needs, once; a second call reinstalls nothing.
#
#   PYTHON=python3.12        the Python that .venv is made of
#   TORCH_ARGS="..."         more arguments for pip when it installs torch, an --index-url for instance
#   SYSTEM_TORCH=1           use the torch that PYTHON imports instead of installing one

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
CORE := setup.py $(wildcard csrc/*)

export IMBLOSS_REQUIRE_CORE := 1

.PHONY: demo test test-all lint bench core clean

demo: $(VENV)/.lab
	$(BIN)/imbloss compare

test: $(VENV)/.dev
	$(BIN)/python -m pytest

# the whole table in Triton's interpreter, beside the rest
test-all: test
	TRITON_INTERPRET=1 IMBLOSS_BACKEND=triton IMBLOSS_TEST_ALL=1 $(BIN)/python -m pytest -m triton

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/clang-format --dry-run --Werror csrc/*

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks run
	$(BIN)/python -m benchmarks report

core: $(VENV)/.dev

clean:
	rm -rf $(VENV) build dist *.egg-info imbloss/*.so

# torch first and by itself: no other install may then replace it
$(VENV)/.torch:
	$(PYTHON) -m venv $(if $(SYSTEM_TORCH),--system-site-packages) $(VENV)
	$(if $(SYSTEM_TORCH),$(BIN)/python -c "import torch",$(PIP) $(TORCH) $(TORCH_ARGS))
	$(PIP) "setuptools>=77" "pybind11>=2.13" wheel
	touch $@

$(VENV)/.lab: $(VENV)/.torch pyproject.toml $(CORE)
	$(PIP) --no-build-isolation --config-settings editable_mode=compat --editable ".[lab]"
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml $(CORE)
	$(PIP) --no-build-isolation --config-settings editable_mode=compat --editable ".[dev]"
	touch $@ $(VENV)/.lab
