"""A released decoder learns to answer instructions in the format that each of them asks for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import column, run
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

import finetune

pytestmark = [
    pytest.mark.slow,
    pytest.mark.shared_data,
    pytest.mark.skipif("HEADWATER_DATA" not in os.environ, reason="HEADWATER_DATA names no folder of real data"),
]
SCRIPT = Path(__file__).parents[2] / "examples" / "synthetic_instructions.py"


def by_hand(model: Path, records: list[dict]) -> float:
    """Return the mean negative log-likelihood of the answers' tokens, by `transformers` in float64, one by one."""
    theirs, tokenizer = (
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64),
        AutoTokenizer.from_pretrained(model),
    )
    ids = lambda text: tokenizer(text, add_special_tokens=False).input_ids
    losses = []
    for record in records:
        read = [1, *ids(f"{record['story']} {record['instruction']}\nAnswer:\n")]
        written = [*ids(record["answer"]), 2]
        with torch.no_grad():
            logits = theirs(torch.tensor([read + written])).logits[0]
        losses.append(functional.cross_entropy(logits[len(read) - 1 : -1], torch.tensor(written), reduction="none"))
    return torch.cat(losses).mean().item()


def test_a_teller_of_stories_learns_to_answer_as_it_is_asked(tmp_path):
    subprocess.run([sys.executable, SCRIPT, tmp_path], check=True)
    model = Path(os.environ["HEADWATER_DATA"]) / "stories260k" / "hf"
    run(
        *("task=seq2seq", "run.name=answers", f"init_from={model}", "eval.at_start=true", "dropout=0"),
        *("task.train=instructions/train.jsonl", "task.validation=instructions/validation.jsonl"),
        *(
            'task.template="{story} {instruction}\\nAnswer:\\n"',
            "task.columns.source=story",
            "task.columns.target=answer",
        ),
        *("task.max_source_tokens=100", "task.max_target_tokens=24", "task.metrics=[exact_match]"),
        *("optim.lr=3e-3", "train.batch_size=16", "train.epochs=3"),
        program="finetune",
        cwd=tmp_path,
    )
    records = [json.loads(line) for line in (tmp_path / "instructions" / "validation.jsonl").read_text().splitlines()]
    losses, exact = (column(tmp_path / "runs" / "answers", key, "validation") for key in ("loss", "exact_match"))
    assert losses[0] == pytest.approx(by_hand(model, records), rel=1e-5)
    assert exact[0] == 0 and exact[max(exact)] > 0.8

    answered = finetune.load(tmp_path / "runs" / "answers").predict(str(tmp_path / "instructions" / "validation.jsonl"))
    as_asked = [one["prediction"] == record["answer"] for one, record in zip(answered, records, strict=True)]
    assert sum(as_asked) / len(as_asked) > 0.8, "to the last comma and line, which exact_match does not see"
