# Everything runs in $(VENV), created on first use; a change of pyproject.toml installs again.
PYTHON ?= python3
VENV ?= .venv
# Files stay together: their tests share models and plans.
PYTEST_ARGS ?= -n 2 --dist loadfile
DEMO_ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TOOLS := $(VENV)/.tools
DOCS := $(VENV)/.docs
BROWSER := $(VENV)/browser
# For Linux on x86-64, from npm's registry; elsewhere `playwright install chromium` does it.
CHROMIUM := @sparticuz/chromium@147.0.0
# Read from pyproject.toml, so that each bound stands in one place.
requirement = $(shell sed -n 's/^  "\($(1)[<>=][^"]*\)".*/\1/p' pyproject.toml | head -n 1)

.PHONY: install demo test browser lint format copy typecheck docs clean

install: $(INSTALLED) $(TOOLS) $(DOCS)

demo: $(INSTALLED)
	$(BIN)/autopar demo $(DEMO_ARGS)

# One thread per process: the suite starts many processes, and oversubscribed cores make gloo time out.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

# What the tests of pages open them with (tests/report/browser.py finds it there); without it they are skipped.
browser: $(BROWSER)/chromium

$(BROWSER)/chromium: | $(BIN)/pip
	npm install --no-audit --no-fund --prefix $(BROWSER) $(CHROMIUM)
	node tests/report/unpack.mjs $(BROWSER)

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(TOOLS)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Tools that read sources do not see packages that package-dir maps to other folders, so they get an installed copy.
copy: $(INSTALLED)
	rm -rf .copy build
	$(BIN)/pip install --quiet --no-deps --target .copy .

typecheck: copy $(TOOLS)
	cd .copy && $(abspath $(BIN))/mypy --config-file ../pyproject.toml -p autopar

# Into site/. The variable silences what the theme says about its own future.
docs: copy $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

# torch alone first: a transitive requirement must not pick its version, or a CUDA build on a machine without a GPU.
$(INSTALLED): pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install "$(call requirement,torch)"
	$(BIN)/python -m pip install -e ".[test,examples]"
	touch $@

$(TOOLS): pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install "$(call requirement,ruff)" "$(call requirement,mypy)"
	touch $@

$(DOCS): pyproject.toml $(INSTALLED)
	$(BIN)/python -m pip install -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) .copy site build dist runs *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
