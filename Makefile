# Two commands set up a fresh machine: `make demo` and `make test`. Both install into .venv first.

# The first Python from 3.11 to 3.14 that starts (a version manager may list one that does not);
# 3.14, on which the tests have not run, comes after the others.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3.14 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null \
	&& echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
comma := ,
# Only a path is added to Python's. setuptools' own way imports a finder whenever Python starts,
# which takes a tenth of a second, and in which no command can handle Ctrl-C yet.
EDITABLE := --config-settings editable_mode=compat --editable

.PHONY: demo install test campaign matrix lint docs clean
.DEFAULT_GOAL := demo

demo: install
	$(BIN)/python -m data_tools.python_docs --megabytes 1.5 --out data/python_docs \
		--chat-out data/python_chat
	$(BIN)/python train.py --config configs/quickstart_modern.py
	$(BIN)/python train.py --config configs/quickstart_modern_finetune.py
	$(BIN)/minigpt score answers --run runs/quickstart_modern_finetune \
		--source data/python_chat/questions.json
	@printf '\nThe model has 14 million parameters and was trained for minutes on a CPU.\n'
	@printf 'It writes sentences that sound like documentation; most of them are wrong.\n\n'
	@printf 'Chat in the terminal: $(BIN)/minigpt sample\n'
	@printf 'Chat in a browser:    $(BIN)/minigpt serve\n'
	@printf 'Reports of the runs:  runs/quickstart_modern/report.html\n'
	@printf '                      runs/quickstart_modern_finetune/report.html\n'

# The accelerator that JAX is installed for: CUDA=12 (or 1), CUDA=13, ROCM=1 or TPU=1.
# Only as arguments of make: on clusters, the variable CUDA may be a folder.
$(foreach name,CUDA ROCM TPU,$(if $(filter environment,$(origin $(name))),$(eval $(name) :=)))
ACCELERATORS := cuda12 cuda13 rocm tpu
ACCELERATOR := $(if $(CUDA),cuda$(CUDA:1=12))$(if $(ROCM),rocm$(ROCM:1=))$(if $(TPU),tpu$(TPU:1=))
ifneq ($(filter-out $(ACCELERATORS),$(ACCELERATOR)),)
$(error CUDA=$(CUDA) ROCM=$(ROCM) TPU=$(TPU): give one of CUDA=12, CUDA=13, ROCM=1, TPU=1)
endif
# JAX loads every plugin that it finds, so those of the other accelerators are removed.
PLUGINS := jax-cuda12-plugin jax-cuda12-pjrt jax-cuda13-plugin jax-cuda13-pjrt \
	jax-rocm7-plugin jax-rocm7-pjrt libtpu
OTHER_PLUGINS := $(filter-out jax-$(ACCELERATOR)% lib$(ACCELERATOR),$(PLUGINS))

# What a user needs: training, the server, the fast tokenizer. Each accelerator has a stamp of its
# own, so that an environment for one becomes one for another. Without any, none is removed.
INSTALLED := .venv/installed$(ACCELERATOR:%=-%)
install: $(INSTALLED)
$(INSTALLED): requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { \
		echo "no Python from 3.11 to 3.14 found: install one, or make PYTHON=/path/to/python"; \
		exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
ifneq ($(ACCELERATOR),)
	$(BIN)/python -m pip uninstall -qq --yes $(OTHER_PLUGINS)
	rm -f $(filter-out $@,$(ACCELERATORS:%=.venv/installed-%))
endif
	$(PIP) $(EDITABLE) ".[fast$(ACCELERATOR:%=$(comma)%)]"
	touch $@

# What the tests, the linter and the type checker need on top, in the same environment.
INSTALLED_DEV := .venv/installed-dev
$(INSTALLED_DEV): $(INSTALLED)
	$(PIP) $(EDITABLE) ".[dev]"
	touch $@

test: $(INSTALLED_DEV)
	$(BIN)/python -m pytest

# Hundreds of kills and damaged checkpoints, and the tests that are too long for every day.
campaign: $(INSTALLED_DEV)
	$(BIN)/python -m tests.faults.campaign --kills 50 --corruptions 200 --seed 0
	$(BIN)/python -m pytest -m campaign --ignore tests/faults
	$(BIN)/python -m pytest --hypothesis-profile default $$(grep -rlE '^ *@given' tests)

# The suite, or TESTS="tests/test_chat.py ...", on the oldest and newest Python and JAX.
matrix:
	tests/matrix.sh $(TESTS)

lint: $(INSTALLED_DEV)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m pyright --pythonpath $(BIN)/python

# The documents as a site with a search and an API reference.
INSTALLED_DOCS := .venv/installed-docs
$(INSTALLED_DOCS): $(INSTALLED)
	$(PIP) $(EDITABLE) ".[docs]"
	touch $@

# The variable silences a notice of the theme about its successor; the notice names it.
docs: $(INSTALLED_DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@printf 'The site is in build/site. To read it (its search needs a server):\n'
	@printf '$(BIN)/python -m http.server --directory build/site 8001\n'

clean:
	rm -rf .venv .venv-matrix data/python_docs data/python_chat runs/quickstart_modern \
		runs/quickstart_modern_finetune
