# make demo | test | slow | lint | types | examples | docs | bench | clean.  The README shows the plain pip commands.
PYTHON ?= python3
PYTEST_ARGS ?= -n 2
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1
export MPLBACKEND ?= Agg

.PHONY: demo test slow lint types examples docs bench clean

demo: .venv/demo.stamp
	$(BIN)/python -m poe demo

test: .venv/dev.stamp
	$(BIN)/python -m pytest $(PYTEST_ARGS)

slow: .venv/dev.stamp
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev.stamp
	$(BIN)/pyright --pythonpath $(BIN)/python

examples: .venv/dev.stamp
	set -e; for script in examples/*.py examples/adapters/*.py; do \
	  echo "== $$script"; POE_FAST=1 $(BIN)/python $$script; done

# into site/; warnings are errors. Then every page is opened, where there is a chromium.
docs: .venv/docs.stamp
	$(BIN)/python -m mkdocs build --strict --quiet --site-dir site
	$(BIN)/python tests/browser.py site

bench: .venv/dev.stamp
	set -e; for script in tests/benchmarks/bench_*.py; do \
	  echo "== $$script"; $(BIN)/python $$script; done

.venv/bin/python:
	$(PYTHON) -m venv .venv

# A stamp is renewed when what it installed changes, so that a second call installs nothing.
.venv/%.stamp: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing pinned dependencies into .venv (minutes, the first time)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$*]'
	touch $@

clean:
	rm -rf .venv build dist site *.egg-info
