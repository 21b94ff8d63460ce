"""Old pickles of tensors become safetensors, bit for bit; a pickle of anything else is refused and not run."""

import json
import pickle

import pytest
import torch
from hugging_face_directories import InMemory, write
from safetensors.torch import load_file
from small_models import VOCAB_SIZE, small_encoder

from pretrain.checkpoint.base import WEIGHT
from pretrain.hub.weights import HuggingFaceWeights
from pretrain.import_bin import main


@pytest.fixture
def old(tmp_path):
    """A BERT as it was kept in 2019: one pickle with repeated tensors, one of them transposed in memory."""
    model = small_encoder()
    directory = write(tmp_path / "old", model)
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    name = "bert.encoder.layer.0.output.dense.weight"
    tensors[name] = tensors[name].T.contiguous().T
    torch.save(tensors, directory / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    return directory, tensors, model


def test_one_file(old, capsys):
    directory, tensors, model = old
    assert main([str(directory)]) == 0
    assert capsys.readouterr().out.split() == [str(directory / "model.safetensors")]
    written = load_file(directory / "model.safetensors")
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)
    read = HuggingFaceWeights(directory)
    for name, tensor in InMemory(model).tensors.items():
        assert torch.equal(read(name, WEIGHT, 0, tensor.numel()), tensor.reshape(-1))
    assert main([str(directory)]) == 2
    assert "model.safetensors: exists, and nothing is replaced" in capsys.readouterr().err


def test_several_files_with_an_index(old):
    directory, tensors, model = old
    names = sorted(tensors)
    files = {f"pytorch_model-0000{part + 1}-of-00002.bin": names[part::2] for part in (0, 1)}
    for file, own in files.items():
        torch.save({name: tensors[name] for name in own}, directory / file)
    weight_map = {name: file for file, own in files.items() for name in own}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert main([str(directory)]) == 0
    assert not (directory / "model.safetensors").exists()
    read = HuggingFaceWeights(directory)
    for name, tensor in InMemory(model).tensors.items():
        assert torch.equal(read(name, WEIGHT, 0, tensor.numel()), tensor.reshape(-1))


def index_of(place, **more):
    names = ["bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.bias"]
    return json.dumps({"weight_map": dict.fromkeys(names, place) | more})


@pytest.mark.parametrize(
    ("index", "problem"),
    [
        ("{}", "has no weight_map from the names of tensors to those of files"),
        ('{"weight_map": ["pytorch_model.bin"]}', "has no weight_map"),
        (index_of("../old/pytorch_model.bin"), "lists '../old/pytorch_model.bin', which is no file beside it"),
        (index_of("more/pytorch_model.bin"), "lists 'more/pytorch_model.bin', which is no file beside it"),
        (index_of("pytorch_model-2.bin"), "lists 'pytorch_model-2.bin', which is no file beside it"),
        (index_of("pytorch_model.bin", other="pytorch_model.bin"), "lacks tensors that pytorch_model.bin.index.json"),
    ],
)
def test_a_damaged_index_is_refused_by_name(old, capsys, index, problem):
    directory, _, _ = old
    (directory / "more").mkdir()
    (directory / "more" / "pytorch_model.bin").write_bytes((directory / "pytorch_model.bin").read_bytes())
    (directory / "pytorch_model.bin.index.json").write_text(index)
    assert main([str(directory)]) == 4
    said = capsys.readouterr().err
    assert said.startswith(f"{directory}/pytorch_model.bin") and problem in said
    assert not list(directory.rglob("*.safetensors"))


def test_a_configuration_older_than_model_type(old, capsys):
    directory, _, _ = old
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({key: config[key] for key in config if key != "model_type"}))
    assert main([str(directory)]) == 2
    assert "config.json does not name its architecture; add --model-type, one of bart" in capsys.readouterr().err
    assert not (directory / "model.safetensors").exists()
    assert main([str(directory), "--model-type", "bert"]) == 0
    assert json.loads((directory / "config.json").read_text()) == config
    assert HuggingFaceWeights(directory).weight_shapes()["model.embedding.weight"] == (VOCAB_SIZE, 24)
    assert main([str(directory), "--model-type", "gpt2"]) == 2
    assert "--model-type=gpt2: config.json says bert; leave it out" in capsys.readouterr().err


class Trap:
    """What a hostile pickle holds: a call."""

    def __reduce__(self):
        return open, ("sprung", "w")


CONTENTS = {
    "a call": lambda file: file.write_bytes(pickle.dumps(Trap(), protocol=2)),
    "a torn file": lambda file: file.write_bytes(file.read_bytes()[:1000]),
    "a list": lambda file: torch.save([torch.ones(1)], file),
    "more than tensors": lambda file: torch.save({"model": {"weight": torch.ones(1)}, "step": 3}, file),
}
REFUSALS = {
    "a call": "not a file of tensors alone",
    "a torn file": "not a file of tensors alone",
    "a list": "holds a list, not tensors by name",
    "more than tensors": "holds more than tensors: model, step",
}


@pytest.mark.parametrize("content", CONTENTS)
def test_what_is_not_tensors_alone_is_refused(old, capsys, monkeypatch, content):
    directory, _, _ = old
    monkeypatch.chdir(directory)
    CONTENTS[content](directory / "pytorch_model.bin")
    assert main([str(directory)]) == 4
    assert REFUSALS[content] in capsys.readouterr().err
    assert not (directory / "sprung").exists()
    assert not list(directory.glob("*.safetensors"))


def test_a_directory_without_weights_is_refused(tmp_path, capsys):
    for content in (None, "{", "[]"):
        if content:
            (tmp_path / "config.json").write_text(content)
        assert main([str(tmp_path)]) == 4
        assert capsys.readouterr().err.startswith(f"{tmp_path}/config.json: ")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert main([str(tmp_path)]) == 2
    assert "pytorch_model.bin: is not there" in capsys.readouterr().err
