"""Runs of replaced-token detection come in and go out: as ElectraForPreTraining, or as the body of another family."""

import logging

import pytest
import torch
from run_directories import json_of, load_run, make_run, settings_of, word_pieces
from toys import ALONE
from transformers import AutoModel, AutoTokenizer, ElectraForMaskedLM, ElectraForPreTraining

from pretrain.checkpoint.base import WEIGHT
from pretrain.errors import ConfigError
from pretrain.export import main
from pretrain.init_from import InitialWeights, settings_from, weights_from
from pretrain.models.base import Layout
from pretrain.objectives.masked_lm import MaskedLMConfig
from pretrain.objectives.replaced_tokens import ReplacedTokensConfig
from pretrain.trained.model import load
from pretrain.trained.source import open_source

ROWS = 77  # of the vocabulary
MODEL = ["model.init_std=0.3", "model.embedding_width=10", "model.norm_eps=1e-12"]
DETECTION = [*MODEL, "objective=replaced_tokens"]


def run_of(path, *settings):
    return make_run(path, *settings, model="encoder", tokenizer=word_pieces(), vocab_size=ROWS)


@pytest.fixture(scope="module")
def discriminator(tmp_path_factory):
    """An exported run."""
    run = run_of(tmp_path_factory.mktemp("runs") / "discriminator", *DETECTION, "objective.rate=0.3")
    assert main([str(run)]) == 0
    return run


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO)
    return lambda start: [line for line in (each.getMessage() for each in caplog.records) if line.startswith(start)]


def weights(source, run, seed=5):
    """Return what a run that starts from a source begins with, and its module."""
    module = load_run(run)
    read = weights_from(
        open_source(str(source)),
        InitialWeights(module, seed),
        settings_of(run),
        ALONE,
        tokenizer=run / "tokenizer.json",
    )
    return module, {
        name: read(name, WEIGHT, 0, parameter.numel()).reshape(parameter.shape)
        for name, parameter in module.named_parameters()
    }


def test_a_run_is_exported_as_the_discriminator_that_it_is(discriminator):
    export = discriminator / "export"
    theirs, report = ElectraForPreTraining.from_pretrained(export, output_loading_info=True)
    assert not any(report.values()) and theirs.config.architectures == ["ElectraForPreTraining"]
    inputs = AutoTokenizer.from_pretrained(export)("the time of the world", return_tensors="pt")
    tokens, ours = inputs["input_ids"][0], load_run(discriminator)
    with torch.no_grad():
        expected = theirs(**inputs).logits[0]
        layout = Layout.of(torch.tensor([0, len(tokens)], dtype=torch.int32), len(tokens))
        found = ours.detector(ours.model(tokens, torch.arange(len(tokens)), layout))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert "pipeline_tag: feature-extraction" in (export / "README.md").read_text()


def test_other_families_have_no_place_for_the_detector(tmp_path, caplog):
    run = run_of(tmp_path / "run", "objective=replaced_tokens", "model.init_std=0.3")
    assert main([str(run)]) == 0
    said = "left out, as BertModel has no place for them: detector.classifier.bias, detector.classifier.weight, "
    assert said in caplog.text
    assert json_of(run / "export" / "config.json")["architectures"] == ["BertModel"]
    theirs, report = AutoModel.from_pretrained(run / "export", add_pooling_layer=False, output_loading_info=True)
    assert not any(report.values())
    embedding = load_run(run).model.embedding.weight
    torch.testing.assert_close(theirs.embeddings.word_embeddings.weight, embedding)


@pytest.mark.parametrize("exported", [False, True])
def test_detection_goes_on_where_it_ended(discriminator, tmp_path, exported, lines):
    source = discriminator / "export" if exported else discriminator
    adopted = settings_from(str(source))["objective"]
    assert adopted == ReplacedTokensConfig(rate=0.15 if exported else 0.3)
    known = dict(load_run(discriminator).named_parameters())
    _, begun = weights(source, run_of(tmp_path / "run", *DETECTION, "seed=3"))
    assert begun.keys() == known.keys() and all(torch.equal(begun[name], known[name]) for name in known)
    assert not lines("init_from: ")


@pytest.mark.parametrize("exported", [False, True])
def test_predicting_tokens_gets_a_new_head_and_says_so(discriminator, tmp_path, exported, lines):
    source = discriminator / "export" if exported else discriminator
    module, begun = weights(source, run_of(tmp_path / "run", *MODEL))
    initial, known = InitialWeights(module, 5), dict(load_run(discriminator).named_parameters())
    for name, parameter in module.named_parameters():
        if name.startswith(("model.transform.", "model.head.")):
            expected = initial(name, WEIGHT, 0, parameter.numel()).reshape(parameter.shape)
        else:
            expected = known[name]
        assert torch.equal(begun[name], expected), name
    [line] = lines(f"init_from: {source} has no ")
    for name in ("model.transform.dense.weight", "model.transform.norm.bias", "model.head.bias"):
        assert name in line
    assert "they get initial values" in line


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    """An exported run of masked language modelling."""
    run = run_of(tmp_path_factory.mktemp("runs") / "generator", *MODEL)
    assert main([str(run)]) == 0
    return run


@pytest.mark.parametrize("exported", [False, True])
def test_detection_begins_with_a_generator_too(generator, tmp_path, exported, lines):
    theirs, report = ElectraForMaskedLM.from_pretrained(generator / "export", output_loading_info=True)
    assert not any(report.values()) and theirs.config.embedding_size == 10
    source = generator / "export" if exported else generator
    assert settings_from(str(source))["objective"] == MaskedLMConfig()
    _, begun = weights(source, run_of(tmp_path / "run", *DETECTION))
    known = dict(load_run(generator).named_parameters())
    assert all(torch.equal(values, known[name]) for name, values in begun.items() if name.startswith("model."))
    assert any("detector.classifier.weight" in line and "get initial values" in line for line in lines("init_from: "))


@pytest.mark.parametrize("exported", [False, True])
def test_it_is_opened_and_measured_as_what_it_is(discriminator, tmp_path, exported):
    model = load(discriminator / "export" if exported else discriminator, device="cpu")
    with pytest.raises(ConfigError, match=r"was trained with objective=replaced_tokens, whose models have no head"):
        model.logits(model.encode("the time"))
    (tmp_path / "texts.txt").write_text("the time of the year\n\npeople and the world\n\nschool time\n" * 20)
    root = f"data.prepare.root={tmp_path}"
    settings = [root, "documents=blank_line", "seed=2"]
    found = model.evaluate(str(tmp_path / "texts.txt"), settings=settings)
    assert 0 <= found["replaced_accuracy"] <= 1 and found["targets"] == found["tokens"] > 100
    settings += ["objective.rate=0.6", "objective.replacements=uniform"]
    harder = model.evaluate(str(tmp_path / "texts.txt"), settings=settings)
    assert harder["targets"] == found["targets"] and harder["loss"] != found["loss"]
