"""The command that measures models: its table, its JSON, several models side by side."""

import json
import re
import shutil

import pytest
from run_directories import GPT2_SETTINGS, LLAMA_SETTINGS, TEXTS, make_run, word_pieces

from pretrain.evaluate import main
from pretrain.trained.model import load


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two decoders of different tokenizers, the first with steps 7 and 9, a text, and its corpora."""
    folder = tmp_path_factory.mktemp("runs")
    first, later = (make_run(folder / name, *GPT2_SETTINGS, step=step) for name, step in (("first", 7), ("later", 9)))
    shutil.copytree(later / "checkpoints" / "step-00000009", first / "checkpoints" / "step-00000009")
    make_run(folder / "second", *LLAMA_SETTINGS, tokenizer=word_pieces(), vocab_size=72)
    (folder / "text.txt").write_text("\n".join(TEXTS[:7]))
    return folder


def settings(folder):
    words = ["documents=line", f"data.prepare.root={folder / 'corpora'}", "data.prepare.workers=1"]
    return [option for word in words for option in ("--set", word)]


def evaluated(folder, *options):
    return main([str(folder / "first"), str(folder / "text.txt"), *options, *settings(folder)])


def test_models_of_several_tokenizers_stand_side_by_side(folder, capsys):
    assert evaluated(folder, "--json", "--against", str(folder / "second")) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["step"] for row in rows] == [9, 7]
    for row in rows:
        words = settings(folder)[1::2]
        expected = load(row["model"]).evaluate(folder / "text.txt", settings=words)
        assert row == {"model": row["model"], "step": row["step"], **expected}
    assert rows[0]["text_bytes"] == rows[1]["text_bytes"] and rows[0]["tokens"] != rows[1]["tokens"]

    assert evaluated(folder, "--against", str(folder / "second")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [str(folder / "first") + ",", "step", "9", str(folder / "second") + ",", "step", "7"]
    shown = {line[:24].strip(): line[24:].split() for line in lines[1:]}
    assert shown["loss, nats a target"] == [f"{row['loss']:.4f}" for row in rows]
    assert shown["bits per byte"] == [f"{row['bits_per_byte']:.4f}" for row in rows]
    assert shown["of them no target"] == [str(row["tokens"] - row["targets"]) for row in rows] == ["0", "7"]
    assert len({len(line) for line in lines}) == 1


def test_a_step_is_that_of_every_run(folder, capsys):
    assert evaluated(folder, "--json", "--step", "7", "--against", str(folder / "second")) == 0
    assert [json.loads(line)["step"] for line in capsys.readouterr().out.splitlines()] == [7, 7]
    assert evaluated(folder, "--step", "9", "--against", str(folder / "second")) == 4
    assert "step-00000009" in capsys.readouterr().err


def test_a_size_takes_the_place_of_the_tokens_that_a_run_gave(folder, tmp_path):
    run = shutil.copytree(folder / "second", tmp_path / "run")
    text = re.sub(r"\n  micro_batch_.*", "", (run / "config.yaml").read_text())
    (run / "config.yaml").write_text(text.replace("\ntrain:", "\ntrain:\n  micro_batch_tokens: 96"))
    words = [*settings(folder), "--set", "train.micro_batch_size=2"]
    assert main([str(run), str(folder / "text.txt"), *words]) == 0


def test_questions_alone_are_answered_beside_one_another(folder, capsys):
    lines = [{"context": text[:5], "choices": [text[5:], " of life"], "answer": 0} for text in TEXTS[:3]]
    (folder / "set.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = [str(folder / "first"), "--choices", str(folder / "set.jsonl"), "--against", str(folder / "second")]
    assert main([*options, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for row in rows:
        expected = load(row["model"]).evaluate(choices=[folder / "set.jsonl"])
        assert row == {"model": row["model"], "step": row["step"], **expected}
        assert expected["choices/set/questions"] == 3 and "loss" not in expected
    assert main(options) == 0
    shown = [line.rsplit(maxsplit=2) for line in capsys.readouterr().out.splitlines()[1:]]
    assert [line[0].strip() for line in shown] == [
        "tokens in a slot, at most",
        "set: right answers",
        "set: by likelihoods that are not divided",
        "set: by chance",
        "set: questions",
    ]
    assert shown[1][1:] == [f"{row['choices/set']:.2%}" for row in rows] and shown[3][1:] == ["50.00%"] * 2


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--choices", "./nowhere.jsonl"], 2, "choices: ./nowhere.jsonl matches no file"),
        (["--against", "./nowhere"], 2, "./nowhere: no such directory; name a run"),
        (["--set", "document=line"], 2, "document=line: no setting of an evaluation; did you mean"),
        (["--set", "data.seq_len=40"], 2, "data.seq_len=40: more than the 32 tokens that"),
    ],
)
def test_what_is_refused_is_refused_before_anything_is_measured(folder, capsys, options, code, message):
    assert evaluated(folder, *options) == code
    printed = capsys.readouterr()
    assert printed.err.startswith(message) and not printed.out


def test_without_a_text_a_model_without_a_run_says_what_to_name(folder, capsys):
    assert main([str(folder / "second")]) == 2
    assert "second: no run that held out text; name a file to measure it on" in capsys.readouterr().err
