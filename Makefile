# The two commands. On a fresh Debian or Ubuntu machine: root, package registries reachable, make.
.PHONY: demo demo-down test test-all venv docs bench
# Three files at a time: on two cores a scenario waits much of its time for its hosts. (The unit tests
# import pyinfra, and so gevent, which xdist's workers can't do with.)
SCENARIOS := -n 3 --dist loadfile tests/lab
VENV := .venv
PYTHON := $(VENV)/bin/python

demo: venv  ## A lab host with the whole stack, verified
	@$(PYTHON) -m lab.demo

demo-down: venv  ## What `make demo` made, taken down
	@$(PYTHON) -m lab down inventories/lab.py
	@$(PYTHON) -m lab down tests/host/outside.py

test: venv  ## Unit tests, and each scenario on one suite
	@$(PYTHON) -m pytest -q tests/unit tests/host
	@$(PYTHON) -m pytest -q $(SCENARIOS)

test-all: test  ## test, and each scenario on the second suite, and with pyinfra's plain connector
	@GROUNDWORK_LAB_SUITE=trixie $(PYTHON) -m pytest -q $(SCENARIOS)
	@GROUNDWORK_LAB_CONNECTOR=ssh $(PYTHON) -m pytest -q $(SCENARIOS)

docs: venv  ## docs/settings.md, from the settings themselves
	@$(PYTHON) -m groundwork.reference > docs/settings.md

bench: venv bench/.venv/.ready  ## How fast, beside the alternatives: docs/speed.md (an hour; BENCH="--quick": minutes)
	@$(PYTHON) -m bench $(BENCH)

bench/.venv/.ready: bench/venvs.sh bench/requirements.txt requirements.txt | venv
	@./bench/venvs.sh
	@touch $@

venv: $(VENV)/.ready

$(VENV)/.ready: requirements.txt pyproject.toml bootstrap.sh
	@./bootstrap.sh $(VENV)
	@touch $@
