# make run    everything set up, a real call through a real Asterisk, then it stays up for yours
# make demo   the same call once; exits 0 only if it carried audio both ways
# make test   lint, types and all tests;  make test RUNG=unit|loop|store|asterisk|multihost  one rung
# make bench  measure (slow);  make lint;  make clean
# make fuzz   feed every parser a million inputs (minutes);  FUZZ_RUNS=N make fuzz  another number of them
# make soak   an hour of 300 calls on one media worker;  make soak CALLS=100 MINUTES=10  less

PY := .venv/bin/python
RUNG ?=
CALLS ?= 300
MINUTES ?= 60

# Network namespaces and tunnels are root's. What is written is not to become root's, though.
AS_ROOT := $(if $(filter-out 0,$(shell id -u)),$(if $(shell command -v sudo),sudo env HOME="$$HOME" PYTHONDONTWRITEBYTECODE=1))

.PHONY: run demo test lint bench fuzz soak clean setup setup-test setup-fuzz

run: setup
	@$(PY) -m tools.run

demo: setup
	@$(PY) -m tools.run --once

setup:
	@tools/setup.sh run

setup-test:
	@tools/setup.sh test

setup-fuzz:
	@tools/setup.sh fuzz

test: setup-test
	@$(if $(RUNG),,$(MAKE) --no-print-directory lint)
	@$(if $(filter-out unit,$(RUNG)),,$(PY) -m pytest -n 2 -m unit)
	@$(if $(filter-out loop,$(RUNG)),,$(PY) -m pytest -n 2 --dist loadfile -m "loop and virtual_time" tests/loop)
	@$(if $(filter-out loop,$(RUNG)),,$(PY) -m pytest -m "loop and not virtual_time" tests/loop)
	@$(if $(filter-out store asterisk,$(RUNG)),,$(PY) -m pytest -n 3 --dist loadfile --no-loadscope-reorder \
		-m "($(or $(RUNG),store or asterisk)) and not alone" tests/store tests/asterisk)
	@$(if $(filter-out asterisk,$(RUNG)),,$(PY) -m pytest -m alone tests/asterisk)
	@$(if $(filter-out multihost,$(RUNG)),,$(AS_ROOT) $(PY) -m pytest -p no:cacheprovider -m multihost)

lint: setup-test
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@.venv/bin/lint-imports
	@.venv/bin/codespell
	@echo "lint: good"

bench: setup-test
	@$(PY) -m tools.bench

fuzz: setup-fuzz
	@$(PY) -m tools.fuzz

soak: setup
	@mkdir -p .run/soak
	@.venv/bin/trunkbridge loadtest steady --start --calls $(CALLS) --minutes $(MINUTES) \
		--json .run/soak/soak.json --picture .run/soak/soak.png

clean:
	rm -rf .run .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
