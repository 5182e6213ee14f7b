# The two commands a fresh machine needs: `make demo` and `make test`. Both install into .venv first.

# The first Python from 3.11 to 3.13 that really starts (a version manager's shim may be there and not work).
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
comma := ,
EXTRAS := dev$(if $(CUDA),$(comma)cuda)

.PHONY: demo test campaign lint install clean
.DEFAULT_GOAL := demo

demo: install
	$(BIN)/python -m data_tools.python_docs --megabytes 1.5 --out data/python_docs --chat-out data/python_chat
	$(BIN)/python train.py --config configs/quickstart.py
	$(BIN)/python train.py --config configs/quickstart_finetune.py
	$(BIN)/python -m minigpt_jax.demo

test: install
	$(BIN)/python -m pytest

# Hundreds of kills and damaged checkpoints, the tests of the other faults, and what else is too long for every day.
campaign: install
	$(BIN)/python -m tests.faults.campaign --kills 50 --corruptions 200 --seed 0
	$(BIN)/python -m pytest -m campaign --ignore tests/faults

lint: install
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m pyright --pythonpath $(BIN)/python

STAMP := .venv/installed$(if $(CUDA),-cuda)

install: $(STAMP)

# A stamp of its own for CUDA=1, so that an environment made for the CPU becomes one for the GPU when asked.
$(STAMP): requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python from 3.11 to 3.13 found: install one, or name it: make PYTHON=/path/to/python"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$(EXTRAS)]"
	touch $@

clean:
	rm -rf .venv data/python_docs data/python_chat runs/quickstart runs/quickstart_finetune
