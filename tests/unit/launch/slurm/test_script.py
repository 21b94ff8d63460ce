"""Job scripts: as they are meant to be, word for word, and as bash runs them with hostile settings."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from launch.slurm.cluster import ClusterConfig, ContainerRuntime
from launch.slurm.script import BODY, Shape, Task, module_script, run_script

GOLDEN = Path(__file__).with_name("golden")
CWD = Path("/shared/my project")
RESTARTS = {"requeue": True, "max_restarts": 100, "max_idle_starts": 3}

GPUS = ClusterConfig(
    partition="h100",
    account="nlp@lab",
    gpus_per_node=8,
    cpus_per_node=96,
    time="1-00:00:00",
    options={"qos": "high", "exclusive": "", "mem": "0"},
    modules=["cuda/12.8", "gcc"],
    venv="/shared/ada's envs/headwater",
    env={"NCCL_SOCKET_IFNAME": "ib0", "NCCL_DEBUG": "WARN"},
)
APPTAINER = ClusterConfig(
    partition="gpu", gpus_per_node=4, options={"gres": "gpu:a100:4"}, container="/images/hw.sif", mounts=["/data"]
)
PYXIS = ClusterConfig(
    gpus_per_node=8,
    requeue=False,
    container="registry#team/headwater:1",
    container_runtime=ContainerRuntime.pyxis,
    mounts=["/data:/data", "/scratch"],
)


def one_run():
    shape = Shape(name="llama", nodes=4, nproc=8, lead_s=300, **RESTARTS)
    task = Task(run=Path("runs/llama"), program=["pretrain", "experiment=llama_1b", "run.name=llama"])
    return run_script(GPUS, shape, [task], CWD)


def sweep():
    shape = Shape(name="demo", nproc=4, time="02:00:00", lead_s=120, array="0-1%1", **RESTARTS)
    tasks = [
        Task(run=Path(f"runs/demo-seed-{seed}"), program=["finetune", "task=qa", f"seed={seed}"]) for seed in (0, 1)
    ]
    return run_script(APPTAINER, shape, tasks, CWD)


def chained():
    shape = Shape(name="bert", nodes=2, nproc=8, lead_s=600, max_restarts=100, max_idle_starts=3)
    return run_script(PYXIS, shape, [Task(run=Path("/runs/bert"), program=["pretrain"])], CWD)


def parts():
    shape = Shape(name="prepare-parts", gpus=False, array="0-15")
    part = "data.prepare.part="
    words = ["pretrain.prepare", "data=jsonl", "data.prepare.parts=16", part, "--config-dir", "own"]
    return module_script(GPUS, shape, words, CWD, numbered=part)


@pytest.mark.parametrize("write", [one_run, sweep, chained, parts], ids=lambda write: write.__name__)
def test_scripts_are_word_for_word(write):
    script = write()
    expected = (GOLDEN / f"{write.__name__}.sh").read_text()
    assert script.removesuffix(BODY.read_text()) == expected
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""


def test_a_job_that_can_do_with_fewer_nodes_runs_on_as_many_as_can_share_a_step(tmp_path):
    shape = Shape(name="x", nodes=5, node_counts=[5, 3, 2], **RESTARTS)
    fewer = {
        "5": [],
        "4": ["--nodes=3", "--ntasks=3", "--relative=0"],
        "3": [],
        "2": [],
    }
    for given, options in fewer.items():
        (folder := tmp_path / given).mkdir()
        script = run_script(ClusterConfig(), shape, [Task(run=folder / "run", program=["x"])], folder)
        assert ["--nodes=2-5"] in directives(script)
        words = executed(script, folder, SLURM_JOB_NUM_NODES=given)["command"]
        assert [word for word in words if word.startswith(("--nodes", "--ntasks=", "--relative"))] == options


def test_paths_begin_at_home_or_where_the_job_was_submitted(tmp_path):
    cluster = ClusterConfig(container="~/hw.sif", mounts=["~/data:/data"])
    called = executed(module_script(cluster, Shape(name="x"), ["x"], tmp_path), tmp_path)
    assert called["command"][-5:] == [f"--bind={Path.home()}/data:/data", f"{Path.home()}/hw.sif", "python3", "-m", "x"]
    assert "source " + str(Path.home() / "env/bin/activate") in module_script(
        ClusterConfig(venv="~/env"), Shape(name="x"), ["x"], tmp_path
    )
    assert "docker://image" in module_script(ClusterConfig(container="docker://image"), Shape(name="x"), [], tmp_path)
    (tmp_path / "env" / "bin").mkdir(parents=True)
    (tmp_path / "env" / "bin" / "activate").write_text("export ACTIVE=yes")
    shutil.rmtree(tmp_path / "commands")
    called = executed(module_script(ClusterConfig(venv="env"), Shape(name="x"), ["x"], tmp_path), tmp_path)
    assert called["env"]["ACTIVE"] == "yes"


def test_without_environment_the_python_that_submits_runs():
    script = run_script(ClusterConfig(), Shape(name="x", **RESTARTS), [Task(run=Path("r"), program=["pretrain"])], CWD)
    assert f"python={shlex.quote(sys.executable)}\n" in script


FAKE = """#!{python}
import json, os, pathlib, sys
words = {{"command": sys.argv, "env": dict(os.environ), "cwd": os.getcwd()}}
pathlib.Path({folder!r}, pathlib.Path(sys.argv[0]).name + ".json").write_text(json.dumps(words))
"""
HOSTILE = [
    "$(touch canary)",
    "`touch canary`",
    "'; touch canary; '",
    '"; touch canary; "',
    "a b\tc  *  ~ $HOME ${IFS} \\ ! # & | > canary",
    "two\nlines; touch canary",
    "); touch canary; (",
]


def executed(script, folder, **variables):
    """Run a script with commands in place of Slurm's that write down how they were called; return those of srun."""
    commands = folder / "commands"
    commands.mkdir()
    for name in ("srun", "scontrol", "squeue"):
        (commands / name).write_text(FAKE.format(python=sys.executable, folder=str(commands)))
        (commands / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", **variables}
    path = f"{commands}:{os.environ['PATH']}"
    done = subprocess.run(["bash"], input=script, text=True, capture_output=True, env=slurm | {"PATH": path})
    assert done.returncode == 0, done.stderr
    return json.loads((commands / "srun.json").read_text())


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("array", ["", "0-1"])
def test_whatever_settings_hold_reaches_the_program_and_no_shell(tmp_path, hostile, array):
    one_line = hostile.replace("\n", " ").replace("\t", " ")
    folder = tmp_path / one_line
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "activate").write_text("")
    cluster = ClusterConfig(venv=str(folder), env={"FREE": one_line})
    run = folder / "runs" / hostile
    tasks = [Task(run=run, program=["pretrain", f"data.x={hostile}", hostile])] * (2 if array else 1)
    script = run_script(cluster, Shape(name="x", array=array, **RESTARTS), tasks, folder)
    called = executed(script, tmp_path, SLURM_ARRAY_TASK_ID="1")
    assert called["command"][-6:] == ["--", "python", "-m", "pretrain", f"data.x={hostile}", hostile]
    assert called["command"][called["command"].index("--logs") + 1] == f"{run}/ranks"
    assert (called["env"]["FREE"], called["cwd"]) == (one_line, str(folder))
    assert list(tmp_path.rglob("canary*")) == []
    assert not Path("canary").exists()


VALUES = {  # of options of sbatch, from its manual
    "constraint": ["intel&gpu", "[rack1|rack2|rack3]", "[(knl&snc4&flat)*4&haswell*1]", "graphics*4", "a100|h100"],
    "mem": ["0", "512K", "64000M", "64G", "2T"],
    "mem-per-cpu": ["4G"],
    "gres": ["gpu:h100:8", "gpu:a100_3g.20gb:1,shard:2", "gpu:kepler:2,craynetwork:1", "NONE"],
    "gpus-per-node": ["h100:8", "volta:3,kepler:5"],
    "nodelist": ["n[1-4,7]", "a01,b[02-04]"],
    "exclude": ["n[1-4],m[01-20]"],
    "qos": ["high", "gpu+long", "it's ours"],
    "reservation": ["root_7", "a,b"],
    "mail-user": ["ada+slurm@lab.example.org"],
    "mail-type": ["END,FAIL,TIME_LIMIT_80"],
    "licenses": ["matlab@slurmdb:2", "foo:4,bar", "foo:4|bar:2"],
    "begin": ["now+1hour", "2030-01-20T12:34:00", "16:00"],
    "comment": ["it's \"ours\" # not 'theirs'", "\\", 'a\\"b', "日本 łódź", "50 % of $HOME", "-- --wrap=x"],
    "time-min": ["1-12", "30"],
    "exclusive": ["", "user"],
    "distribution": ["block:cyclic,Pack"],
    "nice": ["100"],
    "hint": ["nomultithread"],
}
NAMES = [
    "plain",
    "two words",
    "介绍 β",
    "it's",
    'a "b" c\\',
    "$(touch canary)",
    "`touch canary`",
    "} touch canary",
    "# x",
    "-x",
]


def directives(script):
    """Return the options of sbatch in a script, read as a shell would: it has the same words, quotes and comments."""
    lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
    return [shlex.split(line, comments=True) for line in lines]


def read_by_sbatch(script, folder):
    """Return the options that Slurm's own command finds in a script; it stops where it would need a controller."""
    (folder / "job.sh").write_text(script)
    (folder / "slurm.conf").write_text("ClusterName=x\nSlurmctldHost=localhost\nSlurmctldPort=1\nNodeName=n\n")
    words = ["sbatch", "-vvv", "--test-only", "job.sh"]
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
    own = plain | {"SLURM_CONF": str(folder / "slurm.conf")}
    found = []
    with subprocess.Popen(words, cwd=folder, stderr=subprocess.PIPE, env=own, text=True) as process:
        for line in process.stderr:
            assert "error: Invalid" not in line and "unrecognized" not in line, line
            found += re.findall(r'argument "(.*)"$', line)
            if "end of defined options" in line:
                break
        process.kill()
    return found


def with_options(options, name="x"):
    cluster = ClusterConfig(partition="a,b", account="Ä b", gpus_per_node=2, options=options)
    tasks = [Task(run=Path("r"), program=["pretrain"])] * 2
    return run_script(cluster, Shape(name=name, array="0-1", lead_s=60, time="1-2:3", **RESTARTS), tasks, CWD)


def test_every_value_reaches_sbatch_as_it_is(tmp_path):
    found = []
    for number in range(max(map(len, VALUES.values()))):
        options = {name: values[number % len(values)] for name, values in VALUES.items()}
        script = with_options(options)
        assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
        written = directives(script)
        for name, value in options.items():
            assert [f"--{name}={value}" if value else f"--{name}"] in written
        assert ["--partition=a,b"] in written and ["--account=Ä b"] in written
        found.append([script, [word for words in written for word in words]])
    if shutil.which("sbatch"):
        for script, words in found:
            assert read_by_sbatch(script, tmp_path) == words


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_a_job_is_a_name_and_nothing_else(tmp_path, name):
    script = with_options({}, name)
    assert [f"--job-name={name}"] in directives(script)
    [line] = [line for line in script.splitlines() if "WANDB_RUN_GROUP" in line]
    shown = subprocess.run(
        ["bash"], input=f'{line}\nprintf %s "$WANDB_RUN_GROUP"', cwd=tmp_path, capture_output=True, text=True, env={}
    )
    assert (shown.stdout, shown.stderr) == (name, "")
    assert not (tmp_path / "canary").exists()


def test_gpus_are_asked_for_once_and_not_for_what_needs_none():
    for options in ({"gres": "gpu:a100:4"}, {"gpus-per-node": "h100:8"}, {"gpus": "16"}):
        [(name, value)] = options.items()
        asked = [words for words in directives(with_options(options)) if "gp" in words[0]]
        assert asked == [[f"--{name}={value}"]]
        text = module_script(ClusterConfig(gpus_per_node=8, options=options), Shape(name="x", gpus=False), ["x"], CWD)
        assert "gpu" not in text


def test_a_port_that_is_taken_is_passed_over(tmp_path):
    script = run_script(ClusterConfig(), Shape(name="x", **RESTARTS), [Task(run=tmp_path, program=["x"])], tmp_path)
    with listening() as taken:
        called = executed(script, tmp_path, SLURM_JOB_ID=str(taken - 10000))
    assert taken < int(called["env"]["MASTER_PORT"]) < taken + 50


@contextmanager
def listening():
    """Listen on a port of those that jobs choose from, and give its number."""
    for port in range(20000, 30000):
        with socket.socket() as taken, suppress(OSError):
            taken.bind(("127.0.0.1", port))
            taken.listen()
            yield port
            return
    raise AssertionError("no port is free")


@pytest.mark.parametrize("hostile", HOSTILE)
def test_images_and_mounts_are_words_too(tmp_path, hostile):
    image = hostile.replace("\n", " ").replace("\t", " ").replace("$HOME ${IFS}", "$1 $ {IFS}")  # no variable's name
    cluster = ClusterConfig(container=image, mounts=[image])
    script = module_script(cluster, Shape(name="x"), ["pretrain.prepare", hostile], tmp_path)
    words = executed(script, tmp_path)["command"][1:]
    expected = [
        "--ntasks=1",
        "--cpu-bind=none",
        "apptainer",
        "exec",
        f"--bind={image}",
        image,
        "python3",
        "-m",
        "pretrain.prepare",
        hostile,
    ]
    assert words == expected
    assert not Path("canary").exists() and not (tmp_path / "canary").exists()
