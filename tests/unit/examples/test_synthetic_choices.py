"""The synthetic questions: right answers that are in the files, wrong ones that look like them, from held-out files."""

import json
import sys
import sysconfig
from pathlib import Path

from examples.synthetic_choices import MOST_OF_A_FILE, NUM_LINES, NUM_QUESTIONS, main
from pretrain.compose import compose
from pretrain.data.choice_sets import read_questions
from pretrain.data.prepare.held_out import is_held_out


def test_the_script_writes_questions_on_files_that_the_demo_has_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["synthetic_choices.py", str(tmp_path)])
    main()
    file = tmp_path / "next_line.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(list(read_questions(str(file)))) == len(records) == NUM_QUESTIONS
    files = [record["file"] for record in records]
    assert max(map(files.count, set(files))) <= MOST_OF_A_FILE
    held_out = compose(["experiment=demo"]).data.prepare.held_out
    for name in set(files):
        data = (Path(sysconfig.get_path("stdlib")) / name).read_bytes()
        assert is_held_out(data, held_out)
        lines = data.decode(errors="ignore").splitlines()
        for record in (record for record in records if record["file"] == name):
            at, choices = record["line"] - 1, record["choices"]
            assert record["context"] == "".join(f"{line}\n" for line in lines[at - NUM_LINES : at])
            assert choices[record["answer"]] == lines[at] and len(set(choices)) == 4 and set(choices) <= set(lines)
            assert len({len(line) - len(line.lstrip()) for line in choices}) == 1
    answers = [record["answer"] for record in records]
    assert all(answers.count(place) > NUM_QUESTIONS / 6 for place in range(4))
