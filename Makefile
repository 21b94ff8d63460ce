# Every target works as the only command typed: what it needs, it installs into .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo demo-pretrain demo-finetune test test-slow lint format clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*##/\t/'

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch .venv/ready

setup: .venv/ready  ## create .venv and install everything

demo: demo-pretrain demo-finetune  ## pretraining, then fine-tuning, with nothing downloaded: minutes on two cores

demo-pretrain: setup  ## prepare, pretrain, evaluate, sample and report on the embedded corpus
	$(BIN)/python -m launch local nproc=2 -- pretrain strategy=zero2 experiment=demo
	$(BIN)/python -m pretrain.sample runs/demo --prompt "class Queue"
	$(BIN)/python -m pretrain.report runs/demo

demo-finetune: setup  ## pretrain a BERT on the same corpus, fine-tune it on two synthetic tasks, and ask it
	$(BIN)/python -m finetune.synthetic data/synthetic
	$(BIN)/python -m pretrain experiment=demo_bert
	$(BIN)/python -m finetune experiment=synthetic/packages
	$(BIN)/python -m finetune.evaluate runs/synthetic_packages data/synthetic/packages/validation.jsonl
	head -n 1 data/synthetic/packages/validation.jsonl
	head -n 1 data/synthetic/packages/validation.jsonl | $(BIN)/python -m finetune.predict runs/synthetic_packages
	$(BIN)/python -m finetune.report runs/synthetic_packages
	$(BIN)/python -m finetune experiment=synthetic/signatures
	$(BIN)/python -m finetune.evaluate runs/synthetic_signatures data/synthetic/signatures/validation.jsonl
	head -n 1 data/synthetic/signatures/validation.jsonl
	head -n 1 data/synthetic/signatures/validation.jsonl | $(BIN)/python -m finetune.predict runs/synthetic_signatures
	$(BIN)/python -m finetune.report runs/synthetic_signatures

test: setup lint  ## the fast tests, two at a time
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not gpu"

# Much of their time is waiting for jobs and signals: three files at a time, by name, keep two cores busy.
test-slow: setup  ## the tests that take minutes, three files at a time: kills, a cluster, the demo from end to end
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "slow and not gpu"

lint: setup  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup  ## let ruff rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment, runs, corpora and synthetic tasks
	rm -rf .venv runs corpora data/synthetic
