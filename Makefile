# Everything a developer or CI runs. Needs make and Python 3.10 to 3.13 with venv and pip; fetches
# the rest, into this folder only (`make test` as root also installs PostgreSQL; see `postgres`).

PYTHON ?= python3
# Processes of the test suite; two cores are what CI has.
WORKERS ?= 2
# Passed on to pytest, as in: make suite ARGS="-k replace -x"
ARGS ?=

UV_VERSION := 0.13.8
UV ?= .tools/uv-$(UV_VERSION)/bin/uv
export UV_PYTHON_DOWNLOADS := never
# Trust what the system trusts, where it has a list: a company's proxy may sign what PyPI sends.
ifneq ($(wildcard /etc/ssl/certs/ca-certificates.crt),)
export UV_SYSTEM_CERTS ?= true
endif
# Who has no home that can be written, as in a container's --user, gets a cache in this folder.
ifneq ($(shell test -w "$$HOME" && echo yes),yes)
export UV_CACHE_DIR ?= $(CURDIR)/.tools/cache
endif

DEV := .venv/.synced
DEMO := .venv-demo/.synced
BIN := .venv/bin

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: $(DEMO) ## A year of real flights through Dagster into PostgreSQL; needs no server
	@.venv-demo/bin/python examples/flights/run.py

.PHONY: ui
ui: $(DEMO) ## Dagster's UI on the demo's assets, with a server of its own
	@.venv-demo/bin/python examples/flights/ui.py

# The suite comes last, so that its summary is what stands at the end of the log.
.PHONY: test
test: lint types imports wheel lowest suite ## What CI runs

.PHONY: test-all
test-all: lint types imports wheel lowest suite-all ## The same with the long sweeps

.PHONY: suite
suite: $(DEV) postgres ## The test suite alone; ARGS go to pytest
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

.PHONY: suite-all
suite-all: $(DEV) postgres
	$(BIN)/python -m pytest -n $(WORKERS) -m "" $(ARGS)

.PHONY: docs
docs: $(DEV) postgres ## Run every code block of README, docs, CHANGELOG and CONTRIBUTING
	$(BIN)/python -m pytest tests/test_docs*.py $(ARGS)

.PHONY: lint
lint: $(DEV) ## Style and lint rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: format
format: $(DEV) ## Format, and fix what can be fixed safely
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

.PHONY: types
types: $(DEV) ## mypy, strict
	$(BIN)/mypy

.PHONY: imports
imports: $(DEV) ## Who may import whom (the contracts in pyproject.toml)
	$(BIN)/lint-imports

.PHONY: wheel
wheel: $(DEV) postgres ## Build the wheel and test it without the source tree
	UV="$(UV)" PYTHON="$(BIN)/python" WORKERS="$(WORKERS)" scripts/test-wheel

.PHONY: lowest
lowest: $(DEV) postgres ## Test the oldest supported Python and dependencies
	UV="$(UV)" PYTHON="$(BIN)/python" WORKERS="$(WORKERS)" scripts/test-lowest

.PHONY: bench
bench: $(DEV) postgres ## Speed against psql, ADBC, pandas and pg-bulk-ingest
	$(BIN)/python benchmarks/write_read.py

.PHONY: postgres
postgres: ## PostgreSQL and PostGIS for the tests: installed as root, else unpacked in the user's cache
	scripts/install-postgres

.PHONY: clean
clean: ## Remove all that was made here: environments, tools, caches, builds
	rm -rf .venv .venv-demo .tools dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(DEV): pyproject.toml uv.lock | $(UV)
	UV_PROJECT_ENVIRONMENT=.venv $(UV) sync --locked --python "$(PYTHON)" --all-extras --all-groups
	@touch $@

# Only what the demo needs, which also shows that these extras suffice.
$(DEMO): pyproject.toml uv.lock | $(UV)
	@echo "Installing what the demo needs, into .venv-demo ..."
	@UV_PROJECT_ENVIRONMENT=.venv-demo $(UV) sync --quiet --locked --python "$(PYTHON)" \
		--no-default-groups --group demo --extra pandas --extra embedded
	@touch $@

.tools/uv-$(UV_VERSION)/bin/uv:
	"$(PYTHON)" -m venv .tools/uv-$(UV_VERSION)
	.tools/uv-$(UV_VERSION)/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
