"""What a run may start from is found, refused by name, and known: its network, its tokenizer, its frame."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from corpora import edit_json
from hugging_face_directories import write_released
from run_directories import GPT2_SETTINGS, TEXTS, json_of, make_run, word_pieces

from pretrain.errors import CheckpointError, ConfigError
from pretrain.export import main
from pretrain.models.decoder import DecoderConfig
from pretrain.models.encoder import EncoderConfig
from pretrain.trained.source import find_source, open_source


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", *GPT2_SETTINGS)


def test_what_a_run_may_start_from_is_found(run, tmp_path, monkeypatch):
    assert main([str(run)]) == 0
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in ("run", "./run", "run/export", str(run), "~/run"):
        for first in (True, False):
            found = find_source(source, first=first)
            assert found.name == source and found.path.samefile(run / "export" if "export" in source else run)


@pytest.mark.parametrize("name", ["runs/demp", "run/demo"])
def test_a_misspelt_run_is_told_without_asking_the_hub(run, tmp_path, monkeypatch, name):
    (tmp_path / "runs").mkdir()
    run.rename(tmp_path / "runs" / "demo")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"^init_from={name}: no such directory; did you mean runs/demo\\?$"):
        find_source(name, first=True)


NOT_THERE = "no such directory; name a run, a Hugging Face directory or, as org/name@main, a checkpoint on the hub"


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("init_from", "kind", "problem"),
    [
        ("runs/other", ConfigError, NOT_THERE),
        ("./run", ConfigError, NOT_THERE),
        ("~/run", ConfigError, NOT_THERE),
        ("/run/small", ConfigError, NOT_THERE),
        ("runs/run/log.txt", ConfigError, "neither config.json (Hugging Face) nor checkpoints (a run) in it"),
        ("runs", ConfigError, "neither config.json (Hugging Face) nor checkpoints (a run) in it"),
        ("runs/empty", CheckpointError, "no step is saved there"),
        ("runs/torn", CheckpointError, "model.safetensors: not a readable safetensors file"),
        ("runs/garbled", CheckpointError, "tokenizer.json: not a readable tokenizer"),
        ("runs/foreign", ConfigError, "config.json: model_type=bloom: is not supported"),
    ],
)
def test_what_is_not_there_or_neither_is_refused_before_anything_is_prepared(
    tmp_path, monkeypatch, first, init_from, kind, problem
):
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "runs" / "run", *GPT2_SETTINGS)
    (run / "log.txt").write_text("")
    assert main([str(run)]) == 0
    for copy in ("torn", "garbled", "foreign"):
        shutil.copytree(run / "export", tmp_path / "runs" / copy)
    Path("runs/torn/model.safetensors").write_bytes(b"torn")
    Path("runs/garbled/tokenizer.json").write_text("{")
    Path("runs/foreign/config.json").write_text('{"model_type": "bloom"}')
    Path("runs/empty/checkpoints").mkdir(parents=True)
    with pytest.raises(kind, match=re.escape(problem)) as refused:
        find_source(init_from, first=first)
    assert init_from.removeprefix("~") in str(refused.value)


SMALL = {"max_seq_len": 32, "width": 24, "layers": 1, "heads": 4}


@pytest.mark.parametrize(
    "config", [DecoderConfig(**SMALL), EncoderConfig(**SMALL), EncoderConfig(**SMALL, token_types=0)]
)
def test_what_transformers_wrote_is_known(tmp_path, config):
    tokenizer = write_released(tmp_path / "model", config, TEXTS)
    source = open_source(str(tmp_path / "model"))
    prefix, suffix = ("<s>", "</s>") if config.kind.generates else ("[CLS]", "[SEP]")
    assert (source.path, source.tokenizer) == (tmp_path / "model", tmp_path / "model" / "tokenizer.json")
    assert source.network == replace(config, mlp_width=4 * config.width)
    assert source.vocab_size == tokenizer.get_vocab_size()
    assert source.template == ([tokenizer.token_to_id(prefix)], [tokenizer.token_to_id(suffix)])
    assert source.mask == tokenizer.token_to_id("<mask>" if config.kind.generates else "[MASK]")


@pytest.mark.parametrize("export", [False, True])
def test_a_run_and_its_export_are_known_alike(tmp_path, export):
    """The embedding has more rows than the tokenizer has ids."""
    run = make_run(tmp_path / "run", model="encoder", tokenizer=word_pieces(), vocab_size=77)
    if export:
        assert main([str(run)]) == 0
    source, record = open_source(str(run / "export" if export else run)), json_of(run / "run.json")
    assert source.vocab_size == 77 and record["mask"] is None
    assert [*source.template] == record["document_frame"]
    assert (source.network.width, source.network.max_seq_len, source.network.kind.generates) == (24, 32, False)
    assert f'"[MASK]": {source.mask}' in source.tokenizer.read_text()


def test_what_a_run_named_counts(tmp_path):
    """Its tokenizer.json alone says something else."""
    named = ["tokenizer.prefix=['[SEP]']", "tokenizer.suffix=[]", "tokenizer.mask='<hide>'"]
    run = make_run(tmp_path / "run", *named, model="encoder", tokenizer=word_pieces("<hide>"))
    source, record = open_source(str(run)), json_of(run / "run.json")
    assert source.mask == record["mask"] == 0
    assert source.template == (record["document_frame"][0], []) and len(source.template[0]) == 1
    edit_json(run / "run.json", lambda record: record.pop("mask"))
    assert open_source(str(run)).mask not in (None, 0), "a run from before there was such a setting"


def test_decoders_need_no_mask_and_may_have_no_frame_that_is_known(run):
    assert main([str(run)]) == 0
    assert open_source(str(run)).mask is None
    assert open_source(str(run / "export")).template == open_source(str(run)).template == ([0], [])
    file = run / "export" / "tokenizer.json"
    file.write_text(file.read_text().replace("<|endoftext|>", "<|ends|>"))
    assert open_source(str(run / "export")).template is None


@pytest.mark.parametrize("export", [False, True])
def test_a_source_without_a_readable_tokenizer_is_refused(run, export):
    assert main([str(run)]) == 0
    directory = run / "export" if export else run
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=rf"{directory}/tokenizer.json: (not a readable|another) tokenizer"):
        find_source(str(directory), first=True)
    (directory / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=rf"{directory}: no tokenizer.json.* beside its weights"):
        _ = open_source(str(directory)).tokenizer
