"""The documentation is true: its commands run, its tables are the code's, its links lead somewhere.

Every ```bash block of README.md and docs/*.md is executed, in order and in one shell a page, as a reader would type it,
and then the page's ```python blocks as one program; those of docs/cluster.md, which need a cluster, by tests/slurm.
Three things are not as for a reader. README.md, docs/extending.md and docs/finetuning.md begin in a clone of the
repository, and get a copy of the working tree, whose `.venv` is the environment of the tests. On all pages but
README.md `python` forks a process that has imported the libraries (`forks`). And `make` runs as `make -n`: it finds the
target and expands its commands without carrying them out, because they install packages and train for minutes.
"""

import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from forks import forking_python, python
from pages import carry_out, script

from pretrain import errors
from pretrain.commands import INTERRUPTED
from pretrain.compose import compose
from pretrain.hub.family import FAMILIES
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.encoder_decoder import EncoderDecoderConfig
from pretrain.registry import choices

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
EXECUTED = [page for page in PAGES if re.search("```(bash|python)", page.read_text()) and page.name != "cluster.md"]
IN_A_CLONE = {"README.md", "extending.md", "finetuning.md"}
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "runs", "corpora")


@pytest.mark.slow
@pytest.mark.timeout(1200)  # s; a page has up to thirty runs, on few cores that others may use too
@pytest.mark.parametrize("page", EXECUTED, ids=lambda page: page.name)
def test_every_command_runs(page, tmp_path):
    place = tmp_path / "place"
    if page.name in IN_A_CLONE:
        shutil.copytree(ROOT, place, ignore=LEFT_OUT)
        (place / ".venv").symlink_to(sys.prefix)
    else:
        place.mkdir()
    if page.name == "README.md":
        carry_out(page, place)
    else:
        with forking_python() as forking:
            carry_out(page, place, python=forking)


def test_the_script_stops_at_the_first_other_exit_code(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```bash\nfalse    # exits with 1\ncat > file <<'X'\n# exits with 7\nX\necho 'a\nb'\n\nfalse\ntouch late\n```\n"
    )
    done = subprocess.run(["bash", "-c", script(page)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "page.md:9: exited with 1, not with 0\n"
    assert (tmp_path / "file").read_text() == "# exits with 7\n"
    assert not (tmp_path / "late").exists()


@cache
def tables() -> dict[str, str]:
    """What `python docs/settings.py` writes, by the root of the settings; in a process of its own."""
    code = "{root: settings.with_tables(getattr(settings, root)) for root in ('PRETRAIN', 'FINETUNE', 'SLURM')}"
    done = python("-c", f"import json, settings; print(json.dumps({code}))", cwd=ROOT / "docs")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("root", "page", "number"),
    [("PRETRAIN", "configuration.md", 80), ("FINETUNE", "finetuning-settings.md", 40), ("SLURM", "cluster.md", 20)],
)
def test_the_tables_of_settings_are_those_of_the_code(root, page, number):
    written = tables()[root]
    assert written == (ROOT / "docs" / page).read_text(), "run: python docs/settings.py"
    settings, _, _ = written.partition("### Groups of pretraining")
    rows = [line for line in settings.splitlines() if line.startswith("| `")]
    assert len(rows) > number
    assert not [row for row in rows if row.endswith("|  |")], "every setting has a meaning"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)]+)\)", prose) if "://" not in link]
    for link in links:
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        headings = re.findall(r"^#+ (.+)$", target.read_text(), re.M) if anchor else []
        anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, link


def test_the_presets_are_described_as_they_are():
    rows = re.findall(
        r"^\| `(\w+)` \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$",
        (ROOT / "docs" / "presets.md").read_text(),
        re.M,
    )
    assert {name for name, *_ in rows} == {path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")}
    for name, *figures in rows:
        cfg = compose([f"experiment={name}"])
        with torch.device("meta"):
            model = cfg.model.build(vocab_size=cfg.tokenizer.vocab_size, attend=sdpa)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        tokens = cfg.train.batch_size * cfg.data.seq_len
        expected = [parameters, cfg.tokenizer.vocab_size, cfg.data.seq_len, tokens, cfg.train.steps]
        assert [int(figure.replace(",", "")) for figure in figures] == expected


def test_every_exit_code_is_described():
    codes = {kind.exit_code for kind in vars(errors).values() if hasattr(kind, "exit_code")}
    described = re.findall(r"^\| (\d+) \|", (ROOT / "docs" / "training.md").read_text(), re.M)
    assert {int(code) for code in described} == {0, INTERRUPTED} | codes


def test_every_family_of_checkpoints_is_described():
    page = (ROOT / "docs" / "checkpoints.md").read_text()
    sections = re.findall(r"^`model=(\w+)`(.*?)^#", page, re.M | re.S)
    rows = {
        (model, model_type): set(re.findall(r"`(\w+)`", classes))
        for model, text in sections
        for model_type, classes in re.findall(r"^\| `([\w-]+)`, ([^|]+) \|", text, re.M)
    }
    assert rows == {
        (choices()[family.config_type][1], model_type): {family.architecture, family.pretraining} - {""}
        for model_type, family in FAMILIES.items()
    }


def test_the_heads_of_every_family_are_described():
    _, _, section = (ROOT / "docs" / "checkpoints.md").read_text().partition("### Of tasks")
    table = re.findall(r"^\| (`[^|]+`) \| the (first|last) token[^|]* \| [^|]+ \| ([^|]+) \|$", section, re.M)
    families = {name: family for name, family in FAMILIES.items() if family.config_type is not EncoderDecoderConfig}
    assert sorted(name for names, *_ in table for name in re.findall(r"`([\w-]+)`", names)) == sorted(families)
    for names, pooling, others in table:
        for name in re.findall(r"`([\w-]+)`", names):
            heads = families[name].heads
            assert heads.sequence.pooling.value == pooling, name
            assert ("`transformers` has none" in others) == (heads.span is None), name
            assert others.startswith("`transformers` has none") == (heads.token is None), name
