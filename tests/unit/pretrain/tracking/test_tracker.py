"""The fan-out, its configuration, and what leaves the process."""

import json
import logging
import os
import threading

import pytest
import wandb
from hydra import compose, initialize
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

import pretrain.tracking.tensorboard_sink
from pretrain.errors import ConfigError
from pretrain.tracking.background import BackgroundSink
from pretrain.tracking.base import Sample, Tracker, scalars
from pretrain.tracking.local_tracker import TrackerConfig
from pretrain.tracking.tensorboard_sink import TensorBoardConfig
from pretrain.tracking.wandb_sink import WandbConfig, WandbMode


class Memory:
    """A sink that keeps what it gets."""

    def __init__(self):
        self.records, self.samples, self.exit_code = [], [], None

    def log(self, record):
        self.records.append(record)

    def sampled(self, step, samples):
        self.samples.append((step, samples))

    def close(self, exit_code):
        self.exit_code = exit_code


class Broken:
    """A sink that fails at everything."""

    def log(self, record):
        raise OSError("gone")

    def close(self, exit_code):
        raise OSError("gone")


def test_a_broken_mirror_costs_one_warning_and_nothing_else(caplog):
    truth, good = Memory(), Memory()
    tracker = Tracker(truth, [Broken(), good])
    for step in range(3):
        tracker.log({"step": step, "split": "train"})
    tracker.close(85)
    assert len(truth.records) == len(good.records) == 3
    assert truth.exit_code == good.exit_code == 85
    assert [record.message for record in caplog.records] == ["Broken stopped (gone); metrics.jsonl is still written"]


def test_a_broken_truth_fails_the_run():
    with pytest.raises(OSError, match="gone"):
        Tracker(Broken(), [Memory()]).log({"step": 1, "split": "train"})


def test_build_writes_lines_and_a_resumed_run_continues_them(tmp_path, capsys):
    def run(start, end):
        tracker = TrackerConfig().build(run_dir=tmp_path, run_name="r", total_steps=6, config={}, start_step=start)
        for step in range(start, end + 1):
            if step > start or start == 0:
                tracker.log({"step": step, "split": "train", "loss": 1.0 * step, "tokens": step})
        tracker.close(0)

    run(0, 2)  # killed before any checkpoint, so begun again
    run(0, 5)
    run(3, 6)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 3, 4, 5, 6]
    assert "step 6/6  loss 6.0000" in capsys.readouterr().out


def test_background_sink_delivers_in_order_and_closes():
    memory = Memory()
    sink = BackgroundSink("mirror", lambda: memory, close_timeout_s=30)
    for step in range(100):
        sink.log({"step": step})
    sink.close(5)
    assert [record["step"] for record in memory.records] == list(range(100))
    assert memory.exit_code == 5


def test_samples_reach_every_sink_also_in_the_background():
    direct, behind = Memory(), Memory()
    tracker = Tracker(direct, [BackgroundSink("mirror", lambda: behind, close_timeout_s=30)])
    samples = [Sample("a", "b"), Sample("a", "c")]
    tracker.sampled(3, samples)
    tracker.close(0)
    assert direct.samples == behind.samples == [(3, samples)]


def test_background_sink_that_hangs_holds_up_nothing(caplog):
    release = threading.Event()
    sink = BackgroundSink("mirror", lambda: release.wait() and Memory(), close_timeout_s=0.05, capacity=3)
    for step in range(10):
        sink.log({"step": step})
    sink.close(0)
    release.set()
    assert [record.message for record in caplog.records] == [
        "mirror did not finish within 0.05 s; training is not affected, metrics.jsonl has everything"
    ]


def test_background_sink_that_fails_warns_once(caplog):
    with caplog.at_level(logging.WARNING):
        sink = BackgroundSink("mirror", Broken, close_timeout_s=30, capacity=3)
        for step in range(10):
            sink.log({"step": step})
        sink.close(0)
        sink.log({"step": 11})
    assert [record.message for record in caplog.records] == [
        "mirror stopped: gone; training is not affected, metrics.jsonl has everything"
    ]


def test_scalars_are_named_by_split_and_unknown_values_left_out():
    record = {"step": 3, "split": "validation", "loss": 1.5, "mfu": None, "note": "text", "tokens": 7, "flag": True}
    assert scalars(record) == {"eval/loss": 1.5, "eval/tokens": 7}
    assert scalars({"step": 3, "split": "train", "loss": 1.5}) == {"train/loss": 1.5}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"entity": "0123456789" * 4}, "tracker.entity=<redacted>: looks like a credential; set WANDB_API_KEY"),
        ({"tags": ["a", "hf_" + "a1B2" * 8]}, r"tracker.tags\[1\]=<redacted>"),
        ({"init_timeout_s": 0.0}, "tracker.init_timeout_s=0.0: must be positive"),
    ],
)
def test_bad_wandb_fields_are_refused_and_secrets_not_repeated(fields, message):
    with pytest.raises(ValueError, match=message) as refused:
        WandbConfig(**fields)
    assert "0123456789" not in str(refused.value) and "a1B2" not in str(refused.value)


REFUSED = [
    ({"tags": ["ok", "x" * 65]}, {}, r"tracker\.tags\[1\]='x+': has 65 characters, and W&B takes 1 to 64"),
    ({"tags": [""]}, {}, r"tracker\.tags\[0\]='': has 0 characters"),
    ({"project": ""}, {}, r"tracker\.project='': has 0 characters"),
    ({"project": "p" * 129}, {}, r"tracker\.project='p+': has 129 characters, and W&B takes 1 to 128"),
    ({"project": "a#b:c"}, {}, r"tracker\.project='a#b:c': W&B refuses '#' and ':'"),
    ({"entity": "team/project"}, {}, r"tracker\.entity='team/project': W&B refuses '/'"),
    ({"group": "g" * 129}, {}, r"tracker\.group='g+': has 129"),
    ({}, {"TAGS": f"ok,{'x' * 65}"}, r"WANDB_TAGS='x+': has 65"),
    ({}, {"TAGS": "a,,b"}, r"WANDB_TAGS='': has 0"),
    ({}, {"RUN_GROUP": "g" * 129}, r"WANDB_RUN_GROUP='g+': has 129"),
    ({}, {"ENTITY": "a b"}, r"WANDB_ENTITY='a b': W&B refuses ' '"),
    ({}, {"JOB_TYPE": "j" * 65}, r"WANDB_JOB_TYPE='j+': has 65"),
]


@pytest.fixture
def no_wandb_variables(monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(("fields", "environment", "message"), REFUSED)
def test_what_wandb_would_refuse_is_refused_before_the_run(
    monkeypatch, no_wandb_variables, fields, environment, message
):
    for name, value in environment.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    with pytest.raises(ConfigError, match=message):
        WandbConfig(**fields, wandb_mode=WandbMode.offline).check_run("run", {})
    WandbConfig(**fields, wandb_mode=WandbMode.disabled).check_run("run", {})
    TrackerConfig().check_run("r" * 1000, {})


def test_a_run_is_refused_by_its_name_and_by_its_size(no_wandb_variables):
    WandbConfig().check_run("r" * 128, {})
    with pytest.raises(ConfigError, match=r"run\.name='r+': has 129 characters"):
        WandbConfig().check_run("r" * 129, {})
    with pytest.raises(ConfigError, match=r"bytes: W&B takes 15,000,000 bytes of configuration"):
        WandbConfig().check_run("run", {"paths": ["/a/path/of/thirty/characters/"] * 500_000})


def test_what_a_setting_overrides_is_not_looked_at(monkeypatch, no_wandb_variables):
    for name in ("TAGS", "RUN_GROUP", "ENTITY"):
        monkeypatch.setenv(f"WANDB_{name}", "/" * 129)
    WandbConfig(tags=["t" * 64], group="g" * 128, entity="e").check_run("run", {})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("tags", [tag]) for tag in ("", "t", "t" * 64, "t" * 65, "ł" * 64, "ł" * 65, "a/b: c, d")),
        *(("project", name) for name in ("p", "p" * 128, "p" * 129, "a b", "ł.-_", *(f"a{c}b" for c in "/\\#?%:,;@"))),
    ],
)
def test_the_limits_are_those_of_its_client(no_wandb_variables, key, value):
    def refuses(act):
        try:
            act()
        except Exception:
            return True
        return False

    name = {"tags": "run_tags"}.get(key, key)
    theirs = refuses(lambda: wandb.Settings(**{name: value}))
    assert refuses(lambda: WandbConfig(**{key: value}).check_run("run", {})) == theirs


def test_every_choice_composes_into_its_class():
    ConfigStore.instance().store(name="tracker_root", node={"defaults": ["_self_", {"tracker": "local"}]})
    with initialize(version_base="1.3", config_path=None):
        for overrides, expected in [
            ([], TrackerConfig()),
            (["tracker=tensorboard", "tracker.progress=false"], TensorBoardConfig(progress=False)),
            (["tracker=wandb", "tracker.wandb_mode=offline"], WandbConfig(wandb_mode=WandbMode.offline)),
        ]:
            config = compose("tracker_root", overrides)
            assert OmegaConf.to_object(config.tracker) == expected


def test_a_missing_tensorboard_is_refused_before_training(monkeypatch):
    monkeypatch.setattr(pretrain.tracking.tensorboard_sink, "find_spec", lambda name: None)
    config = OmegaConf.structured(TensorBoardConfig)
    with pytest.raises(ConfigError, match=r'pip install "headwater\[tensorboard\]"'):
        OmegaConf.to_object(config)
