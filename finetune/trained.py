"""A run of fine-tuning, opened to be used: it predicts, measures, reports and exports. `finetune.load` opens one.

Holds what the commands of the same names do, and which settings may be overridden; `evaluator` runs the model, and what
its answers mean is the task's.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from finetune.answering.base import Answers, Codec, Encoded, Engine
from finetune.config import FINETUNE, FinetuneConfig
from finetune.data.records import DataSet, name_of
from finetune.model.adapters import exported
from finetune.model.lora import LoraConfig, adapters_of, check_adapters, differences_of
from finetune.options import MAX_TOKENS
from finetune.report.model_page import page_of
from finetune.run import build_module
from finetune.tasks.base import TaskConfig
from pretrain.checkpoint.commit import step_number
from pretrain.checkpoint.load import fragments_of, restore_weights, shapes_of
from pretrain.checkpoint.low_rank import Summed
from pretrain.compose import compose_run
from pretrain.data.sources.locations import is_file, typed_name
from pretrain.distributed.world import World, device_of
from pretrain.errors import ConfigError, check
from pretrain.hub.adapter_config import BASE, task_type
from pretrain.hub.download import is_hub_name
from pretrain.hub.export_dir import Export, hf_model, write_export
from pretrain.hub.family import family_for
from pretrain.hub.generation_config import rules_of, with_end
from pretrain.hub.model_card import Origin
from pretrain.hub.spm_files import pair_files
from pretrain.objectives.base import Objective
from pretrain.report.history import load as load_history
from pretrain.report.history import page_folder
from pretrain.report.writing import write_page
from pretrain.train.run_dir.record import RECORD_FILE, read_config, read_record
from pretrain.trained.base import fitting
from pretrain.trained.run_files import network_of, step_of, target_tokenizer_of, tokenizer_of

Data = str | Path | Sequence[Any]
"""A file, a name on the hub, or a list of records: texts, tuples of the columns' values, or dictionaries by column."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FineTunedModel:
    """A fine-tuned model at one of its steps, in one process.

    What its methods take as `data` is what training read: a file of any format that the task reads, a data set on the
    hub, or a list, whose records are dictionaries by column, or values alone. Those are texts or, as tuples, pairs for
    classification; pairs of question and context for questions; and for tags texts or lists of words. They raise
    `ConfigError` for a file or column that is not there, and `DataError` for more bad records than `task.max_faults`.
    """

    path: Path  # run directory
    step: int
    device: torch.device
    asked: int | None = field(repr=False)  # the step that was asked for: pages show the run as of it
    cfg: FinetuneConfig = field(repr=False)
    record: dict[str, Any] = field(repr=False)  # run.json
    network: Any = field(repr=False)  # configuration of the model
    module: Objective = field(repr=False)
    codec: Codec = field(repr=False)
    checkpoint: Path = field(repr=False)  # directory of the step

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the run."""
        return self.codec.tokenizer

    @property
    def names(self) -> list[str]:
        """The names of the head's outputs: of classes, for instance."""
        return self.record["names"]

    def predict(self, data: Data, *, max_tokens: int = MAX_TOKENS) -> list[dict[str, Any]]:
        """Return the prediction for each record: what `python -m finetune.predict` prints.

        A record without a prediction, which `task.max_faults` allows, is left out and logged; the `place` of the others
        says which they are. `max_tokens` go through the model at a time.
        """
        found = self.answers(self.encode(_typed(data), labelled=False), max_tokens)
        return list(self.cfg.task.predict(found.encoded, found.each, self.names))

    def evaluate(self, data: Data, *, max_tokens: int = MAX_TOKENS) -> dict[str, float]:
        """Return the task's metrics on records with answers; NaN for one without a value, which is logged."""
        found = self.answers(self.encode(_typed(data), labelled=True), max_tokens)
        return found.figures | self.cfg.task.measure(found.encoded, found.each, self.names)

    def report(
        self, data: Data | None = None, *, out: str | Path | None = None, max_tokens: int = MAX_TOKENS
    ) -> tuple[Path, Path]:
        """Write a page on what the model gets right and wrong, and return its HTML and its Markdown.

        It is about `data` with answers or, without any, about the validation set of the run. It goes to `report/` in
        the run, or into the folder `out`.
        """
        history = load_history(self.path)
        history = history if self.asked is None else history.until(self.asked)
        # The run may be another's: no variable in its own name of a file is filled in.
        source = self.cfg.task.validation if data is None else _typed(data)
        found = self.answers(self.encode(source, labelled=True), max_tokens)
        page = page_of(self.cfg, self.step, history, name_of(source), found)
        return write_page(page, page_folder(self.path, Path(out) if out else None))

    def export(
        self,
        out: str | Path | None = None,
        *,
        dtype: str = "fp32",
        shard_mb: int = 5000,
        overwrite: bool = False,
        adapters: bool = False,
    ) -> Path:
        """Write a directory that `transformers` and its pipelines load, and return it; by default `export/` in the run.

        `dtype` is fp32, bf16 or fp16, and a weight file has at most `shard_mb` MB. An export of another run or step is
        replaced only by `overwrite`, and nothing else ever is. With `adapters` it is what tuning=lora has learnt alone,
        which `peft` puts over the weights that the run began from; by default in `adapters/` of the run. Raises
        `ConfigError` for a model of no family, and for a run whose adapters have no such weights.
        """
        answering, tokenizer = self.cfg.task.answering, self.codec.tokenizer
        _, config, special_tokens, generation = hf_model(self.network, self.record, tokenizer, answering.kind)
        shapes = shapes_of(self.module)
        own = answering.exported(self.network, self.codec, self.record, shapes, special_tokens)
        export = Export(
            model=self.network,
            tensors=own.tensors,
            read=self.cfg.tuning.merged(fragments_of(self.checkpoint), self.network),
            tokenizer=own.tokenizer,
            config=config | own.config,
            special_tokens=special_tokens | own.special_tokens,
            generation=with_end(generation, own.special_tokens.get("eos")) if own.generates else None,
            run=self.record["name"],
            step=self.step,
            origin=Origin(step=self.checkpoint, record=self.record, settings=read_config(self.path)),
            tokenizer_settings=own.tokenizer_settings,
            beside=pair_files(self.path),
        )
        if adapters:
            export = self._adapters(export)
        place = Path(out or self.path / ("adapters" if adapters else "export"))
        return write_export(export, place, dtype=dtype, shard_mb=shard_mb, overwrite=overwrite)

    def _adapters(self, export: Export) -> Export:
        """Return the part of an export that peft puts over a base. Raises `ConfigError` for a run without such."""
        tuning, base = self.cfg.tuning, self.record.get("base")
        if not isinstance(tuning, LoraConfig):
            raise ConfigError("--adapters: the run has none, only tuning=lora learns some; leave it out")
        if base is None:
            rule = "the weights below the adapters lie in this run alone"
            raise ConfigError(f"--adapters: {rule} ({self.path}); leave it out, to export their sum")
        if (Path(base) / RECORD_FILE).is_file():
            log.warning(
                "%s is a run: to use the adapters with peft, export it, and name the export as their base", base
            )
        family, kind = family_for(self.network), self.cfg.task.answering.kind
        if kind is not None and family.head(kind).prefix not in (None, family.tensors.prefix):
            rule = "calls its body by another name: transformers loads a base that AutoModel loaded and saved, no other"
            log.warning("%s %s", export.config["architectures"][0], rule)
        name, _, revision = base.partition("@") if is_hub_name(base) else (base, "", "")
        fragments = fragments_of(self.checkpoint)
        adapter = exported(tuning, differences_of(adapters_of(self.module.model), fragments), export.tensors)
        about = {BASE: name, "revision": revision or None, "task_type": task_type(export.config["architectures"][0])}
        config = {"peft_type": "LORA", **about, "bias": "none", "inference_mode": True, **adapter.config}
        read = Summed(fragments, {}, adapter.own)
        return replace(export, tensors=adapter.tensors, read=read, adapter=config)

    def encode(self, source: DataSet, *, labelled: bool) -> Encoded:
        """Encode a data set, in memory or by a name from `typed_name`, as training did. Raises what the task raises."""
        task = self.cfg.task
        return task.answering.encode(task.records(source, labelled=labelled), self.codec, self.names, labelled=labelled)

    def answers(self, encoded: Encoded, max_tokens: int = MAX_TOKENS) -> Answers:
        """Return what the model makes of a data set, `max_tokens` tokens at a time."""
        engine = Engine(
            module=self.module,
            objective=self.module,
            codec=self.codec,
            whole=True,
            autocast=nullcontext,
            max_tokens=max_tokens,
            world=World(rank=0, size=1, device=self.device),
        )
        return self.cfg.task.answering.answers(engine, encoded, self.names)


def load(
    run: str | Path, *, step: int | None = None, settings: Sequence[str] = (), device: str | None = None
) -> FineTunedModel:
    """Open a run at a saved step, or else at the best so far, or the newest where none was measured.

    The task's settings are the run's, with what measuring the validation set has found at the step where that was left
    to it, and then with `settings` (KEY=VALUE), which may change those that learning did not depend on. `device` is one
    of torch's; by default CUDA where there is one, else the CPU.

    Raises `ConfigError` for a directory that is no run of fine-tuning and for a setting that is refused,
    `CheckpointError` for a run without that step.
    """
    run = Path(run)
    cfg, record = compose_run(run, FINETUNE), read_record(run, "vocab_size", "document_frame", "names", "name")
    checkpoint = step_of(run, World.alone(), record.get("best_step") if step is None else step)
    changed = _changed(cfg.task, settings)
    if changes := [*_found(run, checkpoint, set(cfg.task.tuned_settings) - changed), *settings]:
        batches = f"train.max_tokens={sys.maxsize}"  # of training, which examples must fit; not used here
        cfg = compose_run(run, FINETUNE, [batches, *changes])
    network = network_of(run)
    cfg.task.answering.check_model(network, str(run))
    module = build_module(cfg, network, record["vocab_size"], record["names"])
    check_adapters(fragments_of(checkpoint).weight_shapes(), adapters_of(module.model), str(checkpoint))
    restore_weights(checkpoint, module)
    place, kept = device_of(device), record.get("generation")
    return FineTunedModel(
        path=run,
        step=step_number(checkpoint),
        device=place,
        asked=step,
        cfg=cfg,
        record=record,
        network=network,
        module=module.to(place).eval(),
        codec=Codec(
            tokenizer=fitting(tokenizer_of(run), record["vocab_size"], run / "tokenizer.json"),
            kind=network.kind,
            frame=record["document_frame"],
            start=record.get("decoder_start"),
            chat_template=record.get("chat_template"),
            target_tokenizer=target_tokenizer_of(run),
            rules=None if kept is None else rules_of(kept, record["vocab_size"], run / RECORD_FILE),
        ),
        checkpoint=checkpoint,
    )


def _typed(data: Data) -> DataSet:
    """Return a data set as tasks take it. Raises `ConfigError` for what is none."""
    if isinstance(data, str | Path):
        name = typed_name(str(data), "the data set")
        rule = "no such file; a text stands in a list or, for the command, in a line of JSON on standard input"
        check(is_file(name) or not re.search(r"\s", name), "the data set", f"{name:.80}", rule)
        return name
    rule = "give a file's name or a list of records; of a data frame, frame.to_dict('records')"
    check(isinstance(data, Sequence), "the data set", f"a {type(data).__name__}", rule)
    return data


def _changed(task: TaskConfig, settings: Sequence[str]) -> set[str]:
    """Return the names of the task's settings that are changed. Raises `ConfigError` for one that must not be."""
    names = set()
    for setting in settings:
        key = setting.partition("=")[0]
        name = key.removeprefix("task.").partition(".")[0]
        if not key.startswith("task."):
            raise ConfigError(f"{setting}: not a setting of the task; of a trained run only those can be set")
        if name in task.fixed:
            raise ConfigError(f"{setting}: the run was trained with its own task.{name}, which stays; leave it out")
        names.add(name)
    return names


def _found(run: Path, checkpoint: Path, names: Iterable[str]) -> Iterator[str]:
    """Yield settings with the values that measuring the validation set found for them at a step."""
    number = step_number(checkpoint)
    for name in names:
        rows = [row for row in load_history(run).evaluation if row["step"] == number and name in row]
        if rows:
            yield f"task.{name}={rows[-1][name]!r}"
        else:
            rule = "was not measured, so task.%s is not known; a setting gives it: task.%s=VALUE"
            log.warning(f"%s: {rule}", checkpoint, name, name)
