# Two commands: `make serve` and `make test`. Everything they need goes into .venv, pinned and checked by hash.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# A run of the tests starts hundreds of processes: what Python compiles is kept, whatever the environment says.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: serve test check format faults fuzz simulate bench pins clean

serve: $(VENV)/serve.done
	@exec $(BIN)/turnlog serve --first-key

test: check
	@$(BIN)/python -m tests.postgres_programs || $(PIP) install --require-hashes --requirement requirements/postgres.txt
	$(BIN)/python -m tests.halves
	$(BIN)/python -m bench.guard

# Format, lint and types, as CI has them.
check: $(VENV)/test.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/test.done
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Everything that breaks servers, in its long form: hours. FAULTS="kills --store sqlite": one of them; FAULTS=--record
# keeps the figures in docs/ledger.json and docs/reliability.md.
faults: $(VENV)/test.done
	@$(BIN)/python -m tests.postgres_programs || $(PIP) install --require-hashes --requirement requirements/postgres.txt
	$(BIN)/python -m tests.faults $(FAULTS)

# Goes on where the suite's fuzzing ends; what it finds becomes a file of tests/fuzz/corpus.
SECONDS ?= 600
fuzz: $(VENV)/test.done
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

# Turnlog's own code in simulated worlds, as many as are asked for: SEEDS=100000. SEED=17: one again, with all that
# happens in it.
simulate: $(VENV)/test.done
	$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),2000))

# 20 minutes, on a machine without other work. BENCH=--quick: 4 minutes, and keeps nothing.
bench: $(VENV)/bench.done
	@$(BIN)/python -m tests.postgres_programs || $(PIP) install --require-hashes --requirement requirements/postgres.txt
	$(BIN)/python -m bench $(BENCH)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Turnlog needs Python 3.11 or newer: make PYTHON=…")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/serve.done: requirements/serve.txt pyproject.toml | $(BIN)/python
	$(PIP) install --require-hashes --requirement requirements/serve.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/test.done: requirements/test.txt $(VENV)/serve.done
	$(PIP) install --require-hashes --requirement requirements/test.txt
	@touch $@

$(VENV)/bench.done: requirements/bench.txt $(VENV)/test.done
	$(PIP) install --require-hashes --requirement requirements/bench.txt
	@touch $@

# Make the pinned requirements anew, from what pyproject.toml asks for.
pins: $(VENV)/serve.done
	$(PIP) install 'pip-tools>=7.5'
	cd requirements && $(MAKE) -f pins.mk RESOLVER=../$(BIN)/pip-compile

clean:
	rm -rf $(VENV)
