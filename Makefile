# Everything starts here: each target makes the virtual environment it needs.
#   make serve   serve the embedded model          make test    lint, types, tests
#   make lint    ruff     make types   mypy        make proto   regenerate protos/*_pb2*
#   make unit    tests without processes of Ray     make system  those with them, the short ones
#   make long    the others of those: more faults, more parts of Ray lost
#   make search  the property tests with new examples, many of them
PYTHON ?= python3
ARGS ?=
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
PIP := $(BIN)/python -m pip --disable-pip-version-check
SERVE := $(VENV)/ready-serve
DEV := $(VENV)/ready-dev
PROTOS := $(wildcard protos/*.proto)
BUILD := pyproject.toml setup.py $(wildcard kernels/native/*)

# A folder that was moved or copied gets a fresh environment: the old one's scripts name the old place.
ifneq ($(wildcard $(VENV)/ready-torch),)
ifneq ($(shell cat $(VENV)/ready-torch),$(CURDIR))
$(info $(VENV) was made in another folder: making it again)
$(shell rm -rf $(VENV))
endif
endif

.PHONY: serve test lint types unit system long search proto clean
.DEFAULT_GOAL := test

serve: $(SERVE)
	$(BIN)/rayline serve $(ARGS)

test: lint types unit system

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)
	$(BIN)/mypy

# Some tests wait for real processes on a machine of unknown load. One that fails runs once more and is listed as RERUN: a bug
# of the test, or a race, to be mended all the same.
RETRY := --reruns 1 -r R

# One thread each: the models of the tests are so small that threads only wait for each other. A file is one job.
unit: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(or $(TESTS),tests/unit) -m "not long" -n $(JOBS) --dist loadfile --no-loadscope-reorder $(RETRY) $(ARGS)

# One after the other: they measure how soon things happen.
system: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(or $(TESTS),tests/system tests/chaos) -m "not long" $(RETRY) $(ARGS)

# More faults than a check of every change has time for: some twenty minutes.
long: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit tests/system tests/chaos -m long $(ARGS)

search: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit --hypothesis-profile=new -m hypothesis $(ARGS)

proto: $(DEV)
	$(BIN)/python -m grpc_tools.protoc -Itests/typing --python_out=tests/typing --pyi_out=tests/typing \
	  --grpc_python_out=tests/typing $(addprefix rayline/,$(PROTOS))

# pip also compiles the kernels, again when their sources change. torch goes first, alone: pip then takes the build that the machine's own package sources offer.
$(VENV)/ready-torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install --quiet $(TORCH)
	echo '$(CURDIR)' > $@

$(SERVE): $(VENV)/ready-torch $(BUILD)
	$(PIP) install --quiet -c constraints.txt -e '.[serve]'
	touch $@

$(DEV): $(VENV)/ready-torch $(BUILD)
	$(PIP) install --quiet -c constraints.txt -e '.[serve,hub,dev]'
	touch $(SERVE) $@

clean:
	rm -rf $(VENV) build dist *.egg-info kernels/_native*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
