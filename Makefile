# Every target sets up what it needs. The first call makes .venv and fills it; later calls re-use it.
#
#   PYTHON=python3.12     another interpreter
#   TORCH_ARGS='--index-url https://download.pytorch.org/whl/cpu'     where PyTorch comes from

PYTHON ?= python3
TORCH_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
INSTALLED := $(VENV)/installed
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)
TYPED := build/typed
SITE = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

.DELETE_ON_ERROR:
.PHONY: help setup demo test check format lint types layers packaging clean

help:
	@echo 'make demo     train, compile and measure a small model on every engine (set-up included)'
	@echo 'make test     run the tests (set-up included)'
	@echo 'make check    format, lint, types, layers, wheel and README'
	@echo 'make setup    only the set-up: .venv with everything that development needs'
	@echo 'make format   rewrite the code in its one format'
	@echo 'make clean    remove .venv and everything else that these made'

setup: $(INSTALLED)

demo: $(INSTALLED)
	@echo 'demo: train, compile and measure a small model on every engine'
	@$(BIN)/edge demo

test: $(INSTALLED)
	@echo 'test: run the tests that need no special hardware'
	@$(BIN)/pytest

check: lint types layers packaging
	@echo 'check: all is well'

format: $(INSTALLED)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --select I --fix .

lint: $(INSTALLED)
	@echo 'check: format and lint (ruff)'
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

# mypy and import-linter read the package as a wheel lays it out: they do not follow the mapping of
# folders to sub-packages that the editable install makes.
$(TYPED): $(INSTALLED) FORCE
	@rm -rf $@
	@$(PIP) --no-deps --no-build-isolation --no-compile -C wheel.cmake=false --target $@ .

types: $(TYPED)
	@echo 'check: types (mypy --strict)'
	@cd $(TYPED) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml \
		--cache-dir $(CURDIR)/.mypy_cache -p sdk

# -S keeps the editable install out of sight.
layers: $(TYPED)
	@echo 'check: layers (import-linter)'
	@cd $(TYPED) && PYTHONPATH=.:$(SITE) $(CURDIR)/$(BIN)/python -S -c \
		'from importlinter.cli import lint_imports_command as run; run()' \
		--no-cache --no-logo $(CURDIR)/pyproject.toml

packaging: $(INSTALLED)
	@echo 'check: wheel, clean installation and README (pytest -m packaging)'
	@$(BIN)/pytest -m packaging tests/packaging

# PyTorch goes first and alone, so that TORCH_ARGS decides which build of it is installed.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/pip
	@echo 'set-up 2/4: upgrade pip'
	@$(PIP) --upgrade pip
	@echo 'set-up 3/4: install $(TORCH) (the largest download)'
	@$(PIP) $(TORCH_ARGS) '$(TORCH)'
	@echo 'set-up 4/4: install the SDK for development, with its engines'
	@$(PIP) -c constraints.txt -e '.[dev]'
	@touch $@

$(BIN)/pip:
	@echo 'set-up 1/4: make a virtual environment in $(VENV)'
	@.ci/venv $(PYTHON) $(VENV)

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

.PHONY: FORCE
FORCE:
