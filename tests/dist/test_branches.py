"""Runs that branch off others: bit for bit the same where nothing changes, refused by name where they cannot go on."""

import json
from pathlib import Path

import torch
from ranks import column, run

from pretrain.checkpoint.load import fragments_of, load_state

BEGIN, END = "step-00000020", "step-00000024"  # of `uninterrupted`, which has dropout and ends with the latter
BRANCH = ["branch_from=runs/uninterrupted@20", "log.every=1", "checkpoint.every=5"]


def tensors(run_directory: Path, step: str) -> dict[tuple[str, str], torch.Tensor]:
    """Return weights and moments of a step."""
    read = fragments_of(run_directory / "checkpoints" / step)
    return {
        (name, kind): read(name, kind, 0, shape.numel())
        for name in read.tensors
        for kind, shape in read.kinds(name).items()
    }


def test_a_branch_with_nothing_changed_is_its_origin_bit_for_bit(place, uninterrupted):
    done = run("run.name=same", *BRANCH, cwd=place)
    assert "what is not given is that of runs/uninterrupted: seed, data, tokenizer, model," in done.stderr
    assert "branching off runs/uninterrupted at step-00000020" in done.stderr
    same = place / "runs" / "same"
    ours, theirs = tensors(same, END), tensors(uninterrupted, END)
    assert ours.keys() == theirs.keys()
    assert len({kind for _, kind in ours}) == 4, "weights, two moments and their steps"
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key
    losses = column(same, "loss")
    assert losses == {step: loss for step, loss in column(uninterrupted, "loss").items() if step > 20}
    assert load_state(same / "checkpoints" / END)["tokens"] == load_state(uninterrupted / "checkpoints" / END)["tokens"]
    record = json.loads((same / "run.json").read_text())
    assert record["branch"] == {"run": "runs/uninterrupted", "step": 20, "data": "continue"}
    assert not record.get("notes")
