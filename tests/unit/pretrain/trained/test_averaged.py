"""The mean of the weights of several steps: what it is, how much of it is in memory, and what takes it."""

import json
import shutil

import numpy as np
import pytest
import torch
from run_directories import GPT2_SETTINGS, json_of, load_run, make_run
from toys import ALONE, toy_strategy

from pretrain.average import main
from pretrain.checkpoint.base import WEIGHT
from pretrain.checkpoint.fragments import FragmentReader
from pretrain.checkpoint.load import fragments_of, newest_step, restore, shapes_of
from pretrain.errors import CheckpointError, ConfigError
from pretrain.init_from import InitialWeights, weights_from
from pretrain.report.history import load as load_history
from pretrain.trained import averaged
from pretrain.trained.model import load
from pretrain.trained.source import open_source

STEPS = (7, 9, 12)


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """A run of three steps, whose weights have nothing to do with each other."""
    folder = tmp_path_factory.mktemp("steps")
    for seed, step in enumerate(STEPS, 1):
        make_run(folder / f"run{seed}", *GPT2_SETTINGS, step=step, seed=seed)
        if seed > 1:
            name = f"step-{step:08d}"
            shutil.copytree(folder / f"run{seed}" / "checkpoints" / name, folder / "run1" / "checkpoints" / name)
    return folder / "run1"


@pytest.fixture
def run(steps, tmp_path):
    """A copy, to be changed."""
    return shutil.copytree(steps, tmp_path / "run")


def weights(run, step):
    read = fragments_of(run / "checkpoints" / f"step-{step:08d}")
    shapes = read.weight_shapes()
    return {name: read(name, WEIGHT, 0, shape.numel()).numpy() for name, shape in shapes.items()}


@pytest.mark.parametrize("decay", [None, 0.6])
def test_the_mean_is_that_of_numpy_and_an_ema_that_of_its_recursion(steps, tmp_path, decay):
    averaged.average(steps, 3, tmp_path / "mean", decay)
    expected = [weights(steps, step) for step in STEPS]
    for name, found in weights(tmp_path / "mean", 12).items():
        values = [each[name].astype(np.float64) for each in expected]
        mean = np.mean(values, axis=0)
        if decay:
            mean = np.zeros_like(values[0])
            for value in values:
                mean = decay * mean + (1 - decay) * value
            mean /= 1 - decay**3
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, mean, rtol=1e-7, atol=1e-9, err_msg=name)


def test_of_the_last_two_the_first_has_no_part(steps, tmp_path):
    averaged.average(steps, 2, tmp_path / "mean")
    old, new, found = (weights(run, step) for run, step in ((steps, 9), (steps, 12), (tmp_path / "mean", 12)))
    for name in found:
        np.testing.assert_allclose(found[name], (old[name].astype(np.float64) + new[name]) / 2, rtol=1e-7, atol=1e-9)


def test_no_more_than_a_piece_of_one_tensor_is_read_at_a_time(steps, tmp_path, monkeypatch):
    reads = []
    whole = FragmentReader.__call__

    def noted(self, name, kind, start, numel):
        reads.append(numel)
        return whole(self, name, kind, start, numel)

    averaged.average(steps, 3, tmp_path / "at-once")
    monkeypatch.setattr(FragmentReader, "__call__", noted)
    monkeypatch.setattr(averaged, "PIECE", 100)
    averaged.average(steps, 3, tmp_path / "pieces")
    largest, model = max(reads), sum(value.size for value in weights(steps, 12).values())
    assert largest == 100 < model / 50
    at_once, pieces = weights(tmp_path / "at-once", 12), weights(tmp_path / "pieces", 12)
    assert all(np.array_equal(at_once[name], pieces[name]) for name in at_once)


def test_it_is_a_run_for_who_uses_weights_and_none_to_go_on_from(steps, tmp_path, capsys):
    out = tmp_path / "mean"
    assert main([str(steps), "--last", "3", "--out", str(out)]) == 0
    said = f"the mean of the weights at steps 7, 9, 12 of {steps}; no moments are in it"
    assert capsys.readouterr().out == f"{out}: {said}; evaluate, sample, export and init_from take it\n"
    assert json_of(out / "run.json")["average"] == said
    with pytest.raises(ConfigError, match=f"{out}: has no curves, it is {said}; python -m pretrain.evaluate"):
        load_history(out)
    card = load(out, device="cpu").export(tmp_path / "export") / "README.md"
    assert f"| weights | {said} |" in card.read_text()
    module, expected = load_run(out), weights(out, 12)
    for name, tensor in module.state_dict().items():
        assert name not in expected or np.array_equal(tensor.numpy().reshape(-1), expected[name])
    source, initial = open_source(str(out)), InitialWeights(load_run(steps), 5)
    read = weights_from(
        source, initial, source.settings(source.weights(ALONE)), ALONE, tokenizer=out / "tokenizer.json"
    )
    name = "model.embedding.weight"
    assert torch.equal(read(name, WEIGHT, 0, 50), torch.from_numpy(expected[name][:50]))
    newest = newest_step(out / "checkpoints", ALONE, json_of(out / "run.json")["steps"])
    with pytest.raises(CheckpointError, match=r"mean of the weights of 3 steps, without moments.*init_from"):
        restore(newest, shapes_of(module), toy_strategy()[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "mean"], "nothing is left beside it"


def test_what_cannot_be_averaged_is_refused_by_name(run, tmp_path):
    def refused(kind, said, **changed):
        with pytest.raises(kind, match=said):
            averaged.average(**{"run": run, "last": 3, "out": tmp_path / "mean", **changed})
        assert not (tmp_path / "mean").exists()

    refused(ConfigError, "--last=4: .*run has 3 saved steps", last=4)
    refused(ConfigError, "--last=1: at least 2", last=1)
    refused(ConfigError, "--ema=1: between 0 and 1", ema=1)
    refused(ConfigError, "--out=.*run: is there already", out=run)
    torn = run / "checkpoints" / "step-00000009"
    manifest, state = (torn / name for name in ("manifest.json", "state.json"))
    content = json.loads(manifest.read_text())
    manifest.write_text(manifest.read_text().replace(content["sha256"][:8], "0" * 8))
    refused(CheckpointError, "step-00000009: .*not as it was written")
    shutil.rmtree(torn)
    other = make_run(tmp_path / "other", *GPT2_SETTINGS, "model.mlp_width=72", step=9)
    shutil.copytree(other / "checkpoints" / "step-00000009", torn)
    refused(CheckpointError, "step-00000009: of another architecture")
    shutil.rmtree(torn)
    other = make_run(tmp_path / "third", "model.init_std=0.3", "model.norm_eps=1e-3", step=9)
    shutil.copytree(other / "checkpoints" / "step-00000009", torn)
    refused(CheckpointError, r"step-00000009: model.norm_eps was 0.001 there and 1e-05 at step-00000012")
    assert state.exists()
