# Every target works as the only command typed: what it needs, it installs into .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo demo-pretrain demo-finetune demo-pairs demo-long test test-slow soak lint format clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*##/\t/'

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --config-settings editable_mode=compat --editable '.[dev]'
	touch .venv/ready

setup: .venv/ready  ## create .venv and install everything

# Two ranks for everything: on two cores they are faster than two threads.
LOCAL := $(BIN)/python -m launch local nproc=2 --

demo: demo-pretrain demo-finetune  ## pretrain and fine-tune with nothing downloaded: about five minutes on two cores
	$(BIN)/python examples/demo_summary.py $(LONG)

demo-pretrain: setup  ## prepare a corpus of the standard library, pretrain a GPT, sample and report
	$(LOCAL) pretrain strategy=zero2 experiment=demo$(LONG)
	$(BIN)/python -m pretrain.sample runs/demo$(LONG) --prompt "class Queue"
	$(BIN)/python -m pretrain.report runs/demo$(LONG)

demo-finetune: setup  ## pretrain a BERT on the same corpus, fine-tune it on two synthetic tasks, and ask it
	$(LOCAL) pretrain experiment=demo_bert$(LONG)
	$(BIN)/python examples/synthetic_tasks.py data/synthetic
	$(LOCAL) finetune experiment=synthetic/packages run.name=synthetic_packages$(LONG) init_from=runs/demo_bert$(LONG) $(EPOCHS)
	head -n 1 data/synthetic/packages/validation.jsonl | $(BIN)/python -m finetune.predict runs/synthetic_packages$(LONG)
	$(BIN)/python -m finetune.report runs/synthetic_packages$(LONG)
	$(LOCAL) finetune experiment=synthetic/names run.name=synthetic_names$(LONG) init_from=runs/demo_bert$(LONG) $(EPOCHS)
	head -n 1 data/synthetic/names/validation.jsonl | $(BIN)/python -m finetune.predict runs/synthetic_names$(LONG)
	$(BIN)/python -m finetune.report runs/synthetic_names$(LONG)

demo-pairs: setup  ## train a translator from nothing, from Python expressions to words, and ask it
	$(BIN)/python examples/synthetic_pairs.py data/synthetic
	$(LOCAL) finetune experiment=synthetic/pairs run.name=synthetic_pairs$(LONG)
	head -n 1 data/synthetic/pairs/validation.jsonl | $(BIN)/python -m finetune.predict runs/synthetic_pairs$(LONG)
	$(BIN)/python -m finetune.report runs/synthetic_pairs$(LONG)

demo-long: LONG := _long
demo-long: EPOCHS := train.epochs=6
demo-long: demo-pairs demo  ## a translator, and the same with larger models: over a quarter of an hour on two cores

test: setup lint  ## the fast tests, two at a time
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not gpu"

# Much of their time is waiting for jobs and signals: three files at a time, by name, keep two cores busy.
test-slow: setup  ## the tests that take minutes, three files at a time: kills, a cluster, the demo from end to end
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "slow and not gpu"

# A second or two for a restart.
RESTARTS ?= 200
SEED ?= 1

soak: setup  ## break a run RESTARTS times, in ways drawn from SEED, and compare it with one that was left alone
	PYTHONPATH=tests/support:tests/dist $(BIN)/python tests/dist/soak.py --restarts $(RESTARTS) --seed $(SEED) $(if $(PLACE),--place $(PLACE))

lint: setup  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup  ## let ruff rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment, runs, corpora and synthetic tasks
	rm -rf .venv runs corpora data/synthetic
