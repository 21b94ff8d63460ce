"""Run directories as `pretrain` leaves them, made in a moment: an untrained model, saved as one step."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from small_models import LLAMA, MODERNBERT
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from toys import ALONE

from pretrain.checkpoint import CheckpointConfig, Checkpoints, load_state
from pretrain.data.tokenization.bpe import BpeTokenizer
from pretrain.data.tokenizer import describe
from pretrain.entry import compose
from pretrain.initial import InitialWeights
from pretrain.models.initialise import Initial
from pretrain.objectives.base import Objective
from pretrain.registry import register
from pretrain.run import build_module
from pretrain.rundir import RunDirectory, plain

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


@register("objective", "no_loss")
@dataclass(kw_only=True)
class NoLossConfig:
    """An objective for encoders whose weights are only looked at, with a tensor of its own."""

    causal: bool = False  # see `ObjectiveConfig`
    covers_text: bool = False  # the same

    def build(self, model):
        objective = Objective()
        objective.model = model
        objective.own = torch.nn.Linear(3, 1, bias=False)
        objective.initial = lambda name: (
            Initial(std=1.0) if name == "own.weight" else Objective.initial(objective, name)
        )
        return objective


def word_pieces(*first: str) -> str:
    """Return a WordPiece tokenizer as BERT's, whose special tokens are the first ids, as JSON."""
    special = [*first, "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=90, special_tokens=special, show_progress=False)
    )
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return tokenizer.to_str()


def make_run(
    path: Path,
    *overrides: str,
    vocab_size: int = 280,
    step: int = 7,
    seed: int = 1,
    model: str = "decoder",
    tokenizer: str | None = None,
) -> Path:
    """Return a run directory with weights drawn wide (`model.init_std`), so that logits say something."""
    cfg = compose(
        [
            f"model={model}",
            *(["objective=no_loss"] if model == "encoder" else []),
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
    facts = describe(file, BpeTokenizer())
    run.record(name=path.name, vocab_size=vocab_size, document_frame=[facts.prefix, facts.suffix])
    module = build_module(cfg, vocab_size)
    initial = InitialWeights(module, cfg.seed)
    strategy = cfg.strategy.build(world=ALONE, precision=cfg.precision, compilation=cfg.compile)
    strategy.setup(module, cfg.optim.build)
    strategy.load_fragments(initial)
    known = {f"model.{key}": value for key, value in plain(cfg.model).items()} | {"tokenizer": facts.sha256[:16]}
    checkpoints = Checkpoints(path / "checkpoints", CheckpointConfig(), ALONE)
    checkpoints.save(step, strategy, {"tokens": 0, "resume": known}, required=True)
    return path


def settings_of(run: Path) -> dict:
    """Return what a run keeps to recognise itself."""
    [step] = (run / "checkpoints").glob("step-*")
    return load_state(step)["resume"]


def json_of(path: Path) -> dict:
    return json.loads(path.read_text())
