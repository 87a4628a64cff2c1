# make demo    sets everything up and runs the main job
# make test    sets everything up and runs the tests; make test ARGS='-m "not slow"' passes arguments to pytest
# make docs    builds the documentation site
# make lint    runs the linters; make format corrects what they can correct by themselves
# make hooks   runs the linters before each git commit from now on
# make clean   removes the environment, everything that was built, all caches, and the results of all runs
PYTHON ?= python3
EXTRAS ?= dev
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed-$(EXTRAS)

.PHONY: demo test docs lint format hooks clean

demo: $(INSTALLED)
	@trap : INT; $(BIN)/python prune.py -m experiment=demo || [ $$? -eq 130 ]  # Ctrl-C: no more lines from make

test: $(INSTALLED)
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

docs: $(INSTALLED)
	$(BIN)/python docs/pages.py copy
	$(BIN)/zensical build --clean --strict
	$(BIN)/python docs/pages.py check

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

hooks: $(INSTALLED)
	$(BIN)/pre-commit install

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) build dist results .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .cache
	find . -name __pycache__ -prune -exec rm -rf {} +
