"""A released model with the head of a task goes on with it where the task and its outputs are the same."""

import pytest
import torch
from first_weights import begin, said_to_be_new
from hugging_face_directories import write_released
from run_directories import TEXTS, json_of
from small_models import DISTILBERT, LLAMA, MODERNBERT, ROBERTA
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertForMultipleChoice,
)

from pretrain.data.batch import Batch
from pretrain.hub.heads import HeadKind
from pretrain.models.decoder import DecoderConfig
from pretrain.models.encoder import EncoderConfig

SMALL = {"max_seq_len": 32, "width": 24, "layers": 1, "heads": 4}
LENGTHS = [7, 1, 12]
CLASSES = {
    HeadKind.sequence: AutoModelForSequenceClassification,
    HeadKind.span: AutoModelForQuestionAnswering,
    HeadKind.token: AutoModelForTokenClassification,
}
MODELS = {
    "bert": EncoderConfig(**SMALL),
    "roberta": EncoderConfig(**SMALL, **ROBERTA),
    "distilbert": EncoderConfig(**SMALL, **DISTILBERT),
    "modernbert": EncoderConfig(**SMALL, **MODERNBERT),
    "gpt2": DecoderConfig(**SMALL),
    "llama": DecoderConfig(**SMALL, **LLAMA),
}


@pytest.fixture(autouse=True)
def everything_is_captured(caplog):
    caplog.set_level("INFO")


def released(folder, name, make, names=(), **more):
    """Write a directory of a class of transformers, whose outputs have these names or none; return the model."""
    write_released(folder, MODELS[name], TEXTS)
    said = {"id2label": dict(enumerate(names)), "label2id": {name: row for row, name in enumerate(names)}}
    config = AutoConfig.for_model(**(json_of(folder / "config.json") | (said if names else {"num_labels": 3}) | more))
    model = make(config).eval()
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3, generator=generator)
    model.save_pretrained(folder)
    return model


# Each layer that heads have, a classifier without bias, and a body of another name than in the family's checkpoints.
HEADS = [
    ("bert", HeadKind.sequence),
    ("roberta", HeadKind.sequence),
    ("distilbert", HeadKind.sequence),
    ("modernbert", HeadKind.token),
    ("gpt2", HeadKind.sequence),
    ("llama", HeadKind.span),
]


@pytest.mark.parametrize(("name", "kind"), HEADS)
def test_a_head_of_the_same_task_goes_on(tmp_path, caplog, name, kind):
    names = ["start", "end"] if kind is HeadKind.span else ["b", "c", "a"]
    theirs = released(tmp_path / "released", name, CLASSES[kind].from_config, () if kind is HeadKind.span else names)
    ours, _ = begin(tmp_path / "released", kind, names=names)
    assert not said_to_be_new(caplog)
    said = f"init_from: the head of {tmp_path / 'released'} goes on, its outputs are the same: {', '.join(names)}"
    assert said in caplog.messages
    pad, tokens = theirs.config.pad_token_id or 0, torch.arange(sum(LENGTHS)) % 60 + 5
    theirs.config.pad_token_id = pad  # which tells a decoder's head where texts end
    inputs = torch.nn.utils.rnn.pad_sequence(tokens.split(LENGTHS), batch_first=True, padding_value=pad)
    seen = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    with torch.no_grad():
        expected = theirs(inputs, attention_mask=seen.long())
        found = ours(ragged(tokens)).logits
    if kind is HeadKind.span:
        logits = torch.stack([expected.start_logits, expected.end_logits], dim=2)[seen]
    else:
        logits = expected.logits if kind is HeadKind.sequence else expected.logits[seen]
    assert logits.std() > 0.1, "logits that say something"
    torch.testing.assert_close(found, logits, atol=1e-5, rtol=1e-5)


def ragged(tokens):
    return Batch(
        tokens=tokens,
        positions=torch.cat([torch.arange(length) for length in LENGTHS]),
        offsets=torch.tensor([0, *LENGTHS]).cumsum(0).int(),
        max_len=max(LENGTHS),
        targets=torch.zeros_like(tokens),
        num_targets=0,
        lengths=LENGTHS,
    )


OUTPUTS = {  # names of theirs, () as if nobody gave any, and of ours; whether they are the same
    "integers": ((), ["0", "1", "2"], True),
    "no names": ((), ["a", "b", "c"], False),
    "a number": (["LABEL_0"], ["score"], True),
    "another number": (["width"], ["score"], False),
    "another order": (["b", "c", "a"], ["a", "b", "c"], False),
    "another letter": (["a", "b", "C"], ["a", "b", "c"], False),
    "more of them": (["a", "b", "c"], ["a", "b", "c", "d"], False),
}


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_outputs_of_other_names_begin_anew_behind_the_same_layers(tmp_path, caplog, outputs):
    names, ours, same = OUTPUTS[outputs]
    place = tmp_path / "released"
    theirs = released(place, "roberta", AutoModelForSequenceClassification.from_config, names)
    module, _ = begin(place, names=ours)
    assert torch.equal(module.get_parameter("head.tanh.dense.weight"), theirs.classifier.dense.weight)
    last = module.get_parameter("head.classifier.weight")
    assert (
        last.shape == theirs.classifier.out_proj.weight.shape and last.equal(theirs.classifier.out_proj.weight)
    ) == same
    left = f"init_from: left behind of {place}: head.classifier"
    assert said_to_be_new(caplog) == (set() if same else {"head.classifier.weight", "head.classifier.bias"})
    assert (left in caplog.messages) != same
    listed = ", ".join(names or ["LABEL_0", "LABEL_1", "LABEL_2"])
    assert (f"init_from: the outputs of {place} are {listed}, not {', '.join(ours)}" in caplog.messages) != same
    fix = "init_from: with task.labels=[b,c,a] its classifier would go on"
    assert (fix in caplog.messages) == (outputs == "another order")


def test_a_head_that_computes_what_ours_does_not_begins_anew(tmp_path, caplog):
    place, sequence = tmp_path / "released", AutoModelForSequenceClassification.from_config
    theirs = released(place, "modernbert", sequence, ["a", "b", "c"], classifier_pooling="mean")
    module, _ = begin(place)
    assert not torch.equal(module.get_parameter("head.classifier.weight"), theirs.classifier.weight)
    assert said_to_be_new(caplog) == {"head.classifier.weight", "head.classifier.bias"}
    said = f"the head of {place} has classifier_pooling=mean, ours has not, so its classifier does not go on"
    assert f"init_from: {said}" in caplog.messages


@pytest.mark.parametrize("task", [AutoModelForTokenClassification.from_config, BertForMultipleChoice])
def test_the_head_of_another_task_is_left_behind(tmp_path, caplog, task):
    """Though its classes have the same names, or it is none that we know."""
    place = tmp_path / "released"
    theirs = released(place, "bert", task, ["a", "b", "c"])
    module, _ = begin(place)
    assert not torch.equal(module.get_parameter("head.classifier.weight")[0], theirs.classifier.weight[0])
    assert {"head.classifier.weight", "head.classifier.bias"} <= said_to_be_new(caplog)
    assert any("left" in line and "classifier" in line for line in caplog.messages)


def test_what_a_task_has_no_place_for_is_named(tmp_path, caplog):
    place = tmp_path / "released"
    released(place, "bert", AutoModelForSequenceClassification.from_config)
    begin(place, HeadKind.span, names=["start", "end"])
    assert f"init_from: left behind of {place}: head.classifier, pooler.dense" in caplog.messages
