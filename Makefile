# Two commands do everything: `make demo` and `make test`. Python 3.11 or newer is all that they need.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DONE = $(VENV)/.installed
LOCK = constraints.txt

.PHONY: demo demo-change test test-all lint bench format clean setup

setup: $(DONE)

$(DONE): pyproject.toml $(LOCK)
	$(PYTHON) -c 'import sys; sys.exit("diastole needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(LOCK) --editable '.[dev]'
	touch $@

demo: $(DONE)
	$(BIN)/python examples/demo.py

demo-change: $(DONE)
	$(BIN)/python examples/demo.py --change

test: $(DONE)
	$(BIN)/python -m pytest -q

test-all: $(DONE)
	$(BIN)/python -m pytest -q -m ''

bench: $(DONE)
	$(BIN)/python benchmarks/run.py

# Type checkers do not see the default editable install, so types are checked against a plain one beside it.
lint: $(DONE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build && $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/typed . 
	MYPYPATH=build/typed $(BIN)/mypy -p diastole.lake -p diastole.jobs -p diastole.workers -p diastole.cluster

format: $(DONE)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .cache demo-lake *.egg-info
