"""How well a model predicts text, that which its run held out or any other that `data` can read, and answers questions.

Holds what is measured and under which settings; measurements are those of training, `train.evaluator` and `.choices`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pretrain.data.batch import Batch
from pretrain.data.choice_sets import ChoiceSet, load_choices
from pretrain.data.loader import DataConfig
from pretrain.data.manifest import Manifest
from pretrain.data.packing import Packing
from pretrain.data.prepare.build import prepare
from pretrain.data.prepare.cache_key import texts_of
from pretrain.data.prepare.config import PrepareConfig
from pretrain.data.sources.base import PreparedSource, SourceConfig
from pretrain.data.sources.structured import JsonLinesSource
from pretrain.data.stream import CORPUS
from pretrain.data.vocabulary import load_vocabulary
from pretrain.distributed.world import World
from pretrain.errors import ConfigError, DataError, check
from pretrain.models.base import ModelKind
from pretrain.objectives.base import Objective
from pretrain.registry import flattened, nearest, plain
from pretrain.settings.alternatives import taken_back
from pretrain.settings.grammar import parsed
from pretrain.settings.messages import rule_of
from pretrain.settings.yaml_files import check_literal
from pretrain.strategy.precision import BF16, FP16, FP32, Precision
from pretrain.tokenizer.base import load_tokenizer
from pretrain.tokenizer.file import TokenizerFile
from pretrain.tracking.base import CHOICES
from pretrain.train.evaluation.choices import ChoiceEvaluator
from pretrain.train.evaluation.evaluator import EvalConfig, held_out_evaluator
from pretrain.train.loop import TrainConfig
from pretrain.train.micro_batches import measured_slots
from pretrain.train.run_dir.record import CONFIG_FILE, choice_of, read_config, read_record
from pretrain.trained.base import PAIRS, Source
from pretrain.trained.run_files import state_of
from pretrain.trained.source import RunSource
from pretrain.trained.texts import sources_of

LONGEST = 4096  # tokens of a slot, unless a run or a setting says it: some models can see far more
BATCH_TOKENS = 8192  # of a micro-batch, unless a run or a setting says it
PRECISIONS: dict[str, type[Precision]] = {"fp32": FP32, "bf16": BF16, "fp16": FP16}
# The settings of a run that decide what is measured, and how; the last only for the text that it held out itself.
_OF_RUN = (
    *("seed", "data.seq_len", "data.packing", "data.stride", "data.isolate_documents"),
    *("train.micro_batch_size", "train.micro_batch_tokens", "eval.max_slots"),
)
_OF_TEXT = ("data.sources.", "data.prepare.root", "data.prepare.workers", "data.prepare.on_invalid")
_OF_MODEL = (
    *("objective.masking.", "objective.rate", "objective.replacements"),
    *("tokenizer.prefix", "tokenizer.suffix", "tokenizer.mask"),
)
_MAY_CHANGE = (*_OF_RUN, *_OF_TEXT, *_OF_MODEL)

Text = str | Path | SourceConfig
Progress = Callable[[int, int], None]
"""Called with the tokens measured so far, and those of all the text; then with choices, and those of all questions."""

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Measuring:
    """What is measured, and how: settings of a run, under the names that they have there."""

    seed: int = 1  # of masks
    data: DataConfig
    objective: Any
    tokenizer: TokenizerFile
    train: TrainConfig
    eval: EvalConfig

    @property
    def micro_batch_size(self) -> int:
        """Sequences that are measured together."""
        return measured_slots(self.train, self.data.seq_len, max(BATCH_TOKENS // self.data.seq_len, 1))


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """An evaluation of a source that is known to make sense, before anything is computed."""

    source: Source
    cfg: Measuring
    precision: Precision
    of_text: bool  # whether text is measured, not questions alone
    own: dict[str, Path] | None  # corpora whose held-out text is measured; None: all text of `cfg.data.sources` is
    sets: list[ChoiceSet]  # multiple-choice questions to be answered

    def run(self, module: Objective, device: torch.device, progress: Progress | None) -> dict[str, float]:
        """Return what `LanguageModel.evaluate` does; `module` holds the weights of the source, on the device."""
        with self.precision.products(device):
            figures = self._of_text(module, device, progress) if self.of_text else {"seq_len": self.cfg.data.seq_len}
            return figures | self._of_questions(module, device, progress)

    def _of_questions(self, module: Objective, device: torch.device, progress: Progress | None) -> dict[str, float]:
        evaluator = ChoiceEvaluator(
            module=module,
            model=module.model,
            sets=self.sets,
            batch_tokens=self.cfg.micro_batch_size * self.cfg.data.seq_len,
            world=World(rank=0, size=1, device=device),
            progress=progress,
        )
        with self.precision.autocast(device):
            figures = evaluator()
        module.eval()
        for each in self.sets:
            about = {"chance": each.chance, "questions": len(each.answers)}
            figures |= {f"{CHOICES}{each.name}/{key}": value for key, value in about.items()}
        return figures

    def _of_text(self, module: Objective, device: torch.device, progress: Progress | None) -> dict[str, float]:
        cfg = self.cfg
        corpora, splits = (self.own, None) if self.own else _prepared(self.source, cfg)
        held_out = cfg.data.held_out(corpora, splits)
        if not held_out.num_slots:
            raise ConfigError(f"{self.source.name}: its run held out no text; name a file to measure it on")
        corpus = next(iter(corpora.values()))
        evaluator = held_out_evaluator(
            module,
            cfg.objective,
            held_out,
            cfg.objective.examples(partial(load_vocabulary, corpus), cfg.seed, cfg.data.seq_len),
            micro_batch_size=cfg.micro_batch_size,
            max_slots=cfg.eval.max_slots,
            world=World(rank=0, size=1, device=device),
        )
        whole = not cfg.eval.max_slots or cfg.eval.max_slots >= held_out.num_slots
        all_tokens = sum(each.corpus.num_tokens for each in held_out.sources)
        seen = _Seen(all_tokens if whole else cfg.eval.max_slots * cfg.data.seq_len, progress)
        evaluator = replace(evaluator, batches=partial(seen.counted, evaluator.batches))
        with self.precision.autocast(device):
            figures = evaluator()
        module.eval()
        documents = sum(each.corpus.num_documents for each in held_out.sources)
        size = {"documents": documents, "text_bytes": held_out.text_bytes} if whole else {}
        return {**figures, **size, "tokens": seen.tokens, "targets": seen.targets, "seq_len": cfg.data.seq_len}


def measurement(
    source: Source,
    texts: Sequence[Text],
    choices: Sequence[str | Path],
    settings: Sequence[str],
    precision: str | None,
) -> Measurement:
    """Return the evaluation of a source on texts and files of questions; without any on what its run held out.

    Raises `ConfigError` for a setting or a text that is refused, `DataError` for a corpus that is gone or a question
    that cannot be measured.
    """
    check(precision is None or precision in PRECISIONS, "precision", precision, f"one of {', '.join(PRECISIONS)}")
    files = list(map(str, choices))
    rule = f"{source.name} is {source.network.kind}, and decoders alone are measured by them; leave them out"
    check(source.network.kind is ModelKind.causal or not files, "choices", files, rule)
    read = texts or ([JsonLinesSource(paths=files)] if files else [])
    cfg, limit = _configured(source, read, settings), source.max_positions
    rule = f"more than the {limit} tokens that {source.name} has positions for; lower it"
    check(limit is None or cfg.data.seq_len <= limit, "data.seq_len", cfg.data.seq_len, rule)
    prefix, _ = source.template or ([], [])
    sets = load_choices(files, "choices", source.load_tokenizer(), prefix, cfg.data.seq_len) if files else []
    texts_of(cfg.data.sources)
    chosen = PRECISIONS[precision]() if precision else _precision_of(source)
    if not isinstance(source, RunSource) and PAIRS in source.weights(World.alone()).weight_shapes():
        rule = "what tells pairs of sentences apart is not measured, as its files do not say which pairs (nsp, sop)"
        log.warning("%s: %s; a run that goes on with it is", source.name, rule)
    return Measurement(
        source=source,
        cfg=cfg,
        precision=chosen,
        of_text=bool(texts) or not files,
        own=None if read else _held_out(source),
        sets=sets,
    )


class _Seen:
    """Counts what is measured."""

    def __init__(self, all_tokens: int, progress: Progress | None) -> None:
        self.tokens = self.targets = 0
        self._all_tokens = all_tokens
        self._progress = progress or (lambda done, total: None)

    def counted(self, batches: Callable[[], Iterable[Batch]]) -> Iterator[Batch]:
        """Pass batches on. Raises `DataError` if no token in them was a target."""
        for batch in batches():
            yield batch
            self.tokens += batch.num_tokens
            self.targets += batch.num_targets
            self._progress(self.tokens, self._all_tokens)
        if not self.targets:
            raise DataError(f"none of {self.tokens} tokens is a target, so there is nothing to measure; name more text")


def _configured(source: Source, texts: Sequence[Text], words: Sequence[str]) -> Measuring:
    """Return the settings: those of the run or, of what is no run, defaults; then those of words, KEY=VALUE.

    Raises `ConfigError` for a word that is refused.
    """
    overrides = {word: parsed(word) for word in words}
    kinds = [str(override.value()) for override in overrides.values() if override.key_or_group == "source"]
    sources = sources_of(texts, next(iter(kinds), None)) if texts else _own_sources(source)
    cfg = _defaults(source, sources)
    if isinstance(source, RunSource):
        held = read_config(source.path)
        check_literal(held, source.path / CONFIG_FILE)
        for key in held.keys() & set(_OF_RUN):
            if key != "eval.max_slots" or not texts:
                _set(cfg, key, held[key], f"{source.path / CONFIG_FILE}: {key}")
    given: list[str] = []
    for word, override in overrides.items():
        name = override.key_or_group
        own = [f"data.sources.{key}.{name}" for key, each in sources.items() if name in plain(each)]
        for key in own or ([] if name == "source" else [name]):
            if not key.startswith(_MAY_CHANGE):
                known = [key for key in flattened(OmegaConf.to_container(cfg)) if key.startswith(_MAY_CHANGE)]
                raise ConfigError(f"{word}: no setting of an evaluation{nearest(name, known)}; {', '.join(known)}")
            _set(cfg, key, override.value(), word)
            given.append(key)
    for key, instead in taken_back(cfg, given):
        log.info("left out %s of the run: %s stands in its place", key, instead)
    settings: Any = OmegaConf.to_object(cfg)
    return settings


def _defaults(source: Source, sources: dict[str, SourceConfig]) -> DictConfig:
    seq_len = min(source.network.max_seq_len, LONGEST)
    packing = Packing.concat if source.network.kind.generates else Packing.windows
    prepare = PrepareConfig(held_out=0.0)
    return OmegaConf.structured(
        Measuring(
            data=DataConfig(seq_len=seq_len, packing=packing, sources=sources, prepare=prepare),
            objective=source.objective,
            tokenizer=source.tokenizer_config(),
            train=TrainConfig(),
            eval=EvalConfig(),
        )
    )


def _set(cfg: DictConfig, key: str, value: Any, place: str) -> None:
    try:
        OmegaConf.update(cfg, key, value)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{place}: {rule_of(error)}") from None


def _own_sources(source: Source) -> dict[str, SourceConfig]:
    """Return the corpora that a run trained on."""
    corpora = read_record(source.path).get("corpora") if isinstance(source, RunSource) else None
    if not corpora:
        raise ConfigError(f"{source.name}: no run that held out text; name a file to measure it on")
    return {name: PreparedSource(path=path) for name, path in corpora.items()}


def _held_out(source: Source) -> dict[str, Path]:
    """Return the corpora that a run trained on. Raises `DataError` if one is gone, or is another one now."""
    known = state_of(source.path).get("resume", {})
    corpora = {name: Path(path) for name, path in read_record(source.path)["corpora"].items()}
    for name, directory in corpora.items():
        trained = known.get(f"{CORPUS}data.sources.{name}", "")
        gone = not (directory / "manifest.json").is_file()
        if gone or not Manifest.load(directory).fingerprint.startswith(trained):
            rule = f"not there any more as {source.name} was trained on it"
            raise DataError(f"{directory}: {rule}; restore it, or name a file to measure the model on")
    return corpora


def _prepared(source: Source, cfg: Measuring) -> tuple[dict[str, Path], dict[str, str]]:
    """Prepare texts with the model's tokenizer; return the corpora and which split of each is all of the text.

    Of a corpus that was prepared before it is the text that was held out, or all of it. Raises what `prepare` raises,
    and `ConfigError` for a corpus of another tokenizer.
    """
    corpora = prepare(cfg.data.sources, cfg.tokenizer, cfg.data.prepare)
    splits = {}
    for name, directory in corpora.items():
        manifest = Manifest.load(directory)
        before = isinstance(cfg.data.sources[name], PreparedSource)
        splits[name] = "validation" if before and _holds_out(manifest) else "train"
        if before and _ids(directory / "tokenizer.json") != _ids(source.tokenizer):
            rule = f"prepared with another tokenizer than that of {source.name}"
            raise ConfigError(f"{directory}: {rule}; name the text that it was prepared from")
        if left_out := ", ".join(f"{reason} {count:,}" for reason, count in manifest.skipped.items()):
            log.warning("%s: left out or mended: %s", name, left_out)
    return corpora, splits


def _holds_out(manifest: Manifest) -> bool:
    return "validation" in manifest.splits and manifest.splits["validation"].documents > 0


def _ids(file: Path) -> dict[str, int]:
    return load_tokenizer(file).get_vocab(with_added_tokens=True)


def _precision_of(source: Source) -> Precision:
    return choice_of(source.path, "precision") if isinstance(source, RunSource) else FP32()
