# make demo   sets up .venv, builds, and compares losses on real imbalanced data
# make test   the same set-up, then the whole test suite
# make test-all   that, and the whole table in the interpreter of Triton: an hour on two cores
# make lint   what reviewers would otherwise have to say
# make bench  benchmarks of this machine, into docs/performance.md
# make docs   the documentation as a site, into site/
# make dist   sdist and wheel into dist/, the wheel installed and tried in an environment of its own
# make sanitize  csrc under AddressSanitizer and UBSan: bad reads, writes and arithmetic
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

.PHONY: demo test test-all lint bench docs dist sanitize core clean

demo: $(VENV)/.lab
	$(BIN)/imbloss compare

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

# the whole table in Triton's interpreter, beside the rest
test-all: test
	TRITON_INTERPRET=1 IMBLOSS_BACKEND=triton IMBLOSS_TEST_ALL=1 $(BIN)/python -m pytest -m triton \
		--numprocesses auto --dist worksteal

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/clang-format --dry-run --Werror csrc/*

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks run
	$(BIN)/python -m benchmarks report

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The wheel is made from the sdist. auditwheel names it after the newest glibc whose symbols it needs; torch's libraries
# are torch's. Then the wheel alone, in an environment without this checkout: the smoke tests with each of its cores.
CORES ?= $(or $(IMBLOSS_ISA),default avx2 avx512)
WHEEL_PYTHON := $(CURDIR)/build/wheel/bin/python

dist: $(VENV)/.dev
	rm -rf dist build/wheel
	$(BIN)/python -m build --no-isolation
	PATH="$(abspath $(BIN)):$$PATH" auditwheel repair --exclude "libtorch*.so*" --exclude "libc10*.so*" \
		--wheel-dir dist dist/*-linux_*.whl
	rm dist/*-linux_*.whl
	$(PYTHON) -m venv $(if $(SYSTEM_TORCH),--system-site-packages) build/wheel
	$(if $(SYSTEM_TORCH),,$(WHEEL_PYTHON) -m pip install --quiet $(TORCH) $(TORCH_ARGS))
	$(WHEEL_PYTHON) -m pip install --quiet pytest dist/*.whl
	folder=$$(mktemp -d) && cp tests/test_smoke.py $$folder && cd $$folder && for core in $(CORES); do \
		ATEN_CPU_CAPABILITY=$$core IMBLOSS_EXPECTED_ISA=$$core $(WHEEL_PYTHON) -m pytest -q test_smoke.py || exit 1; \
	done && rm -r $$folder

# A core and a package of their own, in build/sanitize, for the tests marked isa. Of AVX2: the parts of vectors that it
# reads one by one are masked loads in AVX-512, which the sanitizers do not see. Without inlining, which would take many
# minutes to compile, nothing is fused into multiply-adds: the test of the last digit is left out.
SANITIZED_ISA ?= avx2
SANITIZED_TESTS ?= tests
SANITIZERS := -O1 -g1 -fno-inline -w -fsanitize=address -fsanitize=undefined -fno-sanitize-recover=all
CXX_FILE = $(shell $(CXX) -print-file-name=$(1))

sanitize: $(VENV)/.dev
	IMBLOSS_ISA=$(SANITIZED_ISA) IMBLOSS_CXXFLAGS="$(SANITIZERS)" \
		$(BIN)/python setup.py -q build --build-lib build/sanitize --build-temp build/sanitize-objects
	LD_PRELOAD="$(call CXX_FILE,libasan.so) $(call CXX_FILE,libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
		ATEN_CPU_CAPABILITY=$(SANITIZED_ISA) IMBLOSS_EXPECTED_ISA=$(SANITIZED_ISA) PYTHONPATH=build/sanitize \
		$(BIN)/pytest -q --capture=sys -m isa -k "not no_digit_is_lost" $(SANITIZED_TESTS)

core: $(VENV)/.dev

clean:
	rm -rf $(VENV) build dist site *.egg-info imbloss/*.so

# torch first and by itself: no other install may then replace it
$(VENV)/.torch:
	$(PYTHON) -m venv $(if $(SYSTEM_TORCH),--system-site-packages) $(VENV)
	$(if $(SYSTEM_TORCH),$(BIN)/python -c "import torch",$(PIP) $(TORCH) $(TORCH_ARGS))
	$(PIP) "setuptools>=77" "pybind11>=2.13" wheel
	touch $@

# the demonstration needs this machine's instruction set alone
$(VENV)/.lab: $(VENV)/.torch pyproject.toml $(CORE)
	IMBLOSS_ISA=native $(PIP) --no-build-isolation --config-settings editable_mode=compat --editable ".[lab]"
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml $(CORE)
	$(PIP) --no-build-isolation --config-settings editable_mode=compat --editable ".[dev]"
	touch $@ $(VENV)/.lab
