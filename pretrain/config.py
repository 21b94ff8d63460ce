"""The root configuration: one field a slice, and the checks that no slice can make alone.

Holds no defaults of the slices: each dataclass lives beside the code that it configures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from pretrain import data, guard, models, objectives, optim, strategy, tokenizer, tracking
from pretrain.checkpoint.save import CheckpointConfig
from pretrain.data.batch import TokenizerParts
from pretrain.data.choice_sets import question_files
from pretrain.data.loader import DataConfig
from pretrain.data.prepare.cache_key import texts_of
from pretrain.data.sources.base import ReadableSource
from pretrain.errors import check
from pretrain.hub.family import check_family
from pretrain.models.base import ModelKind
from pretrain.optim.schedule import ScheduleConfig
from pretrain.registry import choices, discover, plain
from pretrain.strategy.compile import CompileConfig, Scope
from pretrain.strategy.precision import Precision
from pretrain.tokenizer.base import TokenizerConfig, find_sentinels
from pretrain.tracking.local_tracker import TrackerConfig
from pretrain.train.batch_growth import GrowthConfig
from pretrain.train.branches.base import BranchConfig, check_branch
from pretrain.train.detours.divergence import DivergenceConfig
from pretrain.train.evaluation.evaluator import EvalConfig
from pretrain.train.micro_batches import said
from pretrain.train.mirror.base import check_mirror
from pretrain.train.own_hooks import hook_configs, schema_of
from pretrain.train.profiling.base import ProfileConfig
from pretrain.train.replicas import ReplicasConfig
from pretrain.train.run_dir.base import RunConfig
from pretrain.train.trace import TracedLogConfig


@dataclass(kw_only=True)
class PretrainConfig:
    """Everything that decides a pretraining run.

    A field without a default is a config group: one of its registered dataclasses is chosen on the command line
    (`model=gpt2_124m`). The first block decides what is trained, the second how fast and where.
    """

    run: RunConfig = field(default_factory=RunConfig)  # name and place of the run directory
    plugins: list[str] = field(default_factory=list)  # modules of your own that register choices; imported first
    seed: int = 1  # of weights, data order, masking and dropout
    data: DataConfig = MISSING
    tokenizer: TokenizerConfig = MISSING
    model: Any = MISSING
    init_from: str | None = None  # run, Hugging Face directory or org/name@revision of the first weights; null: random
    branch_from: str | None = None  # RUN@STEP that the run goes on from: weights, moments, step, place in the data
    branch: BranchConfig = field(default_factory=BranchConfig)
    objective: Any = MISSING
    optim: Any = MISSING
    schedule: ScheduleConfig = MISSING
    guard: Any = MISSING
    train: GrowthConfig = field(default_factory=GrowthConfig)
    divergence: DivergenceConfig = field(default_factory=DivergenceConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    strategy: Any = MISSING
    precision: Precision = MISSING
    attention: Any = MISSING
    compile: CompileConfig = MISSING
    tracker: TrackerConfig = MISSING
    log: TracedLogConfig = field(default_factory=TracedLogConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    replicas: ReplicasConfig = field(default_factory=ReplicasConfig)
    hooks: dict[str, Any] = field(default_factory=dict)  # NAME: its settings; code of one's own that the run calls

    def __post_init__(self) -> None:
        check_branch(self.branch_from, self.branch, self.init_from)
        names = choices()
        _, objective = names[type(self.objective)]
        rule = f"does not fit model={names[type(self.model)][1]}, which is {self.model.kind}; change one of the two"
        check(self.objective.kind is self.model.kind, "objective", objective, rule)
        longest, rule = self.model.max_seq_len, "must be at least {}, which is data.seq_len; raise it, or lower that"
        check(longest >= self.data.seq_len, "model.max_seq_len", longest, rule.format(self.data.seq_len))
        rule = f"objective={objective} rewrites each document by itself; set true"
        isolated = self.data.isolate_documents
        check(isolated or not self.objective.rewrites_documents, "data.isolate_documents", isolated, rule)
        if self.objective.pairs:
            token_types = self.model.token_types
            rule = "objective.sentences takes documents apart; set true, or objective.sentences=none"
            check(isolated, "data.isolate_documents", isolated, rule)
            rule = "objective.sentences tells two segments apart; set 2 or more, or objective.sentences=none"
            check(token_types >= 2, "model.token_types", token_types, rule)
        if self.eval.samples:
            rule = f"model={names[type(self.model)][1]} is {self.model.kind} and continues no text; leave them out"
            check(self.model.kind.generates, "eval.samples", self.eval.samples, rule)
            rule = f"must be below data.seq_len={self.data.seq_len}, which holds the prompt, too; lower it"
            check(self.eval.sample_tokens < self.data.seq_len, "eval.sample_tokens", self.eval.sample_tokens, rule)
        if self.eval.choices:
            rule = f"model={names[type(self.model)][1]} is {self.model.kind}, and decoders alone are measured by them"
            check(self.model.kind is ModelKind.causal, "eval.choices", self.eval.choices, f"{rule}; leave them out")
        self.optim.check(swaps=self.strategy.swaps)
        self.divergence.check_saving(self.checkpoint.every, self.checkpoint.keep)
        use = self.model.attention_use
        self.attention.check(
            dtype=self.precision.dtype,
            dropout=use.dropout if use else 0,
            dropout_key="model.attention_dropout",
            bias=self.model.score_bias,
        )
        self.tracker.check_run(self.run.name, plain(self))

    def check_start(self, *, ranks: int, device_type: str) -> None:
        """Raise `ConfigError` for what so many ranks on devices "cuda" or "cpu" cannot run, and for missing inputs.

        Reads no more than the names of input files and those of a tokenizer that exists.
        """
        said(self.train, self.data.seq_len, ranks)
        self.schedule.build(self.train.steps)
        self.profile.check_steps(self.train.steps)
        check_family(self.model)
        self.strategy.check_machine(ranks=ranks, device_type=device_type, precision=self.precision)
        compiles = self.compile.on(device_type, self.strategy) is not Scope.none
        self.precision.check_machine(device_type=device_type, compiles=compiles)
        ragged = "data.isolate_documents=true" if self.data.isolate_documents else None
        self.compile.check_start(device_type=device_type, strategy=self.strategy, ragged=ragged)
        hook_configs(self.hooks)
        check_mirror(self.checkpoint.mirror)
        self.profile.check_ranks(ranks)
        self.data.prepare.check_whole()
        question_files(self.eval.choices, "eval.choices")
        texts_of(self.data.sources)
        self.check_tokenizer()

    def check_tokenizer(self) -> None:
        """Raise `ConfigError` for a tokenizer that the objective cannot work with, before text is prepared with it.

        Reads the files of one that exists. A corpus that was prepared elsewhere is not looked at: it has its own.
        """
        if any(isinstance(source, ReadableSource) for source in self.data.sources.values()):
            (prefix, suffix, mask), tokens = self.tokenizer.roles(), self.tokenizer.tokens()
            sentinels = len(find_sentinels(tokens))
            parts = TokenizerParts(len(prefix), len(suffix), mask is not None, tokens, sentinels)
            self.objective.check_tokenizer(parts, self.data.seq_len)


def register_choices() -> None:
    """Fill Hydra's ConfigStore with the root and with every choice of every group."""
    ConfigStore.instance().store(name="pretrain_schema", node=schema_of(PretrainConfig))
    discover(data, guard, models, objectives, optim, strategy, tokenizer, tracking)
