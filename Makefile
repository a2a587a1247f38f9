# Needs python3 (3.10 or newer), a C++ compiler and make; pip brings the rest into $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Where there is no package index, a dgnet_fast installed in python3 itself serves `make gpu`.
RUN = $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

.PHONY: install test train gpu lint format

# pip rebuilds the extension when called, so C++ changes are always in.
install:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c constraints.txt -e .[test]

test: install
	$(BIN)/python -m pytest

train: install
	$(BIN)/python -m dgnet_fast.train

# Everything that needs a GPU: its tests, then the benchmarks, named by GPU and date in benchmarks/results/.
gpu:
	$(RUN) -c "import dgnet_fast" || $(RUN) -m pip install --no-build-isolation --no-deps -e .
	$(RUN) -m pytest -m gpu
	$(RUN) -m pytest benchmarks/ --record-results

lint:
	$(BIN)/pip install -q -c constraints.txt ruff clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror csrc/*.h csrc/*.cpp csrc/*.cu

format:
	$(BIN)/pip install -q -c constraints.txt ruff clang-format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i csrc/*.h csrc/*.cpp csrc/*.cu
