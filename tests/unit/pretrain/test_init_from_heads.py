"""The heads of released encoders come in with their weights and go out again, by the names of transformers."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hugging_face_directories import write_released
from run_directories import TEXTS, json_of, load_run, make_run
from small_models import MODERNBERT, ROBERTA
from toys import ALONE
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
)

from pretrain.data.batch import IGNORED, Batch
from pretrain.export import main
from pretrain.init_from import warn_of_other_pairs, weights_from
from pretrain.models.base import Layout
from pretrain.models.encoder import EncoderConfig
from pretrain.objectives.masked_lm import MaskedLMConfig
from pretrain.objectives.sentence_pairs import Sentences
from pretrain.registry import flattened, plain
from pretrain.trained.measuring import measurement
from pretrain.trained.source import open_source

SMALL = {"max_seq_len": 32, "width": 24, "layers": 1, "heads": 4}
LENGTHS = [9, 4, 17]
POOLER, PAIRS = "pooler.dense.bias, pooler.dense.weight", "sentence_classifier.bias, sentence_classifier.weight"


@pytest.fixture(autouse=True)
def everything_is_captured(caplog):
    caplog.set_level("INFO")


def drawn_wide(model, seed=3):
    """Return a model with weights whose logits say something."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3, generator=generator)
    return model.eval()


def released(folder, config, make):
    """Write a directory of transformers' class that `make` returns for a config.json; return the model."""
    tokenizer = write_released(folder, config, TEXTS)
    model = drawn_wide(make(json_of(folder / "config.json")))
    model.save_pretrained(folder)
    return model, tokenizer


def bert(folder, kind=BertForPreTraining):
    return released(folder, EncoderConfig(**SMALL), lambda theirs: kind(BertConfig(**theirs)))[0]


def run_from(source, path, *settings):
    """Return a run that begins with the weights of a source, saved before its first step."""
    found = open_source(str(source))
    model = [
        f"model.{key}={'null' if value is None else value}" for key, value in flattened(plain(found.network)).items()
    ]
    first = partial(weights_from, found, world=ALONE, tokenizer=source / "tokenizer.json")
    return make_run(
        path,
        *(*model, *settings),
        model="encoder",
        tokenizer=(source / "tokenizer.json").read_text(),
        vocab_size=found.vocab_size,
        weights=first,
    )


def said(caplog):
    return [line for line in caplog.messages if line.startswith("init_from: ")]


def pairs():
    """Return a ragged batch of pairs, every third token hidden, and the same padded, as transformers takes it."""
    generator = torch.Generator().manual_seed(1)
    total = sum(LENGTHS)
    tokens = torch.randint(5, 70, (total,), generator=generator)
    places = torch.cat([torch.arange(length) for length in LENGTHS])
    targets = torch.where(torch.arange(total) % 3 == 0, tokens.flip(0), IGNORED)
    batch = Batch(
        tokens=tokens,
        positions=places,
        offsets=F.pad(torch.tensor(LENGTHS).cumsum(0), (1, 0)).int(),
        max_len=max(LENGTHS),
        targets=targets,
        num_targets=int((targets != IGNORED).sum()),
        segments=(places > 2).long(),
        labels=torch.tensor([0, 1, 1]),
        lengths=LENGTHS,
    )
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    inputs = {
        "input_ids": pad(tokens.split(LENGTHS)),
        "token_type_ids": pad(batch.segments.split(LENGTHS)),
        "attention_mask": pad(torch.ones(total, dtype=torch.long).split(LENGTHS)),
    }
    return batch, inputs, pad(targets.split(LENGTHS), padding_value=IGNORED)


def assert_same_heads(ours, theirs):
    """Compare both heads of a module with pairs and of BertForPreTraining: logits of all tokens, and both losses."""
    batch, inputs, labels = pairs()
    with torch.no_grad():
        expected = theirs(**inputs, labels=labels, next_sentence_label=batch.labels)
        hidden = ours.model(batch.tokens, batch.positions, Layout.of(batch.offsets, batch.max_len), batch.segments)
        logits = F.linear(ours.model.head_input(hidden), ours.model.head_weight(), ours.model.head_bias())
        told = ours.sentence_classifier(ours.pooler(hidden[batch.offsets[:-1]]))
        loss = ours(batch)
    seen = inputs["attention_mask"].bool()
    torch.testing.assert_close(logits, expected.prediction_logits[seen], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(told, expected.seq_relationship_logits, atol=1e-5, rtol=1e-5)
    assert logits.std() > 0.5 and told.std() > 0.1, "logits that say something"
    nll, right, number = loss.labels.tolist()
    assert number == 3 and right == (expected.seq_relationship_logits.argmax(1) == batch.labels).sum()
    both = loss.nll / batch.num_targets + nll / number
    torch.testing.assert_close(both, expected.loss, atol=1e-6, rtol=1e-6)


def test_both_heads_of_bert_come_in_and_go_out(tmp_path, caplog):
    """APART is their label 1: the second part does not follow."""
    theirs = bert(tmp_path / "released")
    run = run_from(tmp_path / "released", tmp_path / "run", "objective.sentences=nsp")
    assert not said(caplog), "everything has its place"
    assert_same_heads(load_run(run), theirs)
    assert main([str(run)]) == 0
    assert_same_heads(load_run(run), BertForPreTraining.from_pretrained(run / "export").eval())
    before, after = (BertForPreTraining.from_pretrained(place) for place in (tmp_path / "released", run / "export"))
    for name, tensor in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], tensor), name


def test_a_run_without_pairs_says_what_it_leaves_behind(tmp_path, caplog):
    theirs, place = bert(tmp_path / "released"), tmp_path / "released"
    run = run_from(place, tmp_path / "run")
    left, way_on = said(caplog)
    assert left == f"init_from: left behind of {place}, so not in exports either: {POOLER}, {PAIRS}"
    assert "objective.sentences=nsp" in way_on
    assert main([str(run)]) == 0
    exported, report = AutoModelForMaskedLM.from_pretrained(run / "export", output_loading_info=True)
    assert not any(report.values()) and exported.config.architectures == ["BertForMaskedLM"]
    _, inputs, _ = pairs()
    with torch.no_grad():
        found, expected = exported(**inputs).logits, theirs(**inputs).prediction_logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_pairs_of_another_kind_than_those_of_a_run_are_said(tmp_path, caplog):
    run = make_run(tmp_path / "run", "objective.sentences=nsp", model="encoder")
    source = open_source(str(run))
    for sentences in ("none", "nsp", "sop"):
        warn_of_other_pairs(source, MaskedLMConfig(sentences=Sentences[sentences]))
    [line] = said(caplog)
    assert line.startswith(f"init_from: objective.sentences is sop, that of {run} nsp;")


def test_an_evaluation_says_that_pairs_of_a_file_are_not_measured(tmp_path, caplog):
    """Its files do not say of which pairs; those without the classifier say nothing."""
    (tmp_path / "text.txt").write_text("a text")
    for kind, measured in ((BertForPreTraining, False), (BertForMaskedLM, True)):
        caplog.clear()
        place = tmp_path / kind.__name__
        bert(place, kind)
        measurement(open_source(str(place)), [tmp_path / "text.txt"], [], [], None)
        said_so = [line for line in caplog.messages if "pairs of sentences" in line]
        assert (not said_so) is measured


def test_the_body_of_bert_brings_its_pooler_to_pairs(tmp_path, caplog):
    theirs = bert(tmp_path / "released", BertModel)
    ours = load_run(run_from(tmp_path / "released", tmp_path / "run", "objective.sentences=nsp"))
    assert torch.equal(ours.pooler.dense.weight, theirs.pooler.dense.weight)
    [line] = said(caplog)
    new = line.removesuffix("; they get initial values").partition(" has no ")[2].split(", ")
    assert {name.rpartition(".")[0] for name in new} == {
        *("model.transform.dense", "model.transform.norm", "model.head", "sentence_classifier")
    }


CLASSIFIERS = {
    "bert": ({}, {"transform.dense", "transform.norm", "head"}, [POOLER]),
    "roberta": (ROBERTA, {"transform.dense", "transform.norm", "head"}, ["head.tanh.dense.bias"]),
    "modernbert": (MODERNBERT, {"head"}, []),  # whose classifiers share the transform
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_goes_on_as_a_masked_model_with_a_new_head(tmp_path, caplog, name):
    own, new, left = CLASSIFIERS[name]
    make = lambda theirs: AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**theirs))
    place = tmp_path / "released"
    theirs, _ = released(place, EncoderConfig(**SMALL, **own), make)
    ours = load_run(run_from(place, tmp_path / "run"))
    [begun, behind] = said(caplog)
    begun = begun.removesuffix("; they get initial values").partition(" has no ")[2].split(", ")
    assert {part.rpartition(".")[0].removeprefix("model.") for part in begun} == new
    assert behind.startswith(f"init_from: left behind of {place}")
    assert all(part in behind for part in [*left, "head.classifier.bias, head.classifier.weight"])
    embedding = theirs.base_model.get_input_embeddings().weight
    assert torch.equal(ours.model.embedding.weight, embedding)
