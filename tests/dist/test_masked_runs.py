"""Whole masked runs in real processes: killed and resumed, on several ranks, refused."""

import json
import random
import re

import pytest
import torch
from ranks import column, run, tiny
from test_pretrain import assert_close_runs, assert_equal_runs, kill_when, logged
from vocabularies import word_piece

from pretrain.report import __main__ as report
from pretrain.trained.model import load

WORDS = ["hidden", "tokens", "masking", "whole", "encoder", "sentence", "order", "bidirectional", "often", "training"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a text of 300 uneven paragraphs, in which words come in turn, and a tokenizer like BERT's."""
    folder = tmp_path_factory.mktemp("masked")
    draw = random.Random(5)
    paragraphs = []
    for _ in range(300):
        first, length = draw.randrange(len(WORDS)), draw.randint(2, 40)
        paragraphs.append(" ".join(WORDS[(first + 3 * number) % len(WORDS)] for number in range(length)) + ".")
    (folder / "text.txt").write_text("\n\n".join(paragraphs))
    word_piece(paragraphs, 80).save(str(folder / "tokenizer.json"))
    return folder


def masked(name: str, *more: str) -> list[str]:
    """Return the overrides of a masked run that takes seconds."""
    shared = [override for override in tiny(name) if not override.startswith(("tokenizer.", "model=decoder"))]
    chosen = ["tokenizer=file", "tokenizer.path=tokenizer.json", "model=encoder", "objective=masked_lm"]
    return [*shared, *chosen, "data.packing=best_fit", "optim.lr=1e-2", *more]


@pytest.fixture(scope="module")
def uninterrupted(place):
    run(*masked("uninterrupted", "objective.sentences=nsp", "model.dropout=0.1"), cwd=place)
    return place / "runs" / "uninterrupted"


def test_a_masked_run_learns_and_says_what_it_can(uninterrupted):
    losses, accuracy = (column(uninterrupted, key, "validation") for key in ("loss", "accuracy"))
    assert sorted(losses) == [0, 8, 16, 24]
    assert losses[24] < losses[0] - 0.5 and accuracy[24] > accuracy[0]
    told = [share for share in column(uninterrupted, "sentence_accuracy").values() if share is not None]
    assert len({*told}) > 1 and all(0 <= share <= 1 for share in told), "a step may have no pair"
    rows = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert not [row for row in rows if "bits_per_byte" in row]
    assert rows[-1]["tokens"] == rows[-2]["tokens"] > 24 * 8 * 25, "tokens that went through the model, not targets"


def test_an_evaluation_afterwards_measures_what_the_run_did(uninterrupted):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the run had: sums of several are in another order
    try:
        found = load(uninterrupted, device="cpu").evaluate()
    finally:
        torch.set_num_threads(threads)
    assert found["sentence_loss"] > 0
    for key in ("loss", "perplexity", "accuracy", "sentence_loss", "sentence_accuracy"):
        assert found[key] == column(uninterrupted, key, "validation")[24]


@pytest.fixture(scope="module")
def sparse(place):
    """A run on the cut stream that hides a token now and then; what it printed."""
    more = ["objective.masking.rate=0.004", "train.steps=12", "train.batch_size=1", "train.micro_batch_size=1"]
    return run(*masked("sparse", *more, "eval.every=0", "data.packing=concat"), cwd=place)


def test_an_encoder_that_learns_from_a_cut_stream_is_told_so(place, sparse, uninterrupted):
    warning = "data.packing=concat: documents are cut where slots end"
    assert (place / "runs" / "sparse" / "log.txt").read_text().count(warning) == 1
    assert warning in sparse.stderr and warning not in (uninterrupted / "log.txt").read_text()


def test_a_step_in_which_nothing_was_hidden_has_no_loss(place, sparse):
    losses = column(place / "runs" / "sparse", "loss")
    silent = [step for step, loss in losses.items() if loss is None]
    assert silent and len(silent) < 12 and 0 not in losses.values()
    assert all(re.search(rf"step +{step}/12  lr .*  no target  ", sparse.stdout) for step in silent)
    assert report.main([str(place / "runs" / "sparse")]) == 0


def test_killed_and_resumed_equals_never_interrupted(place, uninterrupted):
    """Masks, pairs and dropout of a step are functions of the step."""
    overrides = masked("killed", "objective.sentences=nsp", "model.dropout=0.1")
    kill_when(lambda: logged(place / "runs" / "killed") > 12, *overrides, cwd=place)
    run(*overrides, cwd=place)
    assert_equal_runs(uninterrupted, place / "runs" / "killed")


@pytest.mark.slow
@pytest.mark.parametrize("sentences", ["none", "sop"])
def test_ranks_micro_batches_and_strategies_do_not_change_the_run(place, sentences):
    more = [f"objective.sentences={sentences}", "objective.masking.unit=spans", "train.batch_size=12"]
    run(*masked(f"one-{sentences}", *more, "train.micro_batch_size=12"), cwd=place)
    for ranks, micro, strategy in ((2, 1, "zero3"), (3, 2, "fsdp2"), (2, 3, "ddp")):
        name = f"{sentences}-{strategy}"
        run(*masked(name, *more, f"train.micro_batch_size={micro}", f"strategy={strategy}"), ranks=ranks, cwd=place)
        assert_close_runs(place / "runs" / f"one-{sentences}", place / "runs" / name)
        for key in ("sentence_loss", "sentence_accuracy") if sentences == "sop" else ():
            alone, together = (column(place / "runs" / each, key) for each in (f"one-{sentences}", name))
            assert together == pytest.approx(alone, rel=1e-4)


@pytest.mark.slow
def test_replaced_tokens_are_the_same_on_any_ranks_and_are_found(place):
    """A model without the head that predicts tokens, with narrow embeddings."""
    more = ["objective=replaced_tokens", "model.embedding_width=20", "train.batch_size=12"]
    run(*masked("one-replaced", *more, "train.micro_batch_size=12"), cwd=place)
    one = place / "runs" / "one-replaced"
    losses, found = (column(one, key, "validation") for key in ("loss", "replaced_accuracy"))
    assert losses[24] < losses[0] - 0.2 and 0 <= found[24] <= 1
    for ranks, micro, strategy in ((2, 1, "zero3"), (2, 2, "fsdp2"), (2, 3, "ddp")):
        name = f"replaced-{strategy}"
        run(*masked(name, *more, f"train.micro_batch_size={micro}", f"strategy={strategy}"), ranks=ranks, cwd=place)
        assert_close_runs(one, place / "runs" / name)


def test_refusals_say_what_to_do(place, uninterrupted):
    overrides = [one for one in masked("refused") if not one.startswith("tokenizer")]
    done = run(*overrides, "tokenizer=bpe", "tokenizer.vocab_size=300", code=2, cwd=place)
    assert "objective=masked_lm: this tokenizer has no mask token" in done.stderr
    done = run(*masked("uninterrupted", "objective.sentences=none", "model.dropout=0.1"), code=4, cwd=place)
    assert "extra pooler.dense.weight (32, 32)" in done.stderr
