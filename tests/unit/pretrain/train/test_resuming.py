"""Resuming: what is compared with the run that was saved, and who is refused by which name."""

from dataclasses import replace
from functools import partial

import pytest
from toys import ALONE, assert_same, state_of, take_step, toy_strategy

from pretrain.checkpoint.load import shapes_of
from pretrain.checkpoint.save import CheckpointConfig, Checkpoints
from pretrain.compose import compose
from pretrain.errors import CheckpointError, ConfigError, DataError
from pretrain.models.decoder import DecoderConfig
from pretrain.models.encoder import EncoderConfig
from pretrain.optim.adamw import AdamWConfig
from pretrain.optim.schedule import CosineSchedule, LearningRate
from pretrain.train.resuming import change_of_rate, network_defaults, network_fingerprints, resume
from pretrain.train.run_dir.base import RunDirectory

FINGERPRINTS = {"model.width": 5, "optim": "adamw", "data.seq_len": 16}


@pytest.fixture
def saved(tmp_path):
    """A toy run saved at step 3, and what its module held."""
    module, strategy = toy_strategy()
    take_step(module, strategy, 1)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(asynchronous=False), ALONE)
    checkpoints.save(3, strategy, {"tokens": 33, "resume": FINGERPRINTS})
    return state_of(module, strategy), checkpoints


def resumed(checkpoints, fingerprints=FINGERPRINTS, num_steps=9, unsaid=None):
    module, strategy = toy_strategy()
    found = resume(checkpoints, strategy, shapes_of(module), fingerprints, num_steps=num_steps, unsaid=unsaid or {})
    return found, state_of(module, strategy)


def test_nothing_saved_is_nothing_to_resume(tmp_path):
    assert resumed(Checkpoints(tmp_path, CheckpointConfig(), ALONE))[0] is None


@pytest.mark.parametrize("num_steps", [3, 9])
def test_a_run_resumes_where_it_was_saved_also_at_its_very_end(saved, num_steps):
    before, checkpoints = saved
    found, after = resumed(checkpoints, num_steps=num_steps)
    assert (found["step"], found["tokens"]) == (3, 33)
    assert_same(before, after)


@pytest.mark.parametrize(("num_steps", "said"), [(3, "is the last step of the run: nothing is left"), (9, "resuming")])
def test_a_run_that_is_over_says_so(saved, caplog, num_steps, said):
    with caplog.at_level("INFO", "pretrain"):
        resumed(saved[1], num_steps=num_steps)
    assert said in caplog.text


def test_a_run_that_would_end_before_its_checkpoint_is_refused(saved):
    with pytest.raises(ConfigError, match=r"train\.steps=2: .*step-00000003 is past it"):
        resumed(saved[1], num_steps=2)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"model.width": 6}, CheckpointError, "model.width was 5 and is now 6"),
        ({"optim": "muon"}, CheckpointError, "optim was adamw and is now muon"),
        ({"data.seq_len": 17}, DataError, "data.seq_len was 16 and is now 17"),
        ({"data.stride": 4}, DataError, "data.stride was None and is now 4"),
    ],
)
def test_what_differs_is_refused_by_name_and_by_what_it_is(saved, changed, error, words):
    with pytest.raises(error, match=words):
        resumed(saved[1], FINGERPRINTS | changed)


def test_what_is_no_longer_there_differs_too(saved):
    fewer = {key: value for key, value in FINGERPRINTS.items() if key != "data.seq_len"}
    with pytest.raises(DataError, match=r"data\.seq_len was 16 and is now None"):
        resumed(saved[1], fewer)


def test_the_learning_rate_is_compared_with_that_of_the_last_start(tmp_path):
    cfg = compose(
        [f"run.root={tmp_path}", "data=text", "data.sources.text.paths=[a]", "train.steps=50", "optim.lr=1e-3"]
    )
    run = RunDirectory.claim(cfg.run)
    run.write_config(cfg)
    same, longer = (LearningRate(1e-3, CosineSchedule(), steps) for steps in (50, 100))
    assert change_of_rate(run.path, same, 20) is None
    assert "rises from 1.01e-04 to 5.50e-04 at step 51" in change_of_rate(run.path, longer, 50)
    (run.path / "config.yaml").unlink()
    assert "is not known" in change_of_rate(run.path, longer, 50)


def test_a_resumed_run_may_name_another_family_and_have_another_dropout_but_no_other_network():
    of = partial(network_fingerprints, optim=AdamWConfig())
    network = EncoderConfig(max_seq_len=32)
    assert of(replace(network, family="electra", dropout=0.1)) == of(network)
    assert of(replace(network, embedding_width=9)) != of(network)


def test_a_step_of_before_a_setting_was_one_resumes_unless_the_setting_is_used(saved):
    unsaid = {"model.qk_norm": "none", "model.dropout": 0.0}
    found, _ = resumed(saved[1], FINGERPRINTS | {"model.qk_norm": "none"}, unsaid=unsaid)
    assert found["step"] == 3
    with pytest.raises(CheckpointError, match=r"model\.qk_norm was none and is now head"):
        resumed(saved[1], FINGERPRINTS | {"model.qk_norm": "head"}, unsaid=unsaid)


def test_what_older_steps_do_not_say_of_a_network_are_its_defaults():
    network = DecoderConfig(max_seq_len=32, width=24, heads=3, score_width=9)
    found, now = network_defaults(network), network_fingerprints(network, AdamWConfig())
    differs = {key for key in found.keys() & now.keys() if found[key] != now[key]}
    assert differs == {"model.width", "model.heads", "model.score_width"}
    assert found["model.rope_scaling"]["kind"] == "none"
