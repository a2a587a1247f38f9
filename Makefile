# Needs python3 (3.11 or newer), a C++ compiler and make; pip brings the rest into $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Where there is no package index, a dgnet_fast installed in python3 itself serves `make gpu`.
RUN = $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

.PHONY: install pip test thorough train gpu sanitize lint types format

# pip rebuilds the extensions when called, so C++ changes are always in; one of them needs torch to be there.
install: pip
	$(BIN)/python -m pip install -c constraints.txt torch
	$(BIN)/python -m pip install -c constraints.txt -e .$(EXTRAS)

# An environment with pip in it: one that uv made has none, and some distributions' python3 cannot add it.
pip:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null 2>&1 || \
	    uv pip install --python $(BIN)/python pip || \
	    { echo "make: there is no pip in $(VENV) and no way to add it: remove $(VENV) and start again" >&2; exit 1; }

# With everything optional, so that no test is left out for want of a package. Two processes of one thread each: most
# tests are small, and the recorded cases take 13 GB one at a time.
test: EXTRAS = [test]
test: install
	$(BIN)/python -c "import dgnet_fast; assert dgnet_fast.allocator_installed or not dgnet_fast.malloc_kept, 'dgnet_fast._allocator was not built for this torch'"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# Also what takes minutes: more compiled steps, the C++ bodies under sanitizers.
thorough: EXTRAS = [test]
thorough: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --thorough

train: install
	$(BIN)/python -m dgnet_fast.train

# Everything that needs a GPU, in ten minutes: its tests, then operators, modules, steps and their memory, named by
# GPU and date in benchmarks/results/. A failed test does not keep the benchmarks from running, and no package
# index is asked.
gpu:
	@$(RUN) -c "import torch; assert torch.cuda.is_available()" 2>/dev/null || \
	{ echo "make gpu: $(RUN) has no PyTorch that sees a CUDA device" >&2; exit 1; }
	$(RUN) -c "import dgnet_fast.extension" || $(RUN) -m pip install --no-build-isolation --no-deps -e .
	status=0; $(RUN) -m pytest -m gpu --continue-on-collection-errors || status=$$?; \
	$(RUN) -m pytest benchmarks/ || status=$$?; exit $$status

# The C++ bodies under AddressSanitizer and UndefinedBehaviorSanitizer, in a build folder of its own; the CUDA ones
# too, on the CPU, with tests/ops/cuda_on_cpu/ as CUDA's headers.
BODIES = $(filter-out csrc/bindings.cpp csrc/cpu_allocator.cpp csrc/malloc_thresholds.cpp,$(wildcard csrc/*.cpp))
CUDA_BODIES = $(wildcard csrc/*.cu)
SANITIZED = build/sanitize/bodies

sanitize: $(SANITIZED)
	$(SANITIZED)

$(SANITIZED): tests/ops/sanitize_bodies.cpp $(BODIES) $(CUDA_BODIES) $(wildcard csrc/*.h tests/ops/cuda_on_cpu/*.h)
	mkdir -p $(@D)
	for body in $(CUDA_BODIES); do \
	    sed -E 's/([a-z_]+(<[A-Za-z0-9_, ]+>)?)<<<([^>]+)>>>\(([^;]*)\);/cuda_on_cpu::launch(\3, [\&] { \1(\4); });/' \
	        $$body > $(@D)/$$(basename $$body).cpp || exit 1; done
	$(CXX) -std=c++17 -O1 -g -Wall -Wextra -Wno-psabi -Wno-unknown-pragmas -fopenmp -fno-omit-frame-pointer \
	    -fsanitize=address,undefined -fno-sanitize-recover=all -DDGNET_FAST_WITH_CUDA -Icsrc -Itests/ops/cuda_on_cpu \
	    $< $(BODIES) $(CUDA_BODIES:csrc/%=$(@D)/%.cpp) -o $@

lint: pip
	$(BIN)/python -m pip install -q -c constraints.txt ruff clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror csrc/*.h csrc/*.cpp csrc/*.cu tests/ops/*.cpp tests/ops/*/*.h
	$(MAKE) types

# Reads the annotations of what `make test` installs, so it comes after that. pyright runs on Node, which the extra
# `nodejs` brings from PyPI, and its package holds the program: nothing else is downloaded.
types: pip
	$(BIN)/python -m pip install -q -c constraints.txt "pyright[nodejs]"
	$(BIN)/pyright -p pyproject.toml --pythonpath $(BIN)/python

format: pip
	$(BIN)/python -m pip install -q -c constraints.txt ruff clang-format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i csrc/*.h csrc/*.cpp csrc/*.cu tests/ops/*.cpp tests/ops/*/*.h
