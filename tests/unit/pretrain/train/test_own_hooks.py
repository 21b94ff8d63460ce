"""Hooks of a user's own: how their settings are read and refused, how they are called, and what they may ask for."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rank_threads import on_threads
from toys import ALONE

from finetune.config import FINETUNE
from pretrain.compose import PRETRAIN, compose
from pretrain.errors import ConfigError
from pretrain.registry import register
from pretrain.train.own_hooks import Hook, HookConfig, OwnHooks, hook_configs


@register("hook", "thermometer")
@dataclass(kw_only=True)
class ThermometerConfig(HookConfig):
    """For the tests below."""

    device: str  # which is read
    factor: float = 1.0  # degrees of a unit
    every: list[int] = field(default_factory=list)  # steps

    def build(self):
        return Thermometer()


class Thermometer(Hook):
    """Notes what it is called with."""

    def __init__(self, **values):
        self.values, self.seen = values, []

    def logged(self, record):
        self.seen.append(record)
        return self.values

    def evaluated(self, record):
        self.seen.append(record)

    def saved(self, step, path, best):
        self.seen.append((step, path, best))


class Failing(Hook):
    def end(self, exit_code):
        raise LookupError("no such file")


REQUIRED = {PRETRAIN: [], FINETUNE: ["task=classification", "task.train=a", "task.validation=b", "init_from=c"]}


@pytest.mark.parametrize("root", [PRETRAIN, FINETUNE])
@pytest.mark.parametrize(
    "words",
    [
        ["hooks.thermometer.device=cpu", "hooks.thermometer.factor=2"],
        ["hooks={thermometer:{device:cpu,factor:2}}"],
        ["+hooks.thermometer.device=cpu", "++hooks.thermometer.factor=2"],
    ],
)
def test_hooks_are_set_by_name_and_typed(root, words):
    cfg = compose([*REQUIRED[root], *words], root)
    assert cfg.hooks == {"thermometer": {"device": "cpu", "factor": 2}}, "plain, so that a run is read without plugins"
    assert hook_configs(cfg.hooks) == {"thermometer": ThermometerConfig(device="cpu", factor=2.0)}


def test_a_file_of_the_users_own_sets_hooks_too(tmp_path):
    (tmp_path / "experiment").mkdir()
    own = "# @package _global_\nhooks:\n  thermometer:\n    device: gpu\n"
    (tmp_path / "experiment" / "own.yaml").write_text(own)
    cfg = compose(["--config-dir", str(tmp_path), "experiment=own", "hooks.thermometer.every=[1,2]"])
    assert hook_configs(cfg.hooks)["thermometer"] == ThermometerConfig(device="gpu", every=[1, 2])


@pytest.mark.parametrize(
    ("hooks", "refusal"),
    [
        ({"thermometr": {}}, r"hooks=thermometr: no such hook; did you mean thermometer\? \(there are .*thermometer"),
        ({"thermometer": {"devise": 1}}, r"hooks\.thermometer\.devise: no such setting; did you mean device\?"),
        ({"thermometer": {"device": "a", "factor": "hot"}}, r"hooks\.thermometer\.factor: takes a number"),
        ({"thermometer": {"device": [1]}}, r"hooks\.thermometer\.device: "),
        ({"thermometer": 3}, r"hooks\.thermometer=3: takes settings, hooks\.thermometer\.KEY=VALUE"),
        ({"thermometer": None}, r"hooks\.thermometer\.device: "),  # required
        ({"thermometer": {"device": "${oc.env:HOME}"}}, r"\$\{oc\.env:HOME\}"),
    ],
)
def test_other_hooks_and_settings_are_refused_by_name(hooks, refusal):
    with pytest.raises(ConfigError, match=refusal):
        hook_configs(hooks)


@pytest.mark.parametrize("root", [PRETRAIN, FINETUNE])
def test_they_are_refused_before_a_run_begins(root):
    cfg = compose([*REQUIRED[root], "hooks.thermometr.device=cpu"], root)
    with pytest.raises(ConfigError, match="no such hook"):
        cfg.check_start(ranks=1, device_type="cpu")


def test_values_join_the_record_under_the_name_of_their_hook():
    hooks = {"one": Thermometer(loss=9.5, count=2), "other": Thermometer()}
    own = OwnHooks(hooks, ALONE)
    record = {"step": 3, "split": "train", "loss": 1.5}
    assert own.logged(record) == {**record, "one/loss": 9.5, "one/count": 2}
    assert own.evaluated(record) == record
    own.saved(3, Path("step-00000003"), True)
    assert hooks["one"].seen == hooks["other"].seen == [record, record, (3, Path("step-00000003"), True)]


@pytest.mark.parametrize("value", ["hot", None, True, [1]])
def test_values_that_are_no_numbers_are_refused(value):
    with pytest.raises(ConfigError, match=r"hooks: one/t=.*: records hold numbers"):
        OwnHooks({"one": Thermometer(t=value)}, ALONE).logged({"step": 3})


def test_an_error_says_of_which_hook_it_is():
    with pytest.raises(LookupError, match="no such file") as raised:
        OwnHooks({"one": Thermometer(), "other": Failing()}, ALONE).end(0)
    assert raised.value.__notes__ == ["raised by the hook 'other' of this run, in end()"]


def test_an_error_at_the_end_does_not_hide_why_the_run_ended(caplog):
    own = OwnHooks({"one": Failing()}, ALONE)
    own.end(85)
    assert "a hook failed at the end of the run" in caplog.text and "no such file" in caplog.text


def test_what_one_rank_asks_for_all_ranks_do(caplog):
    def body(world):
        own = OwnHooks({"one": Hook()}, world)
        before = own.stop_run()
        if world.rank == 1:
            own.stop("it is late")
            own.stop("and dark")
        return before, own.stop_run()

    with caplog.at_level(logging.INFO):
        assert on_threads(3, body) == [(False, True)] * 3
    assert {*caplog.messages} == {"the run ends early, as hooks ask: it is late"}


def test_without_hooks_ranks_agree_on_nothing():
    assert not OwnHooks({}, None).stop_run()
