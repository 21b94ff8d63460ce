"""Answers to questions beside transformers, on several ranks; what measuring them leaves alone."""

import json
import math
import random

import numpy as np
import pytest
import torch
from hugging_face_directories import write_released
from rank_threads import on_threads
from small_models import LLAMA, small_decoder
from toys import ALONE
from transformers import AutoModelForCausalLM

from pretrain.data.choice_sets import ChoiceSet, Row, load_choices
from pretrain.objectives.causal_lm import CausalLMConfig
from pretrain.tracking import no_value
from pretrain.train.evaluation.choices import ChoiceEvaluator, batches_of
from pretrain.trained.model import load

WORDS = ["time", "year", "people", "way", "day", "man", "thing", "life", "child", "world", "school", "state"]


def questions(draw, count):
    """Yield questions of 1 to 12 words with 2 to 5 choices of 1 to 6 words."""
    for _ in range(count):
        choices = ["".join(f" {word}" for word in draw.choices(WORDS, k=draw.randint(1, 6))) for _ in range(5)]
        choices = [*dict.fromkeys(choices)][: draw.randint(2, 5)]
        context = " ".join(draw.choices(WORDS, k=draw.randint(1, 12)))
        yield {"context": context, "choices": choices, "answer": draw.randrange(len(choices))}


def reference(directory, tokenizer, asked, prefix):
    """Return the log-likelihood of each choice by transformers in float64, one text at a time."""
    model = AutoModelForCausalLM.from_pretrained(directory).double().eval()
    for question in asked:
        given = len(tokenizer.encode(question["context"], add_special_tokens=False).ids)
        for choice in question["choices"]:
            ids = tokenizer.encode(question["context"] + choice, add_special_tokens=False).ids
            ids, start = torch.tensor([*prefix, *ids]), len(prefix) + given
            with torch.no_grad():
                found = model(ids[None]).logits[0].log_softmax(-1)
            yield sum(float(found[place - 1, ids[place]]) for place in range(start, len(ids)))


@pytest.mark.parametrize("fields", [{}, LLAMA | {"kv_heads": 2, "tie_embeddings": False}])
def test_log_likelihoods_and_accuracies_are_those_of_transformers(tmp_path, fields):
    torch.manual_seed(4)  # transformers draws the weights
    config = small_decoder(**fields, init_std=0.3).config
    tokenizer = write_released(tmp_path / "model", config, [" ".join(WORDS)] * 9)
    asked = list(questions(random.Random(3), 14))
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(each) + "\n" for each in asked))
    model = load(tmp_path / "model", device="cpu")
    prefix = (model.source.template or ([], []))[0]
    sets = load_choices([str(tmp_path / "set.jsonl")], "k", tokenizer, prefix, 32)
    expected = np.array(list(reference(tmp_path / "model", tokenizer, asked, prefix)))
    measure = ChoiceEvaluator(module=model.module, model=model.module.model, sets=sets, batch_tokens=50, world=ALONE)
    assert measure._scores(sets[0].rows) == pytest.approx(expected, rel=1e-5)

    right, at = {"choices/set": 0, "choices/set/raw": 0}, 0
    for each in asked:
        own = expected[at : at + len(each["choices"])]
        at += len(own)
        lengths = [len(choice.encode()) for choice in each["choices"]]
        right["choices/set"] += int(np.argmax(own / lengths) == each["answer"])
        right["choices/set/raw"] += int(np.argmax(own) == each["answer"])
    accuracies = {key: pytest.approx(value / len(asked)) for key, value in right.items()}
    assert measure() == accuracies and right["choices/set"] != right["choices/set/raw"]
    chance = sum(1 / len(each["choices"]) for each in asked) / len(asked)
    about = {"choices/set/chance": pytest.approx(chance), "choices/set/questions": len(asked), "seq_len": 32}
    assert model.evaluate(choices=[tmp_path / "set.jsonl"]) == accuracies | about


def some(name, lengths, seed=5):
    """Return a set of two choices a question, whose rows have these lengths, of which the last third is measured."""
    draw = np.random.default_rng(seed)
    rows = [Row(draw.integers(61, size=length, dtype=np.int32), length - length // 3) for length in lengths]
    return ChoiceSet(
        name=name,
        rows=rows,
        text_bytes=draw.integers(1, 20, len(rows)),
        starts=np.arange(0, len(rows) + 1, 2),
        answers=draw.integers(2, size=len(rows) // 2),
    )


SETS = [some("one", [9, 30, 4, 4, 17, 33, 8, 3]), some("two", [20, 21])]


def evaluator(module, world=ALONE, **fields):
    settings = {"sets": SETS, "batch_tokens": 40} | fields
    return ChoiceEvaluator(module=module, model=module.model, world=world, **settings)


def objective(**fields):
    return CausalLMConfig().build(small_decoder(init_std=0.3, dropout=0.5, **fields))


def test_answers_are_the_same_on_any_number_of_ranks_bit_for_bit():
    rows = [row for each in SETS for row in each.rows]
    expected = evaluator(objective())
    scores, figures = expected._scores(rows), expected()
    assert len(batches_of([len(row.ids) - 1 for row in rows], 40)) == 5
    for size in (2, 3, 6):  # of six, one has no batch

        def body(world):
            own, passes = objective(), []
            own.register_forward_hook(lambda *_: passes.append(1))
            measure = evaluator(own, world)
            return measure._scores(rows).tolist(), len(passes), measure()

        assert on_threads(size, body) == [(scores.tolist(), math.ceil(5 / size), figures)] * size
    assert list(figures) == ["choices/one", "choices/one/raw", "choices/two", "choices/two/raw"]


def test_rows_that_fit_are_read_together():
    assert batches_of([5, 5, 5, 11, 1, 9], 10) == [range(2), range(2, 3), range(3, 4), range(4, 6)]
    assert batches_of([50], 10) == [range(1)]


def test_training_is_left_as_it_was():
    module = objective().train()
    before, state = {name: value.clone() for name, value in module.state_dict().items()}, torch.get_rng_state()
    assert evaluator(module)() == evaluator(module)(), "no dropout"
    assert all(part.training for part in module.modules())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not module.model._forward_hooks


def test_without_questions_nothing_is_computed():
    module = objective()
    module.register_forward_hook(lambda *_: pytest.fail("a pass through the model"))
    assert evaluator(module, sets=[])() == {}


def test_what_is_not_finite_has_no_value_which_is_said(caplog):
    no_value._say.cache_clear()
    module = objective()
    unknown = SETS[1].rows[0].ids[0]
    with torch.no_grad():
        module.model.embedding.weight[unknown] = math.nan
    with caplog.at_level("WARNING"):
        found = evaluator(module)()
    assert math.isnan(found["choices/two"]) and math.isnan(found["choices/two/raw"])
    assert "choices/two, choices/two/raw: no value: the model's log-probabilities" in caplog.text
