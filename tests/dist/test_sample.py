"""Sampling and reporting from a run directory, by the commands that a user types."""

import json
import shutil
import subprocess
from pathlib import Path

from forks import python
from ranks import column

from pretrain.tokenizer.base import load_tokenizer


def module(name: str, *arguments: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = python("-m", name, *arguments, cwd=cwd)
    assert done.returncode == code, done.stderr
    return done


def test_samples_begin_with_the_prompt_and_follow_the_seed(place, uninterrupted):
    options = ["--prompt", "time year", "--max-tokens", "12", "--samples", "2", "--seed", "7"]
    first = module("pretrain.sample", "runs/uninterrupted", *options, cwd=place).stdout
    assert first.count("time year") >= 2
    assert first == module("pretrain.sample", "runs/uninterrupted", *options, cwd=place).stdout
    other = module("pretrain.sample", "runs/uninterrupted", *options[:-1], "8", cwd=place).stdout
    assert other != first


def test_greedy_samples_are_the_model_s_own_choice(place, uninterrupted):
    import torch
    from run_directories import load_run

    from pretrain.models.base import Layout

    options = ["--prompt", "people way", "--max-tokens", "5", "--temperature", "0"]
    printed = module("pretrain.sample", "runs/uninterrupted", *options, cwd=place).stdout
    model = load_run(place / "runs" / "uninterrupted").model
    tokenizer = load_tokenizer(place / "runs" / "uninterrupted" / "tokenizer.json")
    ids = [tokenizer.token_to_id("<|endoftext|>"), *tokenizer.encode("people way").ids]
    begin = len(ids)
    for _ in range(5):
        layout = Layout.of(torch.tensor([0, len(ids)], dtype=torch.int32), len(ids))
        hidden = model(torch.tensor(ids), torch.arange(len(ids)), layout)
        ids.append(int((hidden[-1] @ model.head_weight().T).argmax()))
    assert printed.strip() == ("people way" + tokenizer.decode(ids[begin:])).strip()


def test_a_run_of_a_gpu_is_sampled_without_one(place, uninterrupted):
    run = place / "runs" / "of-a-gpu"
    shutil.copytree(uninterrupted, run)
    config = (run / "config.yaml").read_text()
    assert "- attention: auto\n" in config
    (run / "config.yaml").write_text(config.replace("- attention: auto\n", "- attention: flex\n"))
    options = ["--prompt", "time year", "--max-tokens", "5"]
    assert module("pretrain.sample", "runs/of-a-gpu", *options, cwd=place).stdout.startswith("time year")


def test_an_evaluation_afterwards_measures_what_the_run_did(place, uninterrupted):
    found = json.loads(module("pretrain.evaluate", "runs/uninterrupted", "--json", cwd=place).stdout)
    assert found["step"] == 24
    for key in ("loss", "perplexity", "accuracy", "bits_per_byte"):
        assert found[key] == column(uninterrupted, key, "validation")[24]
    text = json.loads(module("pretrain.evaluate", "runs/uninterrupted", "text.txt", "--json", cwd=place).stdout)
    assert text["text_bytes"] == len((place / "text.txt").read_bytes())


def test_what_is_no_run_is_refused_by_name(place):
    for name in ("pretrain.sample", "pretrain.evaluate", "pretrain.export", "pretrain.report"):
        refusal = module(name, "runs/nowhere", cwd=place, code=2).stderr
        assert "runs/nowhere" in refusal
        assert "Traceback" not in refusal


def test_a_report_shows_compressors_beside_the_model(place, uninterrupted):
    module("pretrain.report", "runs/uninterrupted", "--out", "page", cwd=place)
    page = (place / "page" / "report.md").read_text()
    assert "gzip -9" in page
    assert "xz -9" in page
    assert (place / "page" / "curves.png").read_bytes().startswith(b"\x89PNG")
