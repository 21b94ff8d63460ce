"""Preparation in parts, with real processes: together they make the bytes that one process makes."""

import shutil
import subprocess
import time

import psutil
import pytest
from forks import python
from preparing import ROOT, config, contents, records, start, write_stories

from pretrain.data.prepare.build import Share, prepare, prepare_share
from pretrain.data.prepare.cache_key import corpus_directories, texts_of
from pretrain.data.prepare.config import PrepareConfig
from pretrain.data.sources.base import PreparedSource, SourceConfig
from pretrain.errors import ConfigError
from pretrain.prepare import share_summary
from pretrain.tokenizer.bpe import BpeTokenizer


def ended(process: subprocess.Popen) -> tuple[str, str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out, err


def test_three_parts_at_once_and_a_merge_make_the_bytes_of_one_process(tmp_path):
    source = write_stories(tmp_path / "text", range(60))
    trained = BpeTokenizer(vocab_size=290)
    prepare({"tales": source}, trained, config(tmp_path / "one"))
    together = [start({"tales": source}, trained, config(tmp_path / "parts", parts=3, part=part)) for part in range(3)]
    answers = [ended(process) for process in together]
    assert sum("training the tokenizer: 1/1" in err for _, err in answers) == 1, "trained once, the others wait"
    [work] = (tmp_path / "parts").glob("tales-*")
    assert work.name.endswith(".partial"), "parts commit nothing"
    total = len(list((work / "units").iterdir()))
    for part, (out, _) in enumerate(answers):
        numbers = range(part, total, 3)
        assert f"tales: units {', '.join(map(str, numbers))} of {total} done, with other parts" in out
        assert "the same command without data.prepare.parts and data.prepare.part commits" in out
    before = records(tmp_path / "parts")
    (work / "corpus" / "tmp-left-by-a-kill").touch()
    (work / "units" / "tmp-left-by-a-kill").touch()
    out, err = ended(start({"tales": source}, trained, config(tmp_path / "parts")))
    assert before and "preparing tales" not in err, "a finished unit was done again"
    assert "documents" in out and contents(tmp_path / "parts") == contents(tmp_path / "one")


def test_a_part_that_was_killed_goes_on_and_another_number_of_parts_may_end_it(tmp_path, tokenizer):
    source = write_stories(tmp_path / "text", range(800))
    root = tmp_path / "parts"
    prepare({"tales": source}, tokenizer, config(tmp_path / "one", unit_bytes=100_000, workers=2))
    killed = start({"tales": source}, tokenizer, config(root, unit_bytes=100_000, parts=2, part=1))
    while killed.poll() is None and len(records(root)) < 2:
        time.sleep(0.002)
    tree = psutil.Process(killed.pid).children(recursive=True)
    killed.kill()
    killed.communicate()
    psutil.wait_procs(tree, timeout=10)
    kept = records(root)
    assert kept and all(int(name.removesuffix(".json")) % 2 == 1 for name in kept)
    for parts, part in ((2, 1), (3, 0)):
        share = prepare_share(
            {"tales": source}, tokenizer, config(root, unit_bytes=100_000, parts=parts, part=part, workers=2)
        )["tales"]
        assert share and share.numbers == range(part, share.units, parts)
        assert records(root).items() >= kept.items(), "a finished unit was done again"
        assert share.finished == len(records(root)) < share.units
        kept = records(root)
    directories = prepare({"tales": source}, tokenizer, config(root, unit_bytes=100_000, workers=2))
    assert contents(root) == contents(tmp_path / "one"), "the units of no part are done by the merge"
    again = prepare_share({"tales": source}, tokenizer, config(root, unit_bytes=100_000, parts=2))
    assert again == {"tales": None} and contents(root) == contents(tmp_path / "one")
    assert directories["tales"].is_dir()


def test_the_same_part_twice_at_once_and_the_merge_beside_it_change_nothing(tmp_path, tokenizer):
    source = write_stories(tmp_path / "text", range(400))
    prepare({"tales": source}, tokenizer, config(tmp_path / "one"))
    same = [start({"tales": source}, tokenizer, config(tmp_path / "parts", parts=2, part=1)) for _ in range(2)]
    while not records(tmp_path / "parts"):
        time.sleep(0.002)
        assert None in [process.poll() for process in same]
    merge = start({"tales": source}, tokenizer, config(tmp_path / "parts"))
    answers = [ended(process) for process in (*same, merge)]
    waited = [err for _, err in answers[:2] if "to prepare part 1 of 2 of tales" in err]
    assert len(waited) == 1, "the second waits for the first"
    assert "or others beside it, which holds" in answers[2][1] or "preparing tales" in answers[2][1]
    assert contents(tmp_path / "parts") == contents(tmp_path / "one")


def test_more_parts_than_units_leave_some_with_nothing(tmp_path, tokenizer):
    source = write_stories(tmp_path / "text", range(40))
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(prepare({"old": source}, tokenizer, config(tmp_path))["old"], elsewhere)
    sources: dict[str, SourceConfig] = {"tales": source, "old": PreparedSource(path=str(elsewhere))}
    nothing = Share(range(30, 4, 31), finished=0, units=4)
    assert prepare_share(sources, tokenizer, config(tmp_path, parts=31, part=30)) == {"tales": nothing, "old": None}
    assert share_summary("tales", nothing).startswith("tales: none of its 4 units, with other parts 0 so far; when all")
    assert "units 0, 2, 4, ..., 98 of 99 done" in share_summary("tales", Share(range(0, 99, 2), finished=70, units=99))


def test_where_a_corpus_will_be_is_known_before(tmp_path, tokenizer):
    sources: dict[str, SourceConfig] = {"tales": write_stories(tmp_path / "text", range(40))}
    texts = texts_of(sources)
    before = corpus_directories(sources, texts, tokenizer, config(tmp_path, parts=4, part=2))
    assert not before["tales"].exists()
    assert prepare(sources, tokenizer, config(tmp_path, workers=2)) == before


@pytest.mark.parametrize("values", [{"parts": 0}, {"part": 1}, {"part": -1}, {"parts": 3, "part": 3}])
def test_impossible_parts_are_refused(values):
    with pytest.raises(ConfigError, match=rf"data\.prepare\.{list(values)[-1]}="):
        PrepareConfig(**values)


def test_a_part_is_no_corpus_to_read(tmp_path, tokenizer):
    with pytest.raises(ConfigError, match=r"data\.prepare\.parts=2: only python -m pretrain\.prepare does a part"):
        prepare({"tales": write_stories(tmp_path / "text", range(3))}, tokenizer, config(tmp_path, parts=2))


def test_pretraining_refuses_a_part_by_name(tmp_path):
    places = [f"data.prepare.root={tmp_path}/corpora", f"run.root={tmp_path}/runs"]
    done = python("-m", "pretrain", "data.prepare.parts=8", "data.prepare.part=3", *places, cwd=ROOT)
    assert done.returncode == ConfigError.exit_code and "data.prepare.parts=8: only python -m" in done.stderr
    assert not list(tmp_path.iterdir())
