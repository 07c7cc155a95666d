# The targets list themselves: `make` or `make help`. Two test processes have a thread each,
# since threads that wait for each other on busy cores cost more than they bring.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.DEFAULT_GOAL := help
.PHONY: help setup check format test test-slow demo bench docs clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## Make .venv and install pinned dependencies

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

check: $(READY)  ## Format, lint, types and the reading order
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/python -m pytest -q tests/test_architecture.py

format: $(READY)  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: $(READY)  ## Run the tests, the docstrings and the examples
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow and not gpu"

test-slow: $(READY)  ## Run the slow proofs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "slow and not gpu"

demo: $(READY)  ## Run the three jobs on data that is already here
	$(BIN)/gradsift demo --out runs/demo

bench: $(READY)  ## Run the benchmarks (see benchmarks/README.md)
	for name in gradient_index search_cost memory traker_mlp; do \
		$(BIN)/python benchmarks/$$name.py --out runs/benchmarks/$$name.md || exit 1; \
	done

docs: $(READY)  ## Write the command-line help into docs/
	$(BIN)/python docs/write_help.py

clean:  ## Remove what the other targets made
	rm -rf .venv runs build dist *.egg-info
