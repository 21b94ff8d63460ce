"""The command that continues prompts: where they come from, what is printed, what is refused."""

import gzip
import json

import pytest
from run_directories import GPT2_SETTINGS, make_run

from pretrain.sample import main
from pretrain.trained.model import load


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run", *GPT2_SETTINGS)


def sampled(capsys, *arguments):
    assert main([*map(str, arguments), "--max-tokens", "6"]) == 0
    printed = capsys.readouterr()
    return printed.out, printed.err


def test_every_prompt_is_continued_by_the_library_s_own_words(run, capsys):
    out, _ = sampled(capsys, run, "--prompt", "the time", "--prompt", "a", "--samples", "2", "--seed", "3")
    expected = load(run).generate(["the time", "a"], max_tokens=6, samples=2, seed=3)
    texts = [prompt + text for prompt, drawn in zip(["the time", "a"], expected, strict=True) for text in drawn]
    assert out == "".join(f"{text}\n\n" for text in texts)


def test_a_script_reads_one_object_a_continuation(run, capsys):
    out, _ = sampled(capsys, run, "--prompt", "a", "--samples", "2", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    [expected] = load(run).generate("a", max_tokens=6, samples=2)
    assert rows == [{"step": 7, "prompt": "a", "continuation": text} for text in expected]


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("prompts.txt", "\ufefftime \r\n\n  \na way\n", []),
        (
            "prompts.jsonl.gz",
            '{"text": {"of": "time "}}\n{"text": {"of": "a way"}, "n": 2}\n\n \n',
            ["--field", "text.of"],
        ),
    ],
)
def test_a_file_of_prompts_is_read_and_its_blank_lines_counted(run, tmp_path, capsys, name, content, options):
    data = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    options = ["--prompts", tmp_path / name, "--json", *options]
    out, err = sampled(capsys, run, "--prompt", "first", *options)
    assert [json.loads(line)["prompt"] for line in out.splitlines()] == ["first", "time ", "a way"]
    assert f"{name}: 2 blank lines left out" in err


def test_without_a_prompt_a_document_begins(run, capsys):
    out, _ = sampled(capsys, run)
    assert out == load(run).generate("", max_tokens=6)[0][0] + "\n\n"


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        ('{"prompt": "a"}\n{"text": "b"}\n', 2, "line 2: no key 'prompt'; name that of the prompts with --field"),
        ('{"prompt": "a"}\nb\n', 3, "line 2: not JSON"),
        ('{"prompt": 3}\n', 3, "line 1: 'prompt' is 3, expected a string"),
        (" \n", 2, "holds no prompt"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused_at_once(run, tmp_path, capsys, content, code, message):
    (tmp_path / "prompts.jsonl").write_text(content)
    assert main([str(run), "--prompts", str(tmp_path / "prompts.jsonl")]) == code
    printed = capsys.readouterr()
    assert f"prompts.jsonl: {message}" in printed.err and not printed.out


def test_how_a_text_is_chosen_and_where_it_ends_are_options(run, capsys):
    prompts = ["people and the world", "a", "the time"]
    named = [word for prompt in prompts for word in ("--prompt", prompt)]
    out, _ = sampled(capsys, run, *named, "--json", "--beams", "3", "--no-repeat-ngram", "2")
    found = [json.loads(line)["continuation"] for line in out.splitlines()]
    expected = load(run).generate(prompts, max_tokens=6, beams=3, no_repeat_ngram=2)
    assert found == [text for [text] in expected]
    strings = [text[2:4] for text in found[:2]]
    ends = [word for string in strings for word in ("--stop", string)]
    out, _ = sampled(capsys, run, *named, "--json", "--temperature", "0", "--min-p", "0.1", *ends)
    expected = load(run).generate(prompts, max_tokens=6, temperature=0, stop=strings)
    assert [json.loads(line)["continuation"] for line in out.splitlines()] == [text for [text] in expected]
    assert not any(string in text for [text] in expected for string in strings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--no-repeat-ngram", "2"], "--no-repeat-ngram=2: belongs to beam search; give --beams, too"),
        (["--beams", "2", "--samples", "2"], "samples=2: beam search finds one text of each prompt"),
        (["--min-p", "2"], "min_p=2.0: must lie in (0, 1]"),
        (["--stop", ""], "stop=''"),
    ],
)
def test_options_that_do_not_go_together_are_refused(run, capsys, options, message):
    assert main([str(run), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_not_there_and_a_step_that_is_not_are_refused(run, capsys):
    assert main([str(run), "--prompts", "nowhere.txt"]) == 3
    assert "nowhere.txt: cannot be read" in capsys.readouterr().err
    assert main([str(run), "--step", "8"]) == 4
    assert "step-00000008" in capsys.readouterr().err
