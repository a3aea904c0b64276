# Everything here makes its own environment in .venv; all it needs is a Python of 3.11 or later.
#   make PYTHON=/some/python3     takes that one instead of looking for one
#   make demo ARGS="--seconds 5"  passes arguments on

SHELL  := /bin/sh
BIN    := .venv/bin
ARGS   ?=
PYTHON ?=

CANDIDATES := python3.13 python3.12 python3.11 python3.14 python3
# Run it: a pyenv shim may be there and fail, a Debian python3 may lack ensurepip.
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

.PHONY: help demo serve test matrix containers check format docs picture bench chaos simulate clean
.DEFAULT_GOAL := help

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/.installed-demo ## the primitives at work, live, on a server of its own
	@$(BIN)/dsync demo $(ARGS)

serve: .venv/.installed-demo ## a Valkey to play with, until Ctrl-C
	@$(BIN)/dsync serve $(ARGS)

# Most tests wait, for leases and heartbeats: three processes share the files.  -n 0 takes one.
test: .venv/.installed-dev ## the tests; ARGS="-k lock -x" picks some
	$(BIN)/python -m pytest -n 3 --dist loadfile $(ARGS)

matrix: .venv/.installed-dev ## a selection on each server, Python and redis-py here; ARGS="--list"
	$(BIN)/python -m tests.matrix $(ARGS)

containers: .venv/.installed-dev ## the container and compose tests, on a Docker engine of their own
	$(BIN)/python -m tests.containers.engine $(BIN)/python -m pytest tests/containers $(ARGS)

check: .venv/.installed-dev ## ruff, mypy --strict and pyright
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict
	$(BIN)/pyright
	$(BIN)/python -m tests.public_api --types

format: .venv/.installed-dev ## let ruff mend what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: .venv/.installed-docs ## the documentation site, into build/docs; warnings are errors
	$(BIN)/python -m sphinx -q -E -W --keep-going -d build/doctrees docs build/docs $(ARGS)

picture: .venv/.installed-demo ## draw the pictures of the README anew, from real runs
	$(BIN)/python -m docs.picture $(ARGS)

bench: .venv/.installed-dev ## measure against floors, redis-py and peers; ARGS="--quick" takes a minute
	$(BIN)/python -m benchmarks $(ARGS)

chaos: .venv/.installed-dev ## real processes under real faults; ARGS="--faults cut" picks some
	$(BIN)/python -m chaos $(ARGS)

simulate: .venv/.installed-dev ## what a fleet costs a server; ARGS="--calibrate mine.json" measures yours
	$(BIN)/python -m simulation $(ARGS)

clean: ## remove .venv and everything built
	rm -rf .venv .matrix build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Three stamps, one environment: `make demo` on a fresh machine need not wait for type checkers.
.venv/.installed-demo: EXTRAS := server,cli
.venv/.installed-dev: EXTRAS := dev
.venv/.installed-docs: EXTRAS := docs
.venv/.installed-demo .venv/.installed-dev .venv/.installed-docs: pyproject.toml | .venv/bin/python
	@echo "installing dsync[$(EXTRAS)] into .venv ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]'
	@touch $@ $(if $(filter dev,$(EXTRAS)),.venv/.installed-demo)

.venv/bin/python:
	@for python in $(or $(PYTHON),$(CANDIDATES)); do \
		if "$$python" -c '$(USABLE)' 2>/dev/null; then \
			echo "making .venv with $$("$$python" --version)"; \
			exec "$$python" -m venv .venv; \
		fi; \
	done; \
	echo "No usable Python: tried $(or $(PYTHON),$(CANDIDATES))." >&2; \
	echo "dsync needs Python 3.11 or later with venv and ensurepip (Debian: apt install python3-venv)." >&2; \
	echo "If yours is elsewhere: make PYTHON=/path/to/python3" >&2; \
	exit 1
