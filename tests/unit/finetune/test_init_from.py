"""What fine-tuning begins with: all of a model, what its head may take over, and a tokenizer that frames texts."""

import json

import pytest
import torch
from corpora import edit_json
from first_weights import begin, said_to_be_new
from hugging_face_directories import write_released
from run_directories import GPT2_SETTINGS, LLAMA_SETTINGS, MODERNBERT_SETTINGS, TEXTS, load_run, make_run, word_pieces
from small_models import DISTILBERT, LLAMA, MODERNBERT, ROBERTA
from transformers import AutoModel, AutoModelForSequenceClassification

from finetune.init_from import own_source, tokenizer_of
from pretrain.checkpoint.base import WEIGHT
from pretrain.data.batch import Batch
from pretrain.errors import CheckpointError, ConfigError, DataError
from pretrain.export import main
from pretrain.models.base import Layout
from pretrain.models.decoder import DecoderConfig
from pretrain.models.encoder import EncoderConfig
from pretrain.registry import plain
from pretrain.tokenizer.bpe import BpeTokenizer
from pretrain.trained.source import open_source


@pytest.fixture(autouse=True)
def everything_is_captured(caplog):
    caplog.set_level("INFO")


def assert_begun(module, initial, theirs, taken):
    """Compare with the source's module; `taken` are the head's tensors that are its, by its names."""
    for name, parameter in module.named_parameters():
        source = name if name.startswith("model.") else taken.get(name)
        shape = parameter.shape
        expected = theirs.get_parameter(source) if source else initial(name, WEIGHT, 0, shape.numel()).reshape(shape)
        assert torch.equal(parameter, expected), name


def test_a_tokenizer_of_another_vocabulary_is_refused_by_both_sizes(tmp_path):
    run = make_run(tmp_path / "run", **ENCODER, tokenizer=word_pieces())
    assert main([str(run)]) == 0
    for place, kind, told in (
        (run, DataError, "another tokenizer"),
        (run / "export", ConfigError, "of another vocabulary: it has ids up to 269, but the model's embedding 72 rows"),
    ):
        (place / "tokenizer.json").write_text(BpeTokenizer(vocab_size=270).train(iter(TEXTS)))
        with pytest.raises(kind, match=f"{place}/tokenizer.json: {told}"):
            tokenizer_of(open_source(str(place)))


CLASSIFIER = {"head.classifier.weight", "head.classifier.bias"}
POOLER = {f"head.pooler.dense.{leaf}": f"pooler.dense.{leaf}" for leaf in ("weight", "bias")}
TRANSFORM = {f"head.transform.{leaf}": f"model.transform.{leaf}" for leaf in ("dense.weight", "norm.weight")}
ENCODER = {"model": "encoder", "vocab_size": 72}
SOURCES = {
    "bert": (["model.init_std=0.3", "objective.sentences=nsp"], ENCODER, POOLER, CLASSIFIER),
    "bert_without_pooler": (["model.init_std=0.3"], ENCODER, {}, CLASSIFIER | POOLER.keys()),
    "modernbert": (MODERNBERT_SETTINGS, ENCODER, TRANSFORM, CLASSIFIER),
    "gpt2": (GPT2_SETTINGS, {}, {}, {"head.classifier.weight"}),
    "llama": (LLAMA_SETTINGS, {}, {}, {"head.classifier.weight"}),
}


@pytest.fixture(scope="module", params=SOURCES)
def trained(request, tmp_path_factory):
    """The name of a run among `SOURCES`, its directory, with an export, and its module."""
    overrides, fields, _, _ = SOURCES[request.param]
    path = tmp_path_factory.mktemp(request.param) / "run"
    run = make_run(path, *overrides, **fields, tokenizer=word_pieces() if fields else None)
    assert main([str(run)]) == 0
    return request.param, run, load_run(run)


@pytest.mark.parametrize("place", [".", "export"])
def test_a_run_and_its_export_give_all_of_the_model(trained, caplog, place):
    name, run, theirs = trained
    _, fields, taken, new = SOURCES[name]
    module, initial = begin(run / place)
    assert_begun(module, initial, theirs, taken)
    assert said_to_be_new(caplog) == new
    if fields:  # the tokenizer of an exported decoder frames nothing, as prompts are not ended
        tokenizer = tokenizer_of(open_source(str(run / place)))
        assert tokenizer.encode("time", "year").tokens == ["[CLS]", "time", "[SEP]", "year", "[SEP]"]
        assert tokenizer.encode("time", "year").type_ids == ([0] * 5 if name == "modernbert" else [0, 0, 0, 1, 1])
        assert tokenizer.encode("time").tokens == ["[CLS]", "time", "[SEP]"]


def test_from_scratch_nothing_is_read_but_network_and_tokenizer(trained, caplog):
    _, run, _ = trained
    module, initial = begin(run, scratch=True)
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, initial(name, WEIGHT, 0, parameter.numel()).reshape(parameter.shape)), name
    assert f"all weights get initial values: of {run} network and tokenizer alone are taken" in caplog.messages


SMALL = {"max_seq_len": 32, "width": 24, "layers": 2, "heads": 4}
RELEASED = {
    "bert": EncoderConfig(**SMALL),
    "roberta": EncoderConfig(**SMALL, **ROBERTA),
    "distilbert": EncoderConfig(**SMALL, **DISTILBERT),
    "modernbert": EncoderConfig(**SMALL, **MODERNBERT, window=3, global_every=2),
    "gpt2": DecoderConfig(**SMALL),
    "llama": DecoderConfig(**SMALL, **LLAMA),
}


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_directory_gives_all_of_the_model(tmp_path, name):
    write_released(tmp_path / "released", RELEASED[name], TEXTS)
    module, _ = begin(tmp_path / "released")
    ids = torch.tensor(tokenizer_of(open_source(str(tmp_path / "released"))).encode(TEXTS[0]).ids)
    layout = Layout.of(torch.tensor([0, len(ids)], dtype=torch.int32), len(ids), [len(ids)])
    with torch.no_grad():
        expected = AutoModel.from_pretrained(tmp_path / "released").eval()(ids[None]).last_hidden_state[0]
        torch.testing.assert_close(module.model(ids, torch.arange(len(ids)), layout), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_a_released_classifier_gives_the_layers_before_its_own_classes(tmp_path, caplog, name):
    """What another task was learnt with is a model like any other; its classes are not ours."""
    place = tmp_path / "released"
    write_released(place, RELEASED[name], TEXTS)
    theirs = AutoModelForSequenceClassification.from_pretrained(place, num_labels=3)
    theirs.save_pretrained(place)
    module, _ = begin(place)
    known = {"bert": ("pooler", theirs.base_model), "modernbert": ("transform", theirs)}[name]
    layer = known[1].pooler.dense if name == "bert" else known[1].head.dense
    assert torch.equal(module.get_parameter(f"head.{known[0]}.dense.weight"), layer.weight)
    assert not torch.equal(module.get_parameter("head.classifier.weight"), theirs.classifier.weight)
    assert said_to_be_new(caplog) == CLASSIFIER


@pytest.mark.parametrize("released", [False, True])
def test_what_a_run_keeps_of_its_source_is_all_it_needs(tmp_path, released):
    place = tmp_path / "source"
    if released:
        write_released(place, RELEASED["roberta"], TEXTS)
    else:
        make_run(place, "model.init_std=0.3", **ENCODER, tokenizer=word_pieces())
    source = open_source(str(place))
    tokenizer = tokenizer_of(source)
    keep(tmp_path / "run", source, tokenizer)
    kept = own_source(tmp_path / "run")
    ours = tokenizer_of(kept)
    assert (kept.network, kept.vocab_size, kept.mask) == (source.network, source.vocab_size, source.mask)
    assert [*kept.template] == [*source.template]
    for text in (("people and the world",), ("a way", "of life")):
        assert ours.encode(*text).ids == tokenizer.encode(*text).ids
        assert ours.encode(*text).type_ids == tokenizer.encode(*text).type_ids


def keep(run, source, tokenizer):
    """Write what a run of fine-tuning does of its source."""
    run.mkdir()
    tokenizer.save(str(run / "tokenizer.json"))
    choice = {"choice": "model=encoder", **plain(source.network)}
    facts = {
        "network": choice,
        "vocab_size": source.vocab_size,
        "document_frame": source.template,
        "mask": source.mask,
        "names": [],
    }
    (run / "run.json").write_text(json.dumps(facts))


def test_one_kind_of_segment_is_that_of_all_tokens(tmp_path):
    """RoBERTa has a vector for a single kind; a tokenizer may tell the second text of a pair all the same."""
    write_released(tmp_path / "released", RELEASED["roberta"], TEXTS)
    module, _ = begin(tmp_path / "released")
    batch = Batch(
        tokens=torch.tensor([5, 6, 7]),
        positions=torch.arange(3),
        offsets=torch.tensor([0, 3], dtype=torch.int32),
        max_len=3,
        targets=torch.zeros(3, dtype=torch.int64),
        num_targets=1,
        labels=torch.tensor([1]),
    )
    plain_logits = module(batch).logits
    batch.segments = torch.tensor([0, 1, 1])
    assert torch.equal(module(batch).logits, plain_logits)


def test_a_run_whose_weights_are_of_another_network_is_refused(tmp_path):
    run = make_run(tmp_path / "run", *GPT2_SETTINGS)
    edit_json(run / "run.json", lambda record: record["network"].update(layers=3))
    with pytest.raises(CheckpointError, match=r"run\.json: model\.layers is 3, its newest step was trained with 2"):
        begin(run)


def test_a_run_of_the_other_kind_is_refused_by_name(tmp_path):
    run = make_run(tmp_path / "run", "model.init_std=0.3", **ENCODER, tokenizer=word_pieces())
    with pytest.raises(ConfigError, match=r"run\.name=run: .* is no run of fine-tuning; choose another run\.name"):
        own_source(run)
