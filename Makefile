# The README's two commands, and those of developers. Everything is installed into .venv; nothing else is touched.
SHELL := /bin/bash
PYTHON ?= $(shell for name in python3.13 python3.12 python3.11 python3; do \
	command -v $$name >/dev/null 2>&1 && $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& echo $$name && break; done)
VENV ?= .venv
BIN = $(VENV)/bin
ARGS ?=
TESTS ?= tests
FUZZ_SECONDS ?= 60

.PHONY: run test lint types fuzz bench bench-short cluster chaos docs clean

run: $(VENV)/.installed-run
	@exec $(BIN)/twistd --nodaemon --pidfile= --logger=sorna.observability.text_log_observer sorna $(ARGS)

test: $(VENV)/.installed-test
	$(BIN)/python -Wall -W error::RuntimeWarning -m twisted.trial $(TESTS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test
	$(BIN)/mypy

fuzz: $(VENV)/.installed-test
	$(BIN)/python -m tests.legacy.fuzz_codec --seconds $(FUZZ_SECONDS)

bench: $(VENV)/.installed-test
	@$(BIN)/python -m bench $(ARGS)

bench-short: $(VENV)/.installed-test
	@$(BIN)/python -m bench.short $(ARGS)

cluster: $(VENV)/.installed-test
	@exec $(BIN)/python -m sorna.testing.cluster $(ARGS)

chaos: $(VENV)/.installed-test
	@exec $(BIN)/python -m sorna.testing.cluster.chaos $(ARGS)

docs: $(VENV)/.installed-docs
	$(BIN)/sphinx-build -W -b html docs docs/_build/html

clean:
	rm -rf $(VENV) _trial_temp* .mypy_cache .ruff_cache build dist *.egg-info

$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "Sorna needs Python 3.11 or newer; set PYTHON=/path/to/it" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot make virtual environments; on Debian install python3-venv" >&2; \
		rm -rf $(VENV); exit 1; }
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=25'
	@touch $@

$(VENV)/.installed-run: $(VENV)/.created setup.py
	$(BIN)/python -m pip install --quiet --editable '.[embedded,science]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.created setup.py
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.created setup.py
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@
