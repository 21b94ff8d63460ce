"""Runs of fine-tuning, three steps long, from untrained models: whole in every file, made in a moment."""

import json
from pathlib import Path

from run_directories import GPT2_SETTINGS, LLAMA_SETTINGS, MODERNBERT_SETTINGS, TEXTS, make_run, word_pieces

from finetune.config import FINETUNE
from finetune.run import finetune
from pretrain.compose import compose
from pretrain.tokenizer.bpe import BpeTokenizer

ROBERTA = BpeTokenizer(vocab_size=270, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
SOURCES = {
    "bert": {"model": "encoder", "tokenizer": word_pieces(), "settings": ["model.init_std=0.3"]},
    "roberta": {
        "model": "encoder",
        "tokenizer": ROBERTA.train(iter(TEXTS)),
        "settings": ["model.init_std=0.3", "model.position_offset=2", "model.token_types=1"],
    },
    "distilbert": {"model": "encoder", "tokenizer": word_pieces(), "settings": ["model.token_types=0"]},
    "modernbert": {"model": "encoder", "tokenizer": word_pieces(), "settings": MODERNBERT_SETTINGS},
    "gpt2": {"model": "decoder", "tokenizer": None, "settings": GPT2_SETTINGS},
    "llama": {"model": "decoder", "tokenizer": None, "settings": LLAMA_SETTINGS},
    "llama, mup": {
        "model": "decoder",
        "tokenizer": None,
        "settings": [*LLAMA_SETTINGS, "model.mup_base_width=16", "model.mup_base_head_width=4"],
    },
}
WORDS = ["time", "year", "people", "world", "way", "life", "state", "school"]


def texts(number: int) -> list[tuple[str, str]]:
    """Return texts of uneven lengths, each with its first word."""
    rows = [[WORDS[(place * 3 + at) % len(WORDS)] for at in range(1 + place % 5)] for place in range(number)]
    return [(" ".join(["the", *row]), row[0]) for row in rows]


def write(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


def trained(folder: Path, source: str, task: str, records: list[dict], *overrides: str) -> tuple[Path, Path]:
    """Return a run of fine-tuning from a source, three steps long, and the file of its validation set."""
    about = SOURCES[source]
    run = make_run(folder / "source", *about["settings"], model=about["model"], tokenizer=about["tokenizer"])
    data = write(folder / "data.jsonl", records)
    cfg = compose(
        [
            *(f"task={task}", f"init_from={run}", f"task.train={data}", f"task.validation={data}"),
            *("task.max_tokens=32", "train.epochs=1", f"train.batch_size={len(records) // 3}"),
            *("optim.lr=1e-2", f"run.root={folder}", "run.name=tuned", "tracker.progress=false", *overrides),
        ],
        root=FINETUNE,
    )
    finetune(cfg)
    return folder / "tuned", data
