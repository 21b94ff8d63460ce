"""Run directories as `pretrain` leaves them, made in a moment: an untrained model, saved as one step."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from small_models import LLAMA, MODERNBERT
from toys import ALONE

from pretrain.checkpoint.base import Reader
from pretrain.checkpoint.load import load_state
from pretrain.checkpoint.save import CheckpointConfig, Checkpoints
from pretrain.compose import compose
from pretrain.init_from import InitialWeights
from pretrain.objectives.base import Objective
from pretrain.registry import choices, plain
from pretrain.run import build_module
from pretrain.tokenizer.base import describe
from pretrain.tokenizer.bpe import BpeTokenizer
from pretrain.tokenizer.wordpiece import REQUIRED, WordPieceTokenizer
from pretrain.train.run_dir.base import RunDirectory
from pretrain.trained.model import load

TEXTS = ["the time of the year", "people and the world", "a way of life, a state of the world", "school time"] * 20
GPT2_SETTINGS = ["model.init_std=0.3"]
LLAMA_SETTINGS = [
    *(f"model.{key}={getattr(value, 'value', value)}" for key, value in LLAMA.items()),
    "model.init_std=0.3",
]
MODERNBERT_SETTINGS = [
    *(f"model.{key}={getattr(value, 'value', value)}" for key, value in MODERNBERT.items()),
    "model.init_std=0.3",
]


def word_pieces(*first: str) -> str:
    """Return a tokenizer of 72 ids like BERT's, one more for each of `first`."""
    special = [*first, *REQUIRED]
    return WordPieceTokenizer(vocab_size=67 + len(special), special_tokens=special).train(iter(TEXTS))


def make_run(
    path: Path,
    *overrides: str,
    vocab_size: int = 280,
    step: int = 7,
    seed: int = 1,
    model: str = "decoder",
    tokenizer: str | None = None,
    decoder_start: int | None = None,
    weights: Callable[[InitialWeights, dict[str, Any]], Reader] | None = None,
) -> Path:
    """Return a run directory with weights drawn wide (`model.init_std`), so that logits say something.

    Or with those that `weights` makes of them and of what the run is recognised by.
    """
    objectives = {"encoder": "masked_lm", "encoder_decoder": "denoising"}
    cfg = compose(
        [
            f"model={model}",
            *([f"objective={objectives[model]}"] if model in objectives else []),
            "data.seq_len=32",
            "model.width=24",
            "model.layers=2",
            "model.heads=4",
            f"run.root={path.parent}",
            f"run.name={path.name}",
            f"seed={seed}",
            *overrides,
        ]
    )
    run = RunDirectory.claim(cfg.run)
    run.write_config(cfg)
    file = path / "tokenizer.json"
    file.write_text(tokenizer or BpeTokenizer(vocab_size=min(vocab_size, 280)).train(iter(TEXTS)))
    facts = describe(file, cfg.tokenizer)
    group, choice = choices()[type(cfg.model)]
    network = {"choice": f"{group}={choice}", **plain(cfg.model)}
    run.begin()
    run.record(
        name=path.name,
        network=network,
        vocab_size=vocab_size,
        document_frame=[facts.prefix, facts.suffix],
        mask=facts.mask,
        decoder_start=decoder_start,
    )
    module = build_module(cfg, vocab_size)
    initial = InitialWeights(module, cfg.seed)
    strategy = cfg.strategy.build(world=ALONE, precision=cfg.precision, compilation=cfg.compile)
    strategy.setup(module, cfg.optim.build)
    known = {f"model.{key}": value for key, value in plain(cfg.model).items()} | {
        "tokenizer": facts.tokenizer_sha256[:16]
    }
    strategy.load_fragments(weights(initial, known) if weights else initial)
    checkpoints = Checkpoints(path / "checkpoints", CheckpointConfig(), ALONE)
    checkpoints.save(step, strategy, {"tokens": 0, "resume": known}, required=True)
    return path


def load_run(run: Path) -> Objective:
    """Return a run's module with the weights of its newest step."""
    return load(run, device="cpu").module


def settings_of(run: Path) -> dict:
    """Return what a run keeps to recognise itself."""
    [step] = (run / "checkpoints").glob("step-*")
    return load_state(step)["resume"]


def json_of(path: Path) -> dict:
    return json.loads(path.read_text())
