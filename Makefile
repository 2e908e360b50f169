# The one door: everything below sets up what it needs, on a bare Debian or Ubuntu with python3 >= 3.11.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
PLUGINS := registry_local registry_s3 sandbox_sock sandbox_docker cache_import
# Tests of the kernel need root; a laptop skips them, CI must not (OLCORE_REQUIRE_KERNEL=1).
PYTEST := $(abspath $(BIN)/pytest)

.PHONY: help venv demo test test-core test-alone lint bench wheels clean

help:
	@echo "make demo | test | lint | bench | wheels | clean"

venv: $(VENV)/.made

$(VENV)/.made: pyproject.toml $(wildcard plugins/*/pyproject.toml)
	PYTHON="$(PYTHON)" tools/make-venv $(VENV) $(PLUGINS)
	@touch $@

demo: venv
	$(BIN)/python -m bench.demo

test: test-core test-alone

# The core's own tests, and those that put everything together.
test-core: venv
	tools/install-test-tools
	$(PYTEST) tests

# Each distribution's tests, where only that distribution and olcore are installed.
test-alone: $(PLUGINS:%=test-alone-%)

test-alone-%: venv
	tools/install-test-tools
	tools/make-venv .venvs/$* $*
	.venvs/$*/bin/pytest plugins/$*

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture
	$(BIN)/deptry .
	set -e; for plugin in $(PLUGINS); do (cd plugins/$$plugin && $(abspath $(BIN))/deptry .); done

bench: venv
	$(BIN)/python -m bench warm cold layers

# Wheels of all distributions, for `pip install --find-links dist olcore ol-sandbox-sock`.
wheels: venv
	rm -rf dist
	$(UV) build --quiet --wheel --out-dir dist .
	set -e; for plugin in $(PLUGINS); do $(UV) build --quiet --wheel --out-dir dist plugins/$$plugin; done

clean:
	rm -rf $(VENV) .venvs dist
