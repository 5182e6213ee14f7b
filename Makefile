# The two commands a fresh machine needs: `make demo` and `make test`. Both install into .venv first.

# The first Python from 3.11 to 3.13 that really starts (a version manager's shim may be there and not work).
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
EXTRAS := dev$(if $(CUDA),$(comma)cuda)
comma := ,

.PHONY: demo test lint install clean
.DEFAULT_GOAL := demo

demo: install
	$(BIN)/python -m data_tools.python_docs --out data/python_docs --chat-out data/python_chat
	$(BIN)/python train.py --config configs/quickstart.py
	$(BIN)/python train.py --config configs/quickstart_finetune.py
	$(BIN)/python -m minigpt_jax.demo

test: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

install: .venv/installed$(if $(CUDA),-cuda)

# One stamp for each set of extras, so that a CPU environment becomes a GPU one when asked.
.venv/installed%cuda .venv/installed: requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python from 3.11 to 3.13 found: install one, or say make PYTHON=/path/to/python"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$(EXTRAS)]"
	touch $@

clean:
	rm -rf .venv data/python_docs data/python_chat runs/quickstart runs/quickstart_finetune
