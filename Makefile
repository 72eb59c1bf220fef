# Two commands: `make train` trains and ends with a verdict, `make test` runs the tests. Both make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TYPED := config.py train.py inference.py evaluate.py dataloader trainer search eda benchmarks

.DEFAULT_GOAL := help
.PHONY: help train data test test-full fuzz tensorboard search lint format lock audit clean

help:
	@echo "make train        install, train (KorQuAD at ./data/KorQuAD, else the embedded sample), verdict"
	@echo "make data         KorQuAD 2.1's training archives to ./data/KorQuAD, verified; an interrupted run goes on"
	@echo "make test         install, run the tests          make test-full   the long ones too"
	@echo "make fuzz         longer property tests           make audit       known weaknesses of the dependencies"
	@echo "make tensorboard  show the training               make search      three example searches"
	@echo "make lint         formatter, linter, types        make clean       remove .venv, logs, models, caches"
	@echo "Options: make train ARGS='--num_epochs 1'   make data ARGS='--version 1.0'"

# requirements.lock is a list of constraints: what torch brings along is that of the build that this machine gets.
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock

$(VENV)/.installed: requirements.txt requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements-search.txt $(VENV)/.installed
	$(INSTALL) -r requirements-dev.txt
	@touch $@

train: $(VENV)/.installed
	@$(BIN)/python train.py $(ARGS)

data: $(VENV)/.installed
	@$(BIN)/python -m dataloader.download $(ARGS)

search: $(VENV)/.installed
	@$(BIN)/python inference.py $(ARGS)

tensorboard: $(VENV)/.installed
	@./run_tensorboard.sh

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not long" $(ARGS)

test-full: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(ARGS)

# Minutes; FUZZ=10000 for more examples of each property.
fuzz: FUZZ ?= 2000
fuzz: $(VENV)/.installed-dev
	FUZZ=$(FUZZ) $(BIN)/python -m pytest -m fuzz $(ARGS)

# Exact versions of everything, for every platform; versions that are locked and still fit stay.
lock: $(VENV)/.installed-dev
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate requirements-dev.txt -o requirements.lock

audit: $(VENV)/.installed-dev
	@$(BIN)/python tests/audit.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(TYPED)

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) logs models reports .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
