"""Whole runs of encoder-decoders in real processes: span corruption and denoising, killed and resumed, on ranks."""

import json
import random

import pytest
from ranks import column, run, tiny
from test_pretrain import assert_close_runs, assert_equal_runs, kill_when, logged

pytestmark = pytest.mark.slow

WORDS = ["dropped", "spans", "source", "target", "encoder", "decoder", "sentinel", "masked", "often", "training"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a text of 300 uneven paragraphs, in which words come in turn."""
    folder = tmp_path_factory.mktemp("corrupted")
    draw = random.Random(5)
    paragraphs = []
    for _ in range(300):
        first, length = draw.randrange(len(WORDS)), draw.randint(1, 40)
        paragraphs.append(" ".join(WORDS[(first + 3 * number) % len(WORDS)] for number in range(length)) + ".")
    (folder / "text.txt").write_text("\n\n".join(paragraphs))
    return folder


def corrupted(name: str, *more: str) -> list[str]:
    """Return the overrides of a run of an encoder-decoder that takes seconds."""
    shared = [override for override in tiny(name) if not override.startswith("model=")]
    chosen = ["model=encoder_decoder", "model.order=pre", "objective=span_corruption", "data.packing=windows"]
    tokenizer = ["tokenizer.special_tokens=['<pad>','<s>','</s>','<mask>']", "tokenizer.sentinels=8"]
    return [*shared, *chosen, *tokenizer, "optim.lr=1e-2", *more]


DENOISING = ["objective=denoising", "objective.permute_sentences=true", "objective.start='</s>'"]


@pytest.fixture(scope="module")
def uninterrupted(place):
    run(*corrupted("uninterrupted", "model.dropout=0.1"), cwd=place)
    return place / "runs" / "uninterrupted"


def test_span_corruption_is_learnt_and_measured(uninterrupted):
    losses, accuracy = (column(uninterrupted, key, "validation") for key in ("loss", "accuracy"))
    assert losses[24] < losses[0] - 1 and accuracy[24] > accuracy[0]
    rows = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert not [row for row in rows if "bits_per_byte" in row]
    record = json.loads((uninterrupted / "run.json").read_text())
    assert record["decoder_start"] == 0, "<pad>"


def test_killed_and_resumed_equals_never_interrupted(place, uninterrupted):
    overrides = corrupted("killed", "model.dropout=0.1")
    kill_when(lambda: logged(place / "runs" / "killed") > 12, *overrides, cwd=place)
    run(*overrides, cwd=place)
    assert_equal_runs(uninterrupted, place / "runs" / "killed")


@pytest.mark.parametrize("objective", ["spans", "denoising"])
def test_ranks_micro_batches_and_strategies_do_not_change_the_run(place, objective):
    """Also where ranks have nothing left to evaluate."""
    more = [*(DENOISING if objective == "denoising" else []), "train.batch_size=12", "eval.max_slots=4"]
    run(*corrupted(f"one-{objective}", *more, "train.micro_batch_size=12"), cwd=place)
    for ranks, micro, strategy in ((2, 1, "zero2"), (3, 2, "fsdp2")):
        name = f"{objective}-{strategy}"
        run(*corrupted(name, *more, f"train.micro_batch_size={micro}", f"strategy={strategy}"), ranks=ranks, cwd=place)
        assert_close_runs(place / "runs" / f"one-{objective}", place / "runs" / name)
    record = json.loads((place / "runs" / f"one-{objective}" / "run.json").read_text())
    assert record["decoder_start"] == {"spans": 0, "denoising": 2}[objective]
