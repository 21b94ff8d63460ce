"""The root configuration of fine-tuning: one field a slice, and the checks that no slice can make alone.

Holds no defaults of the slices: each dataclass lives beside the code that it configures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from finetune import model, tasks
from pretrain import guard, models, optim, strategy, tokenizer, tracking
from pretrain.checkpoint.save import SavingConfig
from pretrain.compose import Root, configured
from pretrain.errors import ConfigError, check
from pretrain.optim.schedule import ScheduleConfig
from pretrain.registry import choices, discover, plain
from pretrain.strategy.compile import CompileConfig, Scope
from pretrain.strategy.precision import Precision
from pretrain.tracking.local_tracker import TrackerConfig
from pretrain.train.mirror.base import check_mirror
from pretrain.train.own_hooks import hook_configs, schema_of
from pretrain.train.profiling.base import ProfileConfig
from pretrain.train.replicas import ReplicasConfig
from pretrain.train.run_dir.base import RunConfig
from pretrain.train.trace import TracedLogConfig


@dataclass(kw_only=True)
class TuneConfig:
    """How long and in which batches a run fine-tunes."""

    epochs: float = 3.0  # times that each example is seen
    batch_size: int = 32  # examples in one optimizer step, over all ranks
    max_tokens: int = 4096  # tokens in one forward and backward pass of one rank
    clip_norm: float | None = 1.0  # largest global gradient norm; null = no clipping
    max_skipped: int = 10  # optimizer steps in a row whose update may be skipped

    def __post_init__(self) -> None:
        check(0 < self.epochs < math.inf, "train.epochs", self.epochs, "must be above 0, and finite")
        check(self.batch_size >= 1, "train.batch_size", self.batch_size, "at least 1 example")
        check(self.max_tokens >= 1, "train.max_tokens", self.max_tokens, "at least 1 token")
        check(self.clip_norm is None or self.clip_norm > 0, "train.clip_norm", self.clip_norm, "above 0, or null")
        check(self.max_skipped >= 0, "train.max_skipped", self.max_skipped, "0 or more optimizer steps")


@dataclass(kw_only=True)
class MeasureConfig:
    """How often the validation set is measured, and the step saved with it; when a run ends early."""

    every: int | None = None  # optimizer steps; null: once an epoch
    at_start: bool = False  # measure before the first step, too: what the model could do untuned
    patience: int | None = None  # evaluations with a value, but no better one, that end the run; null: none does

    def __post_init__(self) -> None:
        rule = "at least 1 optimizer step, or null for once an epoch"
        check(self.every is None or self.every >= 1, "eval.every", self.every, rule)
        check(self.patience is None or self.patience >= 1, "eval.patience", self.patience, "1 or more, or null")


@dataclass(kw_only=True)
class FinetuneConfig:
    """Everything that decides a fine-tuning run; the model and its tokenizer are those of `init_from`, or made anew."""

    run: RunConfig = field(default_factory=RunConfig)  # name and place of the run directory
    plugins: list[str] = field(default_factory=list)  # modules of your own that register choices; imported first
    seed: int = 1  # of the head's weights, the order of examples and dropout
    seeds: list[int] = field(default_factory=list)  # removed, and empty in older runs; now a sweep over seed
    init_from: str | None = None  # run, Hugging Face directory or hub name of the model to start from
    scratch: bool = False  # draw all weights; init_from gives network and tokenizer: what pretraining is compared with
    model: Any = None  # network to train from nothing, without init_from; `dropout` and `attention_dropout` are its own
    tokenizer: Any = None  # of such a network; it is trained on the texts of the training set
    task: Any = MISSING
    tuning: Any = MISSING
    dropout: float = 0.1  # probability, of embeddings, residual branches and the head
    attention_dropout: float = 0.0  # probability, of attention weights; not with attention=flex
    optim: Any = MISSING
    schedule: ScheduleConfig = MISSING
    guard: Any = MISSING
    train: TuneConfig = field(default_factory=TuneConfig)
    eval: MeasureConfig = field(default_factory=MeasureConfig)

    strategy: Any = MISSING
    precision: Precision = MISSING
    attention: Any = MISSING
    compile: CompileConfig = MISSING
    tracker: TrackerConfig = MISSING
    log: TracedLogConfig = field(default_factory=TracedLogConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    checkpoint: SavingConfig = field(default_factory=SavingConfig)  # a step is saved when it is measured
    replicas: ReplicasConfig = field(default_factory=ReplicasConfig)
    hooks: dict[str, Any] = field(default_factory=dict)  # NAME: its settings; code of one's own that the run calls

    def __post_init__(self) -> None:
        sweep = f"python -m launch local -- finetune ... 'seed={','.join(map(str, self.seeds))}'"
        check(not self.seeds, "seeds", self.seeds, f"was removed; sweep over seed instead: {sweep}")
        self._check_start_of_weights()
        for key in ("dropout", "attention_dropout"):
            check(0 <= getattr(self, key) < 1, key, getattr(self, key), "must lie in [0, 1)")
        settings, longest = self.task.answering.longest
        rule = f"an example may have {settings}={longest}; raise this, or lower that"
        check(self.train.max_tokens >= longest, "train.max_tokens", self.train.max_tokens, rule)
        self.task.answering.check_strategy(self.strategy)
        self.optim.check(swaps=self.strategy.swaps)
        self.check_attention(bias=None)
        self.tracker.check_run(self.run.name, plain(self))

    def _check_start_of_weights(self) -> None:
        for key in ("model", "tokenizer"):
            chosen = getattr(self, key)
            if self.init_from is not None:
                rule = f"init_from={self.init_from} brings its own; leave one of them out"
                check(chosen is None, key, chosen and choices()[type(chosen)][1], rule)
            elif chosen is None:
                rule = "required and not given; add init_from=... to the command, or model=... and tokenizer=..."
                raise ConfigError(f"init_from: {rule} to train from nothing ({key} is not given)")

    def check_attention(self, *, bias: str | None) -> None:
        """Raise `ConfigError` for what the attention backend cannot compute; `bias` as in `AttentionConfig.check`."""
        dropout = self.attention_dropout
        self.attention.check(dtype=self.precision.dtype, dropout=dropout, dropout_key="attention_dropout", bias=bias)

    def check_start(self, *, ranks: int, device_type: str) -> None:
        """Raise `ConfigError` for what so many ranks, on devices "cuda" or "cpu", cannot run."""
        self.strategy.check_machine(ranks=ranks, device_type=device_type, precision=self.precision)
        compiles = self.compile.on(device_type, self.strategy) is not Scope.none
        self.precision.check_machine(device_type=device_type, compiles=compiles)
        self.compile.check_start(device_type=device_type, strategy=self.strategy, ragged="examples of uneven lengths")
        hook_configs(self.hooks)
        check_mirror(self.checkpoint.mirror)
        self.profile.check_ranks(ranks)


def register_choices() -> None:
    """Fill Hydra's ConfigStore with the root and with every choice of every group."""
    ConfigStore.instance().store(name="finetune_schema", node=schema_of(FinetuneConfig))
    discover(tasks, model, guard, models, tokenizer, optim, strategy, tracking)


USAGE = """python -m finetune task=TASK init_from=MODEL task.train=FILE task.validation=FILE

With task=TASK, --help shows the settings of that task too."""
FINETUNE = Root("finetune", FinetuneConfig, register_choices, USAGE, ("experiment/synthetic",))


def configure(*settings: str, config_dir: str | Path | None = None) -> FinetuneConfig:
    """Return the configuration that `settings` make: words as `python -m finetune` takes them, such as "optim.lr=1e-3".

    `config_dir` is a folder of settings of your own. Raises `ConfigError` for a setting that is refused.
    """
    return configured(settings, FINETUNE, config_dir)
