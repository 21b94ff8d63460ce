"""What a run does not find in the weights it starts from begins as in a run without them, and is said by name."""

import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_directories import load_run, make_run, settings_of, word_pieces
from toys import ALONE
from transformers import AutoModel

from pretrain.checkpoint.base import WEIGHT
from pretrain.errors import CheckpointError, ConfigError
from pretrain.export import main
from pretrain.init_from import InitialWeights, weights_from
from pretrain.trained.source import find_source, open_source

SETTINGS = ["model.init_std=0.3", "model.layers=1", "objective.sentences=nsp"]
SEED = 5  # of the run that starts; the source's is 1
CLASSIFIER = "sentence_classifier.weight"  # of pairs: the objective's own
ROWS = 77  # of the source: 72 ids of its tokenizer, and 5 rows for the sake of the hardware


@pytest.fixture(autouse=True)
def everything_is_captured(caplog):
    caplog.set_level("INFO")  # what rank 0 writes and others do not


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """An exported run, and the body of its export as `transformers` writes it."""
    folder = tmp_path_factory.mktemp("source")
    run = make_run(folder / "run", *SETTINGS, model="encoder", tokenizer=word_pieces(), vocab_size=ROWS)
    assert main([str(run)]) == 0
    AutoModel.from_pretrained(run / "export").save_pretrained(run / "body")
    return run


def module_of(source, folder, rows):
    """Return the module of a run with so many tokens."""
    run = make_run(folder / f"run-{rows}", *SETTINGS, model="encoder", tokenizer=word_pieces(), vocab_size=rows)
    return load_run(run)


def begin(source, module):
    run = source if (source / "run.json").exists() else source.parent
    return weights_from(
        open_source(str(source)),
        InitialWeights(module, SEED),
        settings_of(run),
        ALONE,
        tokenizer=source / "tokenizer.json",
    )


def whole(read, name, module):
    shape = module.get_parameter(name).shape
    return read(name, WEIGHT, 0, shape.numel()).reshape(shape)


def said(caplog):
    return [line for line in (record.getMessage() for record in caplog.records) if line.startswith("init_from: ")]


@pytest.mark.parametrize("export", [False, True])
@pytest.mark.parametrize("rows", [72, 75, 80])
def test_a_vocabulary_of_another_size(source, tmp_path, caplog, rows, export):
    module, theirs = module_of(source, tmp_path, rows), load_run(source)
    read, initial = begin(source / "export" if export else source, module), InitialWeights(module, SEED)
    kept = min(rows, ROWS)
    for name, parameter in module.named_parameters():
        found, fresh = whole(read, name, module), whole(initial, name, module)
        assert read.kinds(name) == {WEIGHT: parameter.shape}
        if name.startswith("model."):
            rows_of_theirs = theirs.get_parameter(name)[: kept if "bedding.weight" in name[:22] else None]
            if name == "model.head.bias":
                rows_of_theirs = rows_of_theirs[:kept]
            assert torch.equal(found, torch.cat([rows_of_theirs, fresh[len(rows_of_theirs) :]]))
    if rows > ROWS:
        assert not whole(read, "model.head.bias", module)[ROWS:].any()
        assert "init_from: rows 77 to 79 of model.embedding.weight are new and get initial values" in said(caplog)
    else:
        assert f"init_from: rows {rows} to 76 of model.head.bias stand for no token and are left out" in said(caplog)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_run_of_a_grown_tensor(grown, data):
    module, read = grown
    name = data.draw(st.sampled_from(["model.embedding.weight", "model.head.bias", CLASSIFIER]))
    total = module.get_parameter(name).numel()
    start = data.draw(st.integers(0, total))
    numel = data.draw(st.integers(0, total - start))
    expected = whole(read, name, module).reshape(-1)[start : start + numel]
    assert torch.equal(read(name, WEIGHT, start, numel), expected)


@pytest.fixture(scope="module")
def grown(source, tmp_path_factory):
    module = module_of(source, tmp_path_factory.mktemp("grown"), 80)
    return module, begin(source / "export", module)


def test_tokens_are_not_taken_away(source, tmp_path):
    module = module_of(source, tmp_path, 71)
    for place in (source, source / "export"):
        with pytest.raises(CheckpointError) as refused:
            begin(place, module)
        assert (
            "model.embedding.weight has rows for 77 tokens, 72 of which its tokenizer.json uses, the model 71; "
            f"tokens cannot be taken away; set tokenizer=file tokenizer.path={place}"
        ) in str(refused.value)
    with pytest.raises(CheckpointError, match=r"and no tokenizer.json says which of them are used, the model 71"):
        begin(source / "body", module)


def test_the_body_alone_leaves_the_head_to_the_run(source, tmp_path, caplog):
    module, theirs = module_of(source, tmp_path, ROWS), load_run(source)
    read, initial = begin(source / "body", module), InitialWeights(module, SEED)
    new = ("model.transform.", "model.head.", "sentence_classifier.")  # the pooler is the body's in BERT
    for name, _ in module.named_parameters():
        expected = whole(initial, name, module) if name.startswith(new) else theirs.get_parameter(name)
        assert torch.equal(whole(read, name, module), expected)
    head = "model.transform.dense.weight, model.transform.dense.bias, model.transform.norm.weight"
    [line] = [line for line in said(caplog) if "has no" in line]
    assert head in line and "model.head.bias" in line and CLASSIFIER in line


def test_tensors_of_the_objective_come_along_or_begin_anew(source, tmp_path, caplog):
    module = module_of(source, tmp_path, ROWS)
    assert torch.equal(whole(begin(source, module), CLASSIFIER, module), load_run(source).get_parameter(CLASSIFIER))
    assert not said(caplog)
    read = begin(source / "export", module)
    assert torch.equal(whole(read, CLASSIFIER, module), load_run(source).get_parameter(CLASSIFIER))
    assert not said(caplog)
    without = make_run(tmp_path / "without", *SETTINGS[:2], model="encoder", tokenizer=word_pieces(), vocab_size=ROWS)
    read = begin(without, module)
    assert torch.equal(whole(read, CLASSIFIER, module), whole(InitialWeights(module, SEED), CLASSIFIER, module))
    own = ", ".join(f"{part}.{kind}" for part in ("pooler.dense", "sentence_classifier") for kind in ("weight", "bias"))
    assert said(caplog) == [f"init_from: {without} has no {own}; they get initial values"]


def test_a_name_on_the_hub_is_the_files_of_its_commit(source, tmp_path, monkeypatch, caplog):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--org--name"
    shutil.copytree(source / "export", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert find_source("org/name", first=False) is None
    found = find_source("org/name", first=True)
    assert found.name == f"org/name@{commit}"
    (repository / "refs" / "main").write_text("fedcba9876543210fedcba9876543210fedcba98")  # moved on since
    module, tokenizer = module_of(source, tmp_path, ROWS), source / "tokenizer.json"
    read = weights_from(found, InitialWeights(module, SEED), settings_of(source), ALONE, tokenizer=tokenizer)
    name = "model.embedding.weight"
    assert torch.equal(whole(read, name, module), load_run(source).get_parameter(name))
    assert f"starting from the weights of {found.name}" in [record.getMessage() for record in caplog.records]
    with pytest.raises(ConfigError, match=r"init_from=org/name: no such directory, and not to be had from the Hugging"):
        find_source("org/name", first=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"model.safetensors: not a readable"):
        find_source("org/name", first=True)


def test_other_orders_are_told_from_other_weights(source, tmp_path):
    module = module_of(source, tmp_path, ROWS)
    changed = settings_of(source) | {"model.order": "pre"}
    with pytest.raises(CheckpointError, match=r"model.order is pre, that of .* post"):
        weights_from(
            open_source(str(source)), InitialWeights(module, SEED), changed, ALONE, tokenizer=source / "tokenizer.json"
        )
