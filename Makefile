# make run    three nights (ALL=1: of all models)     make up     keep it running (REPLAY=60s: a night a minute)
# make test-fast  the tests without services          make test   ruff, mypy, all tests
# make bench  the table of ratios                     make lock   relock all requirements
# make clean  remove all state                        make doctor what this machine lacks
# make images the training image (GPU=1: with CUDA)   make airflow-image  Airflow with all stages, for a cluster
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Everything is installed by its hash, the installer first.
INSTALL_UV := $(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r docker/uv-requirements.txt
NIGHTS ?= 3
FROM ?=
ONLY ?=
ALL ?=
REPLAY ?=
GPU ?=
BASE_IMAGE ?= python:3.11-slim
# What `test` waits for, and how many tests it runs at a time.
LINT ?= lint
WORKERS ?= 2
unexport PYTHONDONTWRITEBYTECODE
# Threads that spin while they wait starve each other where cores are few: XGBoost beside other work is several times slower.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help setup run up test test-fast lint bench lock clean doctor images airflow-image
help:
	@sed -n '1,5p' Makefile | cut -c3-

# The stamp holds the digest of the lock: a changed requirements.txt installs anew.
setup: $(VENV)/.installed
$(VENV)/.installed: requirements.txt docker/uv-requirements.txt Makefile
	@command -v $(PYTHON) >/dev/null || { echo "Nightfleet needs Python 3.11 as '$(PYTHON)'. Install it, or say PYTHON=/path/to/python3.11."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "Nightfleet needs Python 3.11, but '$(PYTHON)' is $$($(PYTHON) --version). Say PYTHON=/path/to/python3.11."; exit 1; }
	@echo "== creating $(VENV) and installing $$(grep -c '==' requirements.txt) locked packages (about 2 GB on first use)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(INSTALL_UV)
	@$(BIN)/uv pip install --python $(BIN)/python --require-hashes --compile-bytecode -r requirements.txt 2> >(grep -v "^ + " >&2)
	@touch $@

run: setup
	@$(BIN)/python -m cli run --nights $(NIGHTS) $(if $(FROM),--from $(FROM)) $(ONLY:%=--only %) $(if $(ALL),--all)

up: setup
	@$(BIN)/python -m cli up $(if $(REPLAY),--replay $(REPLAY))

images: setup
	@docker/build.sh training $(BASE_IMAGE) $$($(BIN)/python -m config.settings) $(if $(GPU),gpu)

airflow-image: setup
	@docker/build.sh airflow $(BASE_IMAGE) $$($(BIN)/python -m config.settings)

doctor: setup
	@$(BIN)/python -m cli doctor

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy .

test: setup $(LINT)
	@$(BIN)/python -m pytest --numprocesses $(WORKERS) $(PYTEST_ARGS)

test-fast: setup
	@$(BIN)/python -m pytest --fast --numprocesses $(WORKERS) $(PYTEST_ARGS)

bench: setup
	@$(BIN)/python -m tests.benchmarks $(BENCH_ARGS)

lock:
	@test -x $(BIN)/uv || { $(PYTHON) -m venv $(VENV) && $(INSTALL_UV); }
	@$(BIN)/uv pip compile --quiet --generate-hashes --python-version 3.11 --custom-compile-command "make lock" requirements.in -o requirements.txt
	@for image in uv training training-gpu; do \
		$(BIN)/uv pip compile --quiet --generate-hashes --python-version 3.11 --custom-compile-command "make lock" -c requirements.txt \
			docker/$$image-requirements.in -o docker/$$image-requirements.txt || exit 1; done

clean:
	@home="$${NIGHTFLEET_HOME:-var}"; if [ -e "$$home" ] && [ ! -d "$$home/secrets" ] && [ ! -d "$$home/lake" ]; then \
		echo "$$home does not look like Nightfleet's state (no secrets/, no lake/): nothing was removed."; exit 1; fi; rm -rf "$$home"
