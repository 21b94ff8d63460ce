"""Facts about a cluster, and the settings of jobs: what is refused, and that the files in conf/cluster compose."""

import sys

import pytest

from launch.slurm.cluster import ClusterConfig
from launch.slurm.submit import SLURM, SlurmConfig, submit_preparation, submit_runs
from pretrain.compose import CONF, compose
from pretrain.errors import ConfigError


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "cluster").glob("*.yaml")))
def test_files_of_clusters_compose(name):
    assert compose([f"cluster={name}"], root=SLURM).cluster.gpus_per_node >= 0


TIMES = ["30", "1:30", "12:00:00", "1-12", "2-00:30", "7-00:00:00", "0", "UNLIMITED", "infinite"]
HOSTILE = ["$(touch x)", "a b", "gpu;rm", "--wrap=x", "a'b", 'a"b', "a\nb", "", "a`b`", "#"]


@pytest.mark.parametrize("value", HOSTILE)
def test_modules_and_times_have_a_strict_form(value):
    with pytest.raises(ConfigError, match=r"^cluster\.modules="):
        ClusterConfig(modules=["gcc", value])
    with pytest.raises(ConfigError, match=r"^cluster\.time="):
        ClusterConfig(time=value)


@pytest.mark.parametrize("value", ["a\nb", " ", "a\tb", "a\x00b", "a\u2028b", "a\x1b[2J"])
def test_what_sbatch_reads_is_one_line(value):
    for settings in ({"partition": value}, {"account": value}, {"options": {"comment": value}}):
        with pytest.raises(ConfigError, match=r"^cluster\.(partition|account|options\.comment)=.*must be one line"):
            ClusterConfig(**settings)
    with pytest.raises(ConfigError, match=r"^job_name="):
        SlurmConfig(cluster=ClusterConfig(), job_name=value)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"options": {"nodes": "4"}}, "cluster.options.nodes=4: is for the launcher to set"),
        ({"options": {"--qos": "x"}}, "cluster.options.--qos=x: no long option of sbatch"),
        ({"options": {"x y": "x"}}, "no long option of sbatch"),
        ({"env": {"A-B": "1"}}, "cluster.env.A-B=1: "),
        ({"env": {"A": "x\ny"}}, r"cluster.env.A='x\ny': must be one line"),
        ({"env": {"TOKEN": "hf_" + "a" * 30}}, "cluster.env.TOKEN=<redacted>: looks like a credential"),
        ({"env": {"WANDB_API_KEY": "abc"}}, "cluster.env.WANDB_API_KEY=<redacted>: looks like a credential"),
        ({"venv": "a\nb"}, "cluster.venv="),
        ({"venv": "a", "container": "b"}, "cluster.venv=a: a container brings its own Python"),
        ({"mounts": ["/data"]}, "cluster.mounts=['/data']: needs cluster.container"),
        ({"gpus_per_node": -1}, "cluster.gpus_per_node=-1"),
        ({"cpus_per_node": 0}, "cluster.cpus_per_node=0"),
    ],
)
def test_facts_that_cannot_be(settings, told):
    with pytest.raises(ConfigError) as refused:
        ClusterConfig(**settings)
    assert told in str(refused.value)


@pytest.mark.parametrize("text", ["12:00:00", "30"])
def test_times_in_files_stand_in_quotes(tmp_path, text):
    """YAML has numbers to the base of 60: 12:00:00 would be 43,200 minutes."""
    (tmp_path / "cluster").mkdir()
    file = tmp_path / "cluster" / "own.yaml"
    words = ["cluster=own", "--config-dir", str(tmp_path)]
    file.write_text(f'defaults: [slurm]\ntime: "{text}"\n')
    assert compose(words, root=SLURM).cluster.time == text
    file.write_text(f"defaults: [slurm]\ntime: {text}\n")
    with pytest.raises(ConfigError, match=r"^cluster\.time=\d+: put it in quotes"):
        compose(words, root=SLURM)


def test_a_file_of_no_cluster_is_refused(tmp_path):
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "own.yaml").write_text("partition: gpu\n")
    with pytest.raises(ConfigError, match=r"^cluster: of no kind; .* `defaults:` and `  - CHOICE` \(choices: slurm\)$"):
        compose(["cluster=own", "--config-dir", str(tmp_path)], root=SLURM)


@pytest.mark.parametrize("time", TIMES)
def test_times_as_slurm_writes_them(time):
    assert SlurmConfig(cluster=ClusterConfig(time=time), time=time).time == time


@pytest.mark.parametrize("time", ["1h", "", "1-", ":30", "1:2:3:4", "-1", "1 day", "UNLIMITED-1", "soon"])
def test_times_of_another_form_are_refused(time):
    with pytest.raises(ConfigError, match=r"^time="):
        SlurmConfig(cluster=ClusterConfig(), time=time)


def test_a_chain_is_for_clusters_that_do_not_requeue():
    with pytest.raises(ConfigError, match=r"^chain=3: .*cluster\.requeue=false"):
        SlurmConfig(cluster=ClusterConfig(), chain=3)
    assert SlurmConfig(cluster=ClusterConfig(requeue=False), chain=3).chain == 3


@pytest.mark.parametrize("fewest", [0, 3])
def test_a_job_begins_with_one_node_or_more_and_no_more_than_it_asks_for(fewest):
    with pytest.raises(ConfigError, match=rf"^min_nodes={fewest}: .*from 1 to nodes=2"):
        SlurmConfig(cluster=ClusterConfig(), nodes=2, min_nodes=fewest)
    assert [SlurmConfig(cluster=ClusterConfig(), nodes=2, min_nodes=each).min_nodes for each in (1, 2)] == [1, 2]


def submitted(words, monkeypatch, **settings):
    from launch.jobs import jobs_of

    monkeypatch.setattr(sys, "argv", [])
    submit_runs(SlurmConfig(cluster=settings.pop("cluster", ClusterConfig()), **settings), jobs_of(words))


@pytest.mark.parametrize(
    ("words", "settings", "told"),
    [
        (["pretrain", "experiment=demo"], {"nodes": 3}, "train.batch_size=4: must be a multiple"),
        (
            ["pretrain", "experiment=demo", "train.micro_batch_size=1"],
            {"nodes": 4, "min_nodes": 3},
            "min_nodes=3: a run could not go on with any size from it to 3: train.batch_size=4: must be a multiple",
        ),
        (["pretrain", "experiment=demo", "schedule.warmup_steps=2000"], {}, "schedule.warmup_steps=2000"),
        (["pretrain", "experiment=demo"], {"time": "5"}, "lead_s=300: must be shorter than the time limit, 5, or each"),
        (["pretrain", "experiment=demo"], {"time": "4:59"}, "lead_s=300"),
        (["pretrain", "experiment=demo"], {"time": "0-1", "lead_s": 3600}, "lead_s=3600"),
        (["pretrain", "experiment=demo"], {"cluster": ClusterConfig(time="00:05:00")}, "lead_s=300"),
        (["pretrain", "experiment=demo"], {"parts": 2}, "parts=2: is for pretrain.prepare"),
        (
            ["pretrain", "experiment=demo", "seed=1,2"],
            {"chain": 2, "cluster": ClusterConfig(requeue=False)},
            "chain=2: does not fit a sweep",
        ),
    ],
)
def test_what_nodes_could_not_run_is_refused_where_it_is_typed(monkeypatch, tmp_path, words, settings, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        submitted(words, monkeypatch, **settings)
    assert told in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_prints_and_writes_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    submitted(["pretrain", "experiment=demo"], monkeypatch, nodes=2, dry_run=True)
    assert "#SBATCH --nodes=2" in capsys.readouterr().out
    submit_preparation(SlurmConfig(cluster=ClusterConfig(), parts=3, dry_run=True), ["data=text"], tmp_path)
    assert "#SBATCH --array=0-2\n" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("time", ["5:01", "00:05:01", "1-0", "1:00:00", "UNLIMITED", "infinite", "0"])
def test_a_time_limit_that_is_long_enough(monkeypatch, tmp_path, capsys, time):
    monkeypatch.chdir(tmp_path)
    submitted(["pretrain", "experiment=demo"], monkeypatch, cluster=ClusterConfig(time=time), dry_run=True)
    assert f"#SBATCH --time={time}\n" in capsys.readouterr().out


def test_parts_stand_behind_what_was_typed(monkeypatch, tmp_path, capsys):
    cfg = SlurmConfig(cluster=ClusterConfig(), parts=3, dry_run=True)
    submit_preparation(cfg, ["data=text", "--config-dir", "own"], tmp_path)
    line = capsys.readouterr().out.splitlines()[-2]
    assert line.endswith('data=text --config-dir own data.prepare.parts=3 data.prepare.part="$SLURM_ARRAY_TASK_ID"')


def test_without_slurm_the_error_says_so(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="sbatch: not found; submit from a login node"):
        submitted(["pretrain", "experiment=demo", "run.name=x"], monkeypatch)
