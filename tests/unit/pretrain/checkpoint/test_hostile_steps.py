"""Steps whose manifest agrees with files that lie or try to run code: refused, and nothing of them is run."""

import hashlib
import json
import pickle
from pathlib import Path

import pytest
from corpora import edit_json
from toys import ALONE, ToyObjective, take_step, toy_strategy

from pretrain.checkpoint.load import newest_step, restore, shapes_of
from pretrain.checkpoint.save import CheckpointConfig, Checkpoints
from pretrain.errors import CheckpointError


class Touches:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def step(tmp_path):
    module, strategy = toy_strategy()
    take_step(module, strategy, seed=1)
    checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointConfig(asynchronous=False), ALONE)
    checkpoints.save(1, strategy, {"tokens": 11})
    return newest_step(checkpoints.directory, ALONE)


def forge(step: Path, content: bytes) -> None:
    """Put other bytes in place of the fragments, with the hash and size that the manifest wants."""
    [file] = step.glob("*.safetensors")
    file.write_bytes(content)

    def list_it(manifest):
        entry = manifest["files"][file.name]
        manifest["files"][file.name] = {**entry, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}

    edit_json(step / "manifest.json", list_it)


def with_header(change) -> bytes:
    """Return a file of one tensor whose header was changed."""
    header = {"weight/model.scale/0": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}
    change(header)
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + bytes(24)


LIES = {
    "a header longer than memory": (2**62).to_bytes(8, "little") + b"{}" + bytes(24),
    "a header longer than the file": (2**20).to_bytes(8, "little") + b"{}" + bytes(24),
    "tensors that overlap": with_header(
        lambda header: header.update({"weight/model.head/0": {"dtype": "F32", "shape": [3], "data_offsets": [4, 16]}})
    ),
    "a tensor beyond the file": with_header(
        lambda header: header["weight/model.scale/0"].update(shape=[2**40], data_offsets=[0, 2**42])
    ),
    "no header": b"",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_safetensors_file_that_lies_is_refused_and_its_size_is_not_allocated(step, lie):
    forge(step, LIES[lie])
    with pytest.raises(CheckpointError, match=r"\.safetensors: (not a readable safetensors file|no weight/)"):
        restore(step, shapes_of(ToyObjective()), toy_strategy()[1])


def test_a_pickle_in_place_of_fragments_is_refused_and_never_run(step, tmp_path):
    forge(step, pickle.dumps(Touches(tmp_path / "touched")))
    with pytest.raises(CheckpointError, match=r"\.safetensors: not a readable safetensors file"):
        restore(step, shapes_of(ToyObjective()), toy_strategy()[1])
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "state.pkl"])
def test_a_pickle_beside_the_fragments_is_never_read(step, tmp_path, name):
    content = pickle.dumps(Touches(tmp_path / "touched"))
    (step / name).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    entry = {"sha256": digest, "size": len(content)}
    edit_json(step / "manifest.json", lambda manifest: manifest["files"].update({name: entry}))
    restore(step, shapes_of(ToyObjective()), toy_strategy()[1])
    assert not (tmp_path / "touched").exists()
