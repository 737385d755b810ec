# Two commands do everything: `make demo` and `make test`. Python 3.11 or newer is all that they need.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DONE = $(VENV)/.installed
LOCK = constraints.txt
PEERS = $(VENV)/.peers

MINUTES ?= 60

.PHONY: demo demo-change test test-all soak fuzz sbom audit lint bench bench-tune format clean setup

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

# Side by side in two processes; a test that begins the last goes to whoever is free.
test: $(DONE)
	$(BIN)/python -m pytest -q --numprocesses 2 --dist worksteal

test-all: $(DONE)
	$(BIN)/python -m pytest -q -m ''

# Runs with a fault in each, held to what should be there: make soak N=1000 SEED=1
N ?= 100
SEED ?= 1
soak: $(DONE)
	$(BIN)/python tests/soak/run.py --runs $(N) --seed $(SEED)

# What only the benchmarks need: peers, and Daft with an older pyarrow than ours in a folder of its own.
$(PEERS): $(DONE) benchmarks/daft.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(LOCK) --editable '.[dev,bench]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/daft --requirement benchmarks/daft.txt
	touch $@

bench: $(PEERS)
	$(BIN)/python benchmarks/run.py

# Settings for the peers, tried out on this machine, into benchmarks/tuned.json.
bench-tune: $(PEERS)
	$(BIN)/python benchmarks/tune.py

# Type checkers do not see the default editable install, so types are checked against a plain one beside it.
lint: $(DONE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build && $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/typed . 
	MYPYPATH=build/typed $(BIN)/mypy -p diastole.lake -p diastole.jobs -p diastole.workers -p diastole.cluster

	@$(MAKE) --no-print-directory audit sbom

# Known faults of what constraints.txt pins. Where no data of them can be reached it says so, and does not fail for that.
audit: $(DONE)
	@$(BIN)/python tests/audit.py $(LOCK)

# What constraints.txt pins, as CycloneDX, into build/.
sbom: $(DONE)
	@mkdir -p build
	@$(BIN)/python -m cyclonedx_py requirements --output-reproducible --of JSON -o build/sbom.cdx.json $(LOCK)
	@echo "build/sbom.cdx.json: $$(grep -c '"bom-ref": "requirements' build/sbom.cdx.json) packages"

# Hostile files for so long; what is found goes into tests/fuzz/corpus.
fuzz: $(DONE)
	nice -n 19 $(BIN)/python -W ignore tests/fuzz/fuzz.py --minutes $(MINUTES)

format: $(DONE)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .cache demo-lake *.egg-info
