PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test chaos check clean

.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e ".[dev]"
	touch $@

setup: .venv/.ready

demo: setup
	$(BIN)/python -m maskmill.pipeline.demo --out demo-out

test: setup
	$(BIN)/python -m pytest

chaos: setup
	$(BIN)/python -m pytest -m chaos tests

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src/maskmill benchmarks # the link src/maskmill/pipeline leads it to pipeline/ too

clean:
	rm -rf .venv demo-out
