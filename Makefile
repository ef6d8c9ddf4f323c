# make run      create .venv, install, run the default experiment, print its run folder
# make test     create what is missing, run the tests
# make test-slurm  the tests that start a SLURM of one node; as root it installs Debian's packages first
# make lint     ruff (with docstring rules) and mypy
# make install  only install
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TORCH_VERSION := $(BIN)/python -c 'import torch; print(torch.__version__)'

.PHONY: install run test test-slurm slurm-packages lint bench clean

install: $(STAMP)

# torch goes first and pinned: left to itself pip may pick a newer build than torchvision wants.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "plastiscope needs Python 3.11 or newer: make PYTHON=python3.11 install"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch torchvision
	@$(TORCH_VERSION) > $(VENV)/.torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,test-oracles]'
	@$(TORCH_VERSION) | cmp -s - $(VENV)/.torch || { echo "a dependency has replaced torch $$(cat $(VENV)/.torch); pin it in constraints.txt"; exit 1; }
	touch $(STAMP)

run: $(STAMP)
	$(BIN)/plastiscope

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-slurm: $(STAMP) slurm-packages
	$(BIN)/python -m pytest tests/slurm -rs $(PYTEST_ARGS)

# Where it may not install them, the tests are skipped and say why.
slurm-packages:
	@PATH="$$PATH:/usr/sbin:/sbin"; { command -v slurmctld && command -v munged; } >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null; } || echo "no SLURM here: apt-get install -y --no-install-recommends slurm-wlm munge"

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks experiments
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks.all

clean:
	rm -rf $(VENV) build src/*.egg-info
