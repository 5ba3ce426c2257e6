# The verbs of this project. Each sets up what it needs and is missing; see docs/admin-setup.md.
#   PYTHON=python3.12   which Python .venv is made from
#   PY=/path/python     use this environment as it is, instead of .venv
#   BUNDLE=folder       take all packages from what `make bundle` wrote, and download nothing
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# Each hub and broker that a test starts would compile the project's modules again: a fifth of a start.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help hub screenshots test test-all test-slow check test-unit test-nightly test-lecture test-gpu bench images bundle lock engine clean-demo venv

ifdef PY
venv:
else
PY := .venv/bin/python
venv:
	@setup/venv.sh
endif
ON_PATH = PATH="$(CURDIR)/.cache/proxy/node_modules/.bin:$(CURDIR)/.venv/bin:$$PATH"
PYTEST = $(ON_PATH) $(PY) -m pytest
SUITE = $(ON_PATH) $(PY) -m tests.suite
# Files run beside each other, the tests of a file one after the other: a file may share one hub. Most of
# them wait for Docker or a hub, so that one more than the cores is not too many.
WORKERS ?= 3
PARALLEL = -n $(WORKERS) --dist loadfile

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

hub: venv ## set up what is missing and start the hub; Ctrl-C stops it
	@exec $(PY) -m setup.hub

test: check ## lint, types, and every test of this machine but the slow ones, setting up what is missing
	@$(PY) -m setup.ready proxy engine programs cdi prometheus images </dev/null
	@$(SUITE) "not slow" $(PARALLEL) $(ARGS) </dev/null

test-slow: venv ## the slow rest: images built in every way, every starter in every image
	@$(PY) -m setup.ready proxy engine programs cdi images </dev/null
	@$(SUITE) slow $(PARALLEL) $(ARGS) </dev/null

test-all: test test-slow ## both, as CI runs them

check: venv ## lint and types
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -m mypy --explicit-package-bases setup images/*.py
	@MYPYPATH=bench:spawner $(PY) -m mypy --explicit-package-bases $(filter-out bench/config_%,$(wildcard bench/*.py))

screenshots: venv ## write a picture of every page to docs/images
	@$(PY) -m setup.ready proxy engine programs images </dev/null
	@SCREENSHOTS=1 $(PYTEST) tests/browser $(ARGS) </dev/null

test-unit: venv ## the tests that need no Docker, some minutes
	@$(PYTEST) tests/unit $(PARALLEL) $(ARGS)

test-nightly: venv ## the allocator's property tests at length: 10^6 steps each, hours on one core
	@nice $(PYTEST) --hypothesis-profile=nightly tests/unit/broker/test_shares.py tests/unit/broker/test_allocator_machine.py $(ARGS)

test-lecture: venv ## 500 users wait at once, by API and in browsers, ten times each: twenty minutes, on a machine with nothing else to do
	@$(PY) -m setup.ready proxy engine programs </dev/null
	@GPUSPAWNER_LECTURE=10 $(PYTEST) tests/hub/test_lecture.py -s $(ARGS) </dev/null

test-gpu: venv ## the tests that need a real NVIDIA GPU
	@GPUSPAWNER_REQUIRE_GPU=1 $(PYTEST) tests/gpu -s $(ARGS)

bench: venv ## paired benchmarks against stock DockerSpawner
	@$(PY) -m setup.ready proxy engine images
	@$(ON_PATH) $(PY) bench/allocator.py
	@$(ON_PATH) $(PY) bench/policy.py
	@$(ON_PATH) $(PY) bench/waits.py --seeds 4 5 --oracle 0
	@$(ON_PATH) $(PY) bench/overhead.py
	@$(ON_PATH) $(PY) bench/startup.py
	@$(ON_PATH) $(PY) bench/spawn.py $(ARGS)

images: venv ## build the lab images, of those only what changed; NAMES="lab-base" builds that one
	@$(PY) -m setup.ready engine
	@$(PY) -m images.build $(NAMES)

bundle: venv ## write the folder TO (default: bundle): `make images BUNDLE=` that needs no network
	@$(PY) -m setup.ready engine
	@$(PY) -m images.pack $(NAMES)

engine: venv ## see that a Docker Engine runs: install and start one where it is missing
	@$(PY) -m setup.ready engine

lock: venv ## write the exact versions of the images' Python packages anew
	@$(PY) -m images.lock

clean-demo: venv ## end the notebooks that a stopped hub left; HOMES=1 deletes their homes too
	@$(PY) -m setup.clean
