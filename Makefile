# Needs python3 (3.11 or newer), a C++ compiler and make; pip brings the rest into $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Where there is no package index, a dgnet_fast installed in python3 itself serves `make gpu`.
RUN = $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

.PHONY: install pip test thorough train gpu gpu-ready gpu-tests gpu-shards gpu-bench stress sanitize lint types docs format

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
	$(BIN)/dgnet-fast train

# Everything that needs a GPU, in two parts of under nine minutes each (a machine may be lent for ten): `make gpu-tests`
# and `make gpu-bench`. Both write as they go, so that what was found is there when one is cut short, and a failed test
# does not keep the benchmarks from running. No package index is asked.
gpu:
	status=0; $(MAKE) gpu-tests || status=$$?; $(MAKE) gpu-bench || status=$$?; exit $$status

# Seconds of each part.
LIMIT = 540
# Most of the tests' time is Triton's compiler, one core a process.
PROCESSES = 8
GPU_LOGS = build/gpu

gpu-ready:
	@$(RUN) -c "import torch; assert torch.cuda.is_available()" 2>/dev/null || \
	{ echo "make gpu: $(RUN) has no PyTorch that sees a CUDA device" >&2; exit 1; }
	$(RUN) -c "import dgnet_fast.extension" || $(RUN) -m pip install --no-build-isolation --no-deps -e .

gpu-tests: gpu-ready
	$(MAKE) gpu-shards

# The tests in $(PROCESSES) processes, each with a log in $(GPU_LOGS); TESTS=... is for trying it without a GPU.
TESTS = -m gpu
gpu-shards:
	mkdir -p $(GPU_LOGS)
	@status=0; pids=; for k in $$(seq $(PROCESSES)); do \
	    OMP_NUM_THREADS=1 timeout --signal=INT $(LIMIT) $(RUN) -m pytest -v $(TESTS) --continue-on-collection-errors \
	        --shard $$k/$(PROCESSES) >$(GPU_LOGS)/tests-$$k.log 2>&1 & pids="$$pids $$!"; done; \
	for pid in $$pids; do wait $$pid || { code=$$?; test $$code -eq 5 || status=$$code; }; done; \
	grep -hE '^(FAILED|ERROR) ' $(GPU_LOGS)/tests-*.log; tail -qn 1 $(GPU_LOGS)/tests-*.log; exit $$status

# Steps first, and among them what everybody asks for: milliseconds, speed-up and memory.
gpu-bench: gpu-ready
	timeout --signal=INT $(LIMIT) $(RUN) -m pytest benchmarks/

# Kills, full disks, flipped bits, two of anything at once and hostile input, for MINUTES minutes (docs/reliability.md).
MINUTES = 30
SEED = 0
stress: EXTRAS = [test]
stress: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.stress.campaign --minutes $(MINUTES) --seed $(SEED)

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

# The pages and the API, into build/site; any warning fails. It reads the sources, so dgnet_fast need not be installed.
docs: pip
	$(BIN)/python -m pip install -q -c constraints.txt mkdocs-material "mkdocstrings[python]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -q

format: pip
	$(BIN)/python -m pip install -q -c constraints.txt ruff clang-format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i csrc/*.h csrc/*.cpp csrc/*.cu tests/ops/*.cpp tests/ops/*/*.h
