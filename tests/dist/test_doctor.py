"""The doctor's page on real gloo ranks: what is well, and each thing that is not, beside all that is."""

import os
import re
import shutil
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest
from forks import Forked, python
from ranks import end, environments, tiny
from run_directories import make_run

from launch.doctor.__main__ import CHECKS
from pretrain.compose import compose
from pretrain.data.prepare.build import prepare

ROOT = Path(__file__).parents[2]
NAMES = {check.name for check in CHECKS}
LINE = re.compile(r"(ok|warning|FAILED) +(\S.{0,13}\S) +(\S.*)")


class Page(NamedTuple):
    """What a doctor printed: a list of (level, text) by the name of the check."""

    lines: dict[str, list[tuple[str, str]]]
    outcome: str

    def one(self, name: str) -> tuple[str, str]:
        [line] = self.lines[name]
        return line

    @property
    def failed(self) -> set[str]:
        return {name for name, found in self.lines.items() if any(level == "FAILED" for level, _ in found)}


def doctor(
    *arguments: str, ranks: int = 1, code: int = 0, others: int = 0, cwd: Path, apart: dict | None = None, last=()
) -> Page:
    """Run ranks as torchrun starts them and read the page of the first.

    `apart` changes the last one's variables, `last` are the words by which it is started.
    """
    processes = []
    for rank, own in enumerate(environments(ranks)):
        odd = rank == ranks - 1
        changed = (apart or {}) if odd else {}
        words = last if odd and last else ("-m", "launch.doctor")
        variables = os.environ | {"PYTHONPATH": str(ROOT)} | own | changed
        processes.append(Forked(*words, *arguments, cwd=Path(changed.get("PWD", cwd)), env=variables))
    assert end(processes, 200) == [code] + [others] * (ranks - 1), [process.stderr for process in processes]
    assert not any(process.stdout for process in processes[1:]), "the first rank alone prints"
    return read(processes[0].stdout)


def read(out: str) -> Page:
    body = re.sub(r"\n {10,}", " ", out).splitlines()  # lines that were folded
    lines = defaultdict(list)
    for line in body[2:-2]:
        found = LINE.fullmatch(line)
        assert found, line
        level, name, text = found.groups()
        lines[name].append((level, text))
    return Page(dict(lines), body[-1])


def text_of(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    story = "\n\n".join(f"time and place number {number} were told of" for number in range(400))
    (folder / "text.txt").write_text(story)
    os.utime(folder / "text.txt", (1e9, 1e9))
    return folder


def overrides(place: Path, *more: str) -> list[str]:
    return tiny("looked_at", "train.micro_batch_size=2", f"data.sources.text.paths=[{place}/text.txt]", *more)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A directory with a text and its corpus."""
    place = text_of(tmp_path_factory.mktemp("doctor") / "place")
    cfg = compose(overrides(place, f"data.prepare.root={place}/corpora", "data.prepare.workers=1"))
    prepare(cfg.data.sources, cfg.tokenizer, cfg.data.prepare)
    return place


def test_all_is_well(prepared):
    page = doctor("pretrain", *overrides(prepared), ranks=2, cwd=prepared)
    assert page.outcome == "0 failed, 0 warnings, 16 ok: nothing would stop this run"
    assert {level for found in page.lines.values() for level, _ in found} == {"ok"}
    assert set(page.lines) == NAMES - {"task files", "init_from"}
    batch = "8 sequences a step = 2 x 2 on each of 2 ranks; 256 tokens a step, 6,144 in 24 steps"
    assert page.one("batch") == ("ok", batch)
    assert re.match(r"[\d,]+ parameters: [\d.]+ KiB a rank", page.one("memory")[1])
    assert page.one("hosts")[1].startswith("2 ranks on 1 host: ") and page.one("hosts")[1].endswith("(ranks 0, 1)")
    assert "sums of 1, 1,021, 1,000,003 elements over all ranks are exact: int64, float32" in page.one("all-reduce")[1]
    assert page.one("bandwidth")[1].count("GB/s algorithm") == 3
    assert re.search(r"text: [\d,]+ tokens to train on in corpora/text-\w+, fingerprint \w{16}", page.one("corpora")[1])
    assert list((prepared / "runs").iterdir()) == [], "no file is left"
    shutil.rmtree(prepared / "runs")


def test_a_refused_batch_hides_nothing(tmp_path):
    place = text_of(tmp_path / "place")
    page = doctor("pretrain", *overrides(place), ranks=3, code=2, cwd=place)
    level, text = page.one("batch")
    assert level == "FAILED" and "train.batch_size=8: must be a multiple of" in text and "(on all ranks)" in text
    assert page.failed == {"batch"} and set(page.lines) == NAMES - {"task files", "init_from"}
    assert page.one("corpora") == (
        "warning",
        "corpus text: will be prepared at start; prepare before with python -m pretrain.prepare",
    )


def fake_library(place: Path, name: str, version: str) -> Path:
    """Make a directory that tells importlib.metadata of another version."""
    folder = place / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return place


# The doctor, which does not wait a minute for a network file system to show a directory.
HURRIED = """
import runpy
from pretrain.train import agreement
agreement.VISIBLE_S = 1
runpy.run_module("launch.doctor", run_name="__main__", alter_sys=True)
"""


def test_a_host_with_other_libraries_and_directories_is_named(prepared, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    apart = {
        "PYTHONPATH": f"{fake_library(tmp_path / 'fake', 'tokenizers', '0.1.2')}:{ROOT}",
        "SLURMD_NODENAME": "node2",
        "PWD": str(alone),  # its own `runs` and `corpora`
    }
    hurried = ("-c", HURRIED)
    page = doctor("pretrain", *overrides(prepared), ranks=2, code=2, cwd=prepared, apart=apart, last=hurried)
    assert page.failed == {"versions", "run directory", "corpora"}
    differs = r"rank 1 on host \S+: the version of tokenizers is 0\.1\.2, and [\d.]+ on rank 0"
    assert re.search(differs, page.one("versions")[1])
    missing = rf"some ranks do not see the run directory that rank 0 holds .* rank 1 on host \S+: {alone}/runs/\."
    assert re.search(missing, page.one("run directory")[1])
    differs = r"rank 1 on host \S+: corpus text is not there yet, and [\d,]+ tokens to train on in \S+ finger"
    assert re.search(differs, page.one("corpora")[1])
    assert page.one("clocks")[0] == "ok" and "all within" in page.one("clocks")[1]
    assert list((prepared / "runs").iterdir()) == [] and not list(alone.iterdir())


def test_a_damaged_corpus_is_told_with_its_own_exit_code(prepared, tmp_path):
    place = tmp_path / "place"
    shutil.copytree(prepared, place)
    [shard] = place.glob("corpora/text-*/train-00000.arrow")
    size = shard.stat().st_size
    os.truncate(shard, size - 1)
    page = doctor("pretrain", *overrides(prepared), code=3, cwd=place)
    level, text = page.one("corpora")
    assert level == "FAILED" and f"train-00000.arrow: bytes {size - 1}, expected {size}" in text
    assert page.failed == {"corpora"} and page.one("all-reduce")[1] == "one rank: nothing to sum"


@pytest.mark.slow
def test_a_directory_that_cannot_be_written_is_told_once(prepared, tmp_path):
    (tmp_path / "file").write_text("")  # no directory can be made below it, also not by root
    apart = {"SLURMD_NODENAME": "node2"}
    arguments = overrides(prepared, f"run.root={tmp_path}/file/runs")
    page = doctor("pretrain", *arguments, ranks=2, code=2, cwd=prepared, apart=apart)
    assert page.failed == {"run directory"} and "disk speed" not in page.lines
    assert "cannot be written ([Errno 20] Not a directory" in page.one("run directory")[1]


def test_a_configuration_that_does_not_compose_leaves_the_machine_to_look_at(tmp_path):
    page = doctor("pretrain", "model.widht=3", code=2, cwd=tmp_path)
    level, text = page.one("configuration")
    assert level == "FAILED" and "model.widht: no such setting; did you mean model.width?" in text
    without = {check.name for check in CHECKS if not check.needs_config} - {"bandwidth"}
    assert set(page.lines) == without | {"configuration", "not checked"} and page.failed == {"configuration"}


def test_the_files_of_a_task_are_the_same_on_all_hosts(tmp_path):
    make_run(tmp_path / "decoder")
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for name in ("train", "validation"):
            (tmp_path / folder / f"{name}.tsv").write_text("text\tlabel\na good film\tyes\na bad one\tno\n")
    arguments = ["finetune", "task=classification", "task.train=train.tsv", "task.validation=validation.tsv"]
    arguments += [f"run.root={tmp_path}/runs", f"init_from={tmp_path}/decoder", "task.max_tokens=32"]
    apart = {"SLURMD_NODENAME": "node2", "PWD": str(tmp_path / "two")}
    page = doctor(*arguments, ranks=2, cwd=tmp_path / "one", apart=apart)
    assert not page.failed and [level for level, _ in page.lines["task files"]] == ["ok", "ok"]
    assert page.one("init_from")[1].endswith("decoder: there, on all hosts")
    assert re.match(r"[\d,]+ parameters: ", page.one("memory")[1])
    (tmp_path / "two" / "validation.tsv").write_text("text\tlabel\na good film\tyes\na bad one\tyes\n")
    changed = [*arguments[:-2], f"init_from={tmp_path}/nowhere"]
    page = doctor(*changed, ranks=2, code=2, cwd=tmp_path / "one", apart=apart)
    assert page.failed == {"task files", "init_from"}
    [(_, files)] = page.lines["task files"]
    assert re.search(r"task.validation=validation.tsv is 41 bytes, SHA-256 \w{16}, and 40 bytes, SHA", files)
    assert "task.train" not in files
    assert "no such directory" in page.one("init_from")[1] and page.one("memory")[0] == "warning"


def test_a_rank_that_is_lost_ends_the_page_and_is_told(tmp_path):
    lost = "import os, runpy; os.sched_getaffinity = lambda process: os._exit(9); "
    lost += "runpy.run_module('launch.doctor', run_name='__main__', alter_sys=True)"
    page = doctor("pretrain", "model.widht=3", ranks=2, code=2, others=9, cwd=tmp_path, last=("-c", lost))
    assert page.failed == {"configuration", "group"} and page.one("versions")[0] == "ok"
    assert page.one("group")[1].startswith("a rank is lost") and "devices" not in page.lines


def test_a_program_that_is_none_is_refused():
    done = python("-m", "launch.doctor", "dance", cwd=ROOT)
    assert done.returncode == 2 and "pretrain|finetune" in done.stderr
