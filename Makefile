# Everything a developer or CI runs. Needs make and Python 3.10 to 3.13 with venv and pip; fetches
# the rest, into this folder only (`make test` as root also installs PostgreSQL; see `postgres`).

PYTHON ?= python3
# Processes of the test suite. CI has two cores, and a test waits for its server now and then.
WORKERS ?= 3
# Passed on to pytest, as in: make suite ARGS="-k replace -x"
ARGS ?=

# What CI runs through PgBouncer and over TLS; all the rest is for test-pgbouncer and test-tls.
SHARE := tests/test_fix_servers.py tests/postgres/test_read.py tests/sharepoint/test_feed.py

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
GRAPH := .venv-graph/.synced
BIN := .venv/bin

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-15s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: $(DEMO) ## A year of real flights through Dagster into PostgreSQL; needs no server
	@.venv-demo/bin/python examples/flights/run.py

.PHONY: demo-sharepoint
demo-sharepoint: $(DEV) ## Files come, change and go in SharePoint (an emulator), and a table follows
	@$(BIN)/python examples/sharepoint/run.py

.PHONY: ui-sharepoint
ui-sharepoint: $(DEV) ## The same in Dagster's UI, where somebody is always at it
	@$(BIN)/python examples/sharepoint/ui.py

.PHONY: ui
ui: $(DEMO) ## Dagster's UI on the demo's assets, with a server of its own
	@.venv-demo/bin/python examples/flights/ui.py

# The suite comes last, so that its summary is what stands at the end of the log.
.PHONY: test
test: lint types imports wheel lowest through suite ## What CI runs

.PHONY: test-all
test-all: lint types imports wheel lowest suite-all ## The same with the long sweeps

.PHONY: suite
suite: $(DEV) postgres ## The test suite alone; ARGS go to pytest
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

.PHONY: suite-all
suite-all: $(DEV) postgres
	$(BIN)/python -m pytest -n $(WORKERS) -m "" $(ARGS)

.PHONY: through
through: $(DEV) postgres
	$(BIN)/python -m pytest -n $(WORKERS) --through=pgbouncer $(SHARE)
	$(BIN)/python -m pytest -n $(WORKERS) --through=tls $(SHARE)

.PHONY: test-pgbouncer
test-pgbouncer: $(DEV) postgres ## The suite through PgBouncer: transaction mode, two connections
	$(BIN)/python -m pytest -n $(WORKERS) --through=pgbouncer $(ARGS)

.PHONY: test-tls
test-tls: $(DEV) postgres ## The suite over TLS that verifies the server (verify-full)
	$(BIN)/python -m pytest -n $(WORKERS) --through=tls $(ARGS)

# Apart from $(DEV): Microsoft's SDK has 240 MB. It leaves connections open when it is closed.
.PHONY: test-graph
test-graph: $(GRAPH) ## Check the tests' emulator of Microsoft Graph with rclone and Microsoft's SDK
	@command -v rclone > /dev/null || { echo "It takes rclone: apt-get install rclone"; exit 1; }
	.venv-graph/bin/python -m pytest tests/graph/foreign_clients.py $(ARGS) \
		-W ignore::ResourceWarning -W ignore::pytest.PytestUnraisableExceptionWarning

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
	rm -rf .venv .venv-demo .venv-graph .tools dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(DEV): pyproject.toml uv.lock | $(UV)
	UV_PROJECT_ENVIRONMENT=.venv $(UV) sync --locked --python "$(PYTHON)" --all-extras
	@touch $@

# Only what the demo needs, which also shows that these extras suffice.
$(DEMO): pyproject.toml uv.lock | $(UV)
	@echo "Installing what the demo needs, into .venv-demo ..."
	@UV_PROJECT_ENVIRONMENT=.venv-demo $(UV) sync --quiet --locked --python "$(PYTHON)" \
		--no-default-groups --group demo --extra geopandas --extra embedded
	@touch $@

$(GRAPH): pyproject.toml uv.lock | $(UV)
	@echo "Installing Microsoft's SDK, into .venv-graph ..."
	@UV_PROJECT_ENVIRONMENT=.venv-graph $(UV) sync --quiet --locked --python "$(PYTHON)" \
		--no-default-groups --group test --group graph --all-extras
	@touch $@

.tools/uv-$(UV_VERSION)/bin/uv:
	"$(PYTHON)" -m venv .tools/uv-$(UV_VERSION)
	.tools/uv-$(UV_VERSION)/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
