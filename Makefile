# make demo, make test: both set up .venv from the lock file first, once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# options for pip, such as --extra-index-url for PyTorch's CPU builds (see the README)
PIP_OPTIONS ?=

.PHONY: demo test lint bench lock clean
demo: $(VENV)/.installed
	$(BIN)/python -m embexp

test: $(VENV)/.installed
	$(BIN)/python -m pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# measure anew what benchmarks/README.md shows: hours on two cores. make bench NAMES="search startup" measures these;
# DATA=<folder with pqa_labeled/*.parquet> is a local copy of PubMedQA, else docstrings stand in for it. The peer faiss-cpu is measured where it is installed
DATA ?=
NAMES ?=
bench: $(VENV)/.installed
	$(BIN)/python benchmarks/tables.py --data "$(DATA)" $(NAMES)

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "embexp needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the packages of requirements.lock into $(VENV): about 2.5 GB, some minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# rewrite the lock with the newest versions that pyproject.toml allows; torch stays where its CPU build is tested
lock: $(VENV)/.installed
	$(BIN)/pip-compile --quiet --strip-extras --extra wandb --extra mine --extra postgresql --extra slurm --extra dashboard \
		--extra test --extra lint --no-header --no-emit-options \
		--no-annotate --upgrade --upgrade-package torch==2.13.0 --output-file requirements.lock pyproject.toml
	sed -i.bak 's/+cpu$$//' requirements.lock && rm requirements.lock.bak

clean:
	rm -rf $(VENV)
