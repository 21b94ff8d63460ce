"""A command line, a folder of one's own, and what is shown of both."""

import pytest

from finetune.config import FINETUNE
from pretrain.compose import compose, compose_run
from pretrain.errors import ConfigError
from pretrain.train.run_dir.base import RunDirectory


def shown(capsys, *words) -> str:
    """Return what a command prints instead of running."""
    with pytest.raises(SystemExit) as ended:
        compose(words)
    assert ended.value.code == 0
    return capsys.readouterr().out


def own(folder, group, name, text):
    (folder / group).mkdir(parents=True, exist_ok=True)
    (folder / group / f"{name}.yaml").write_text(text, encoding="utf-8")
    return ["--config-dir", str(folder)]


@pytest.mark.parametrize("name", ["own", "my own", "own, [1] = {é}", "it's", 'a "b" \\', "介绍", "${x}", "a:b#c"])
def test_a_folder_has_any_name(tmp_path, name):
    words = own(tmp_path / name, "experiment", "mine", "# @package _global_\nseed: 9\n")
    assert compose(["experiment=mine", *words]).seed == 9


def test_options_stand_anywhere_and_the_last_of_a_setting_wins(tmp_path):
    words = own(tmp_path, "experiment", "mine", "# @package _global_\nseed: 9\n")
    assert compose(["seed=1", *words, "experiment=mine", "seed=2", "seed=3"]).seed == 3


def test_a_file_may_refer_to_settings_and_repeat_itself(tmp_path):
    text = "\ufeff# @package _global_\nrun: &r {name: a, root: '${run.name}/${tracker.progress}'}\nseed: 4\n"
    cfg = compose(["experiment=mine", *own(tmp_path, "experiment", "mine", text)])
    assert (cfg.run.root, cfg.seed) == ("a/True", 4)
    text = "defaults: [decoder]\nlayers: &n 3\nheads: *n\nwidth: 24\n"
    assert compose(["model=small", *own(tmp_path, "model", "small", text)]).model.heads == 3


@pytest.mark.parametrize(
    ("group", "name", "words"),
    [
        ("experiment", "demo", ["experiment=demo"]),
        ("model", "decoder", ["model=decoder"]),
        (".", "pretrain_schema", []),
    ],
)
def test_a_file_may_not_have_the_name_of_one_of_ours(tmp_path, group, name, words):
    """It would be passed over in silence, or stand for a class."""
    with pytest.raises(ConfigError, match="give the file another name"):
        compose([*words, *own(tmp_path, group, name, "# @package _global_\nseed: 9\n")])


def test_a_file_that_exists_outside_is_not_reached(tmp_path):
    (tmp_path / "outside.yaml").write_text("# @package _global_\nseed: 9\n")
    words = own(tmp_path / "own", "experiment", "mine", "# @package _global_\nseed: 9\n")
    with pytest.raises(ConfigError, match=r"leads out of the folder"):
        compose(["experiment=../../outside", *words])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("# @package run\nname: x\n", "mine.yaml:1: @package run: the keys of an experiment are those of the root"),
        (
            "# @package _global_\noptim: {lrr: 1}\n",
            "mine.yaml:2: optim.lrr: no such setting; did you mean optim.lr",
        ),
        ("# @package _global_\ndefaults: [mine]\n", "in a circle"),
        ("# @package _global_\nseed: [1\n", "mine.yaml:3: cannot be read as YAML"),
        ("# @package _global_\nmodel: null\n", "model: required and not given"),
        (
            "# @package _global_\ndefaults: [override /optim: null]\noptim: {lr: 1}\n",
            "optim: of no kind; its file has to",
        ),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path, text, told):
    with pytest.raises(ConfigError) as refused:
        compose(["experiment=mine", *own(tmp_path, "experiment", "mine", text)])
    assert told in str(refused.value)


def test_no_folder_is_told():
    with pytest.raises(ConfigError, match="--config-dir nowhere: no such folder"):
        compose(["--config-dir", "nowhere"])


def test_what_is_shown_composes_again_and_holds_no_secret(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "S3CRETS3CRET")
    words = ["run.root=${oc.env:MY_TOKEN}", "init_from='https://me:S3CRETS3CRET@host'", "train.steps=7"]
    for told in (shown(capsys, "--cfg", "job", *words), shown(capsys, "--cfg=job", "--resolve", *words)):
        assert "S3CRET" not in told and "init_from: https://<redacted>@host" in told and "steps: 7" in told
    assert "${data.seq_len}" in shown(capsys, "--cfg", "job") and "${" not in shown(capsys, "--cfg", "job", "--resolve")
    text = "# @package _global_\n" + shown(capsys, "--cfg", "job", "train.steps=7")
    assert compose(["experiment=again", *own(tmp_path, "experiment", "again", text)]) == compose(["train.steps=7"])


def test_help_lists_the_choices_of_ones_own_too(capsys, tmp_path):
    words = own(tmp_path, "model", "tiny", "defaults: [decoder]\n")
    assert "\nmodel: bart_base, " in shown(capsys, "--help", *words) and " tiny" in shown(capsys, "-h", *words)


def test_a_run_of_another_program_and_no_run_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="not a run directory"):
        compose_run(tmp_path)
    cfg = compose([f"run.root={tmp_path}"])
    run = RunDirectory.claim(cfg.run)
    run.write_config(cfg)
    with pytest.raises(ConfigError, match="a run of python -m pretrain"):
        compose_run(run.path, FINETUNE)
    with pytest.raises(ConfigError, match=r"^optim\.lrr: no such setting; did you mean optim\.lr"):
        compose_run(run.path, overrides=["optim.lrr=1"])
    config = run.path / "config.yaml"
    config.write_text(config.read_text().replace("beta1:", "lrr: 1\n  beta1:"))
    with pytest.raises(ConfigError, match=r"optim\.lrr: no such setting; did you mean optim\.lr"):
        compose_run(run.path)
