# The interface of this repository. Every target sets up what it needs; `make demo` or `make test` alone
# works on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test check lint types bench soak proto clean

demo: $(INSTALLED)  ## eight agents train one model on real images
	$(BIN)/p2pqg demo

test: $(INSTALLED)  ## the tests that run in minutes
	$(BIN)/pytest -m "not slow and not network and not gpu"

check: lint types proto-check $(INSTALLED)  ## everything
	$(BIN)/pytest

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(INSTALLED)
	$(BIN)/mypy p2pqg simulator

bench: $(INSTALLED)  ## print every measured claim, each as a ratio to a baseline of the same run
	$(BIN)/python benchmarks/simulator.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/gossip.py
	$(BIN)/python benchmarks/agent.py
	$(BIN)/python benchmarks/privacy.py
	$(BIN)/python benchmarks/faults.py

soak: $(INSTALLED)  ## eight agents live with faults for SOAK_MINUTES (30), by a script from SOAK_SEED (0)
	$(BIN)/python -m p2pqg_simulator.soak

proto: $(INSTALLED)  ## regenerate p2pqg/wire/*_pb2.py from protos/
	$(BIN)/python protos/generate.py

.PHONY: proto-check
proto-check: $(INSTALLED)
	$(BIN)/python protos/generate.py --check

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "p2pqg needs Python 3.11 or newer, found " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
