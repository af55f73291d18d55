# A machine with make and Python 3.11 or newer needs nothing else: `make train` and `make test` build
# their own environment in .venv. `make env PYTHON=python3.12` chooses the interpreter.
.DEFAULT_GOAL := help

PYTHON ?= python3
UV_VERSION := 0.13.9
VENV := .venv
RUN := $(VENV)/bin/python
# The environment stands when its stamp is newer than the lock, so that a second `make env` does nothing.
STAMP := $(VENV)/.synced
# uv carries its own certificates; where the system has some they are taken, as pip does: a proxy's are among them.
CERTS := $(if $(wildcard /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem),--system-certs)

WORKDIR ?= runs/quickstart
SPEECH ?= runs/commands
NAME ?= noise

.PHONY: help env train speech test lint parity-env parity bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' Makefile

env: $(STAMP) ## Build .venv from uv.lock (PYTHON=python3.12 chooses the interpreter)

# Kept apart from the stamp: when only the lock changes, the environment is synchronised, not rebuilt.
$(VENV)/bin/uv:
	@command -v "$(PYTHON)" >/dev/null || { echo "make env: no $(PYTHON) on PATH; install Python 3.11 or newer, or name one: make env PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make env: $(PYTHON) is $$("$(PYTHON)" -V 2>&1); zojax needs 3.11 or newer: make env PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { echo "make env: $(PYTHON) has no venv module; install it (Debian, Ubuntu: apt-get install python3-venv) or name another: make env PYTHON=python3.12" >&2; exit 1; }
	"$(PYTHON)" -m venv --clear $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check "uv==$(UV_VERSION)"

# --python: the interpreter of .venv, whatever else the machine or UV_PYTHON offers.
$(STAMP): pyproject.toml uv.lock $(VENV)/bin/uv
	UV_PROJECT_ENVIRONMENT=$(VENV) $(VENV)/bin/uv sync --frozen $(CERTS) --python $(RUN)
	@touch $@

train: env ## Fine-tune a pretrained encoder on the embedded data set: WORKDIR=runs/quickstart
	$(RUN) -m launch.train --config=configs/quickstart.py --workdir=$(WORKDIR)

speech: env ## Train a recogniser of spoken commands, and let it hear voices that it has not met: SPEECH=runs/commands
	$(RUN) -m launch.train --config=configs/commands_rnnt.py --workdir=$(SPEECH)
	$(RUN) -m launch.transcribe test:0 test:1 test:2 --workdir=$(SPEECH) --stream

test: env ## Run every test and every docstring example
	@$(RUN) -m pytest -n auto

lint: env ## Style, format and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/pyright --pythonpath $(RUN)

# torch stays out of uv.lock. On Linux its default wheel brings gigabytes of CUDA; pip prefers a CPU build of this
# version ("2.13.0+cpu") wherever PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL offer one.
parity-env: env ## Add torch, transformers and ai-edge-litert to .venv, for `make parity`
	$(RUN) -m pip install torch==2.13.0 transformers ai-edge-litert==2.3.0

parity: env ## Compare with the PyTorch implementations and an integer runtime, side by side
	$(RUN) -m launch.parity
	$(RUN) -m launch.parity_integers

bench: env ## Run one benchmark of launch/bench: NAME=noise
	$(RUN) -m launch.bench $(NAME)

clean: ## Remove .venv, caches and built wheels; runs/ stays
	rm -rf $(VENV) dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
