# Every target works as the only command typed: what it needs, it installs into .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo test test-slow lint format clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*##/\t/'

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch .venv/ready

setup: .venv/ready  ## create .venv and install everything

demo: setup  ## prepare, pretrain, evaluate, sample and report on the embedded corpus: minutes on two cores
	$(BIN)/python -m pretrain experiment=demo
	$(BIN)/python -m pretrain.sample runs/demo --prompt "class Queue"
	$(BIN)/python -m pretrain.report runs/demo

test: setup lint  ## the fast tests, two at a time
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not gpu"

test-slow: setup  ## the tests that take minutes: kills and resumes, the demo from end to end
	$(BIN)/python -m pytest -m "slow and not gpu"

lint: setup  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup  ## let ruff rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment, runs and corpora
	rm -rf .venv runs corpora
