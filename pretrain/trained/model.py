"""A pretrained model with its tokenizer, to be used: texts encoded, continued, measured, exported.

Holds the opening and what the commands `sample`, `evaluate` and `export` do; where a model comes from is in `source`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from pretrain.checkpoint.commit import step_number
from pretrain.checkpoint.fragments import FragmentReader
from pretrain.checkpoint.load import check_architecture, fill, shapes_of
from pretrain.data.batch import IGNORED, Batch, Inputs, Ragged
from pretrain.distributed.world import World, device_of
from pretrain.errors import ConfigError, check
from pretrain.hub.export_dir import Export, hf_model, write_export
from pretrain.hub.model_card import Origin
from pretrain.hub.special_tokens import set_template
from pretrain.hub.weights import HuggingFaceWeights
from pretrain.models.attention.auto import AutoConfig
from pretrain.models.base import EncoderDecoderModel, EncoderModel, Layout, ModelKind
from pretrain.models.decoder import Decoder
from pretrain.models.encoder_decoder import EncoderDecoder
from pretrain.models.generation.beam import BeamSearch
from pretrain.models.generation.rules import NO_RULES
from pretrain.models.generation.sampling import Sampler
from pretrain.objectives.base import Objective
from pretrain.registry import choices
from pretrain.tokenizer.base import reading_markup
from pretrain.train.run_dir.record import check_written_by, read_config
from pretrain.trained.adapted import below
from pretrain.trained.base import Source, Weights
from pretrain.trained.generating import StopStrings, Writer
from pretrain.trained.measuring import Progress, Text, measurement
from pretrain.trained.source import RunSource, find_source

log = logging.getLogger(__name__)


def load(name: str | Path, *, step: int | None = None, device: torch.device | str | None = None) -> LanguageModel:
    """Open a run of pretraining, an export, a Hugging Face directory or `org/name[@revision]` on the hub.

    Of a run at a saved `step`, or else at the newest that verifies. `device` is by default a GPU where there is one,
    else the CPU. Reads hashes and shapes; the weights come with their first use.

    Raises `ConfigError` for what is no such model, a fine-tuned one among them, and `CheckpointError` for damaged files
    and for a run without that step.
    """
    check(type(step) in (int, NoneType), "step", repr(step), "must be the number of a saved step, or None")
    place = device_of(device)
    source = find_source(str(name), first=True, key="")
    assert source is not None
    check_written_by("pretrain", source.path)
    if source.is_fine_tuned:
        fix = "transformers runs it, or python -m finetune.predict the run that it was exported from"
        raise ConfigError(f"{source.name}: is fine-tuned for a task, no language model any more; {fix}")
    rule = f"only runs have steps, and {source.name} is none; leave it out"
    check(step is None or isinstance(source, RunSource), "step", step, rule)
    return LanguageModel(source, source.weights(World.alone(), step), place)


class LanguageModel:
    """A pretrained decoder or encoder, its tokenizer, and where it computes."""

    def __init__(self, source: Source, weights: Weights, device: torch.device) -> None:
        """Check that the `weights` are those of the source's network. Use `load`."""
        self.source = source
        self.weights = weights
        self.device = device
        attend = AutoConfig().build()
        objective = source.objective
        with torch.device("meta"):
            head = objective.predicts_tokens
            model = source.network.build(vocab_size=source.vocab_size, attend=attend, head=head)
            self._module = objective.build(model)
        stored, wanted = weights.weight_shapes(), shapes_of(self._module)
        base = below(weights)
        if isinstance(base, HuggingFaceWeights):
            absent = [name for name in base.absent if name not in stored]
            if absent and head:
                rule = f"has no head that predicts tokens ({', '.join(absent)})"
                raise ConfigError(f"{self.name}: {rule}; init_from takes its other weights, to train one")
            stored = {name: shape for name, shape in stored.items() if name in wanted}  # not those of objectives
        check_architecture(source.path, wanted, stored)

    def __repr__(self) -> str:
        return f"LanguageModel({self.name!r}, step={self.step}, device={str(self.device)!r})"

    @property
    def name(self) -> str:
        """What the model was opened as: a path, or `org/name@commit`."""
        return self.source.name

    @property
    def path(self) -> Path:
        """The directory of the run or of the checkpoint."""
        return self.source.path

    @property
    def step(self) -> int | None:
        """The optimizer step of a run's weights; None for what is no run."""
        return step_number(self.weights.step) if isinstance(self.weights, FragmentReader) else None

    @property
    def network(self) -> Any:
        """The configuration of the network, such as a `DecoderConfig`."""
        return self.source.network

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with. Raises `ConfigError` if there is none."""
        return self.source.load_tokenizer()

    @cached_property
    def module(self) -> Objective:
        """The model inside its objective, filled, on its device, not in training."""
        fill(self._module, self.weights, self.device)
        return self._module.eval()

    def encode(self, texts: str | Sequence[str], targets: str | Sequence[str] | None = None) -> Batch:
        """Return texts as one ragged batch, each a sequence that begins as documents did in training.

        Those of encoders also end so. The targets of decoders are the tokens that follow; encoders have none. For an
        encoder-decoder the texts are its sources, and `targets` what it is to write of each. Raises `ConfigError` for a
        text that is longer than the model's context, or has no token at all, and for targets that do not belong here.
        """
        texts = [texts] if isinstance(texts, str) else texts
        targets = [targets] if isinstance(targets, str) else targets
        check(len(texts) > 0, "texts", texts, "name at least one")
        limit = self.source.max_positions
        read = self._ragged([self._ids(text, number, limit) for number, text in enumerate(texts, 1)])
        if self.network.kind is not ModelKind.encoder_decoder:
            check(targets is None, "targets", targets, f"{self.name} is no encoder-decoder; leave them out")
            expected = np.full_like(read.tokens, IGNORED)
            if self.network.kind is ModelKind.causal:
                expected[:-1] = read.tokens[1:]
                expected[read.offsets[1:] - 1] = IGNORED
            return Batch.of(Inputs(read.tokens, expected, read.offsets)).to(self.device)
        found = 0 if targets is None else len(targets)
        check(found == len(texts), "targets", found, f"an encoder-decoder needs one a text, {len(texts)}")
        tokenizer = self.source.load_target_tokenizer()
        ids = [self._ids(target, number, limit, tokenizer) for number, target in enumerate(targets or [], 1)]
        seen = self._ragged([[self._decoder_start, *target[:-1]] for target in ids])
        return Batch.of(Inputs(seen.tokens, self._ragged(ids).tokens, seen.offsets, source=read)).to(self.device)

    @staticmethod
    def _ragged(sequences: Sequence[list[int]]) -> Ragged:
        tokens = np.array([token for sequence in sequences for token in sequence], dtype=np.int64)
        return Ragged(tokens, np.cumsum([0, *map(len, sequences)]).astype(np.int32))

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """Return what the model holds of the token that follows each, or of encoders stands at each, (N, V) fp32.

        Raises `ConfigError` for a model without a head that predicts tokens, which was trained to do something else.
        """
        if not self.source.objective.predicts_tokens:
            objective = choices()[type(self.source.objective)][1]
            rule = "whose models have no head that predicts tokens"
            raise ConfigError(f"{self.name}: was trained with objective={objective}, {rule}")
        model = self.module.model
        batch = batch.to(self.device)
        layout = Layout.of(batch.offsets, batch.max_len, batch.lengths)
        if isinstance(model, EncoderModel):
            hidden = model(batch.tokens, batch.positions, layout, batch.segments)
            return F.linear(model.head_input(hidden), model.head_weight(), model.head_bias())
        if isinstance(model, EncoderDecoderModel):
            hidden = model(batch.tokens, batch.positions, layout, batch.source)
            return F.linear(hidden, model.head_weight(), model.head_bias())
        return F.linear(model(batch.tokens, batch.positions, layout), model.head_weight())

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        max_tokens: int = 128,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = 0.95,
        min_p: float | None = None,
        samples: int = 1,
        seed: int = 1,
        beams: int | None = None,
        no_repeat_ngram: int = 0,
        stop: str | Sequence[str] = (),
        markup: bool = False,
    ) -> list[list[str]]:
        """Return `samples` continuations of each prompt, without the prompt; an encoder-decoder reads it as its source.

        A continuation ends with its document, before a string of `stop`, after `max_tokens` tokens, or with the
        positions of the model. It follows from its prompt, its number and the `seed`, and does not depend on the other
        prompts. An empty prompt begins a document. `temperature` 0 takes the likeliest token; `top_k`, `top_p` and
        `min_p` draw from the likeliest ones alone. With `beams` it is the likeliest text that beam search finds, where
        no `no_repeat_ngram` tokens stand twice; nothing is drawn. With `markup` special tokens that are written in
        prompts are read as such, and those of a continuation are kept in it, such as the sentinels of T5. Raises
        `ConfigError` for an encoder, and for a prompt that leaves no room.
        """
        prompts = [prompts] if isinstance(prompts, str) else prompts
        rule = "belongs to beam search; give beams, too"
        check(beams is not None or not no_repeat_ngram, "no_repeat_ngram", no_repeat_ngram, rule)
        how = Sampler(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
        if beams is not None:
            how = BeamSearch(beams=beams, no_repeat_ngram=no_repeat_ngram)
        return list(self.continued(prompts, how, max_tokens=max_tokens, samples=samples, stop=stop, markup=markup))

    def continued(
        self,
        prompts: Sequence[str],
        how: Sampler | BeamSearch,
        *,
        max_tokens: int,
        samples: int = 1,
        stop: str | Sequence[str] = (),
        markup: bool = False,
    ) -> Iterator[list[str]]:
        """Yield what `generate` returns, prompt after prompt. All prompts are checked before the first is continued."""
        kind, limit = self.network.kind, self.source.max_positions
        if kind is ModelKind.bidirectional:
            raise ConfigError(f"{self.name}: is an encoder, which writes no text; name a model with a decoder")
        if not isinstance(self._module.model, Decoder | EncoderDecoder):
            found = type(self._module.model).__name__
            raise ConfigError(
                f"{self.name}: is a {found}, which takes no key-value cache; name a decoder to write texts"
            )
        check(samples >= 1, "samples", samples, "must be at least 1")
        rule = "beam search finds one text of each prompt; leave it out"
        check(samples == 1 or isinstance(how, Sampler), "samples", samples, rule)
        strings = StopStrings(self.tokenizer, [stop] if isinstance(stop, str) else stop)
        reads = kind is ModelKind.encoder_decoder
        start = self._decoder_start if reads else None
        last = limit if reads or limit is None else limit - 1
        with reading_markup(self.tokenizer, markup=markup):
            ids = [self._ids(prompt, number, last) for number, prompt in enumerate(prompts, 1)]
        before = 0 if reads else max(map(len, ids), default=0)
        if before + max_tokens > self.network.max_seq_len:
            known = f"{self.name} was made for texts of {self.network.max_seq_len:,} tokens"
            beyond = "it ends there" if limit else "what lies beyond may make no sense"
            log.warning("%s, and the longest may get %s: %s", known, f"{before + max_tokens:,}", beyond)
        prefix, suffix = self.source.template or ([], [])
        model: Any = self.module.model
        rules = self.source.rules or NO_RULES
        stop_ids = [*(suffix or prefix)[:1], *rules.ends]  # none where nothing marks the ends of documents
        writer = Writer(
            model=model,
            tokenizer=self.tokenizer,
            stop_ids=stop_ids,
            decoder_start=start,
            rules=rules,
            markup=markup,
        )
        return writer.texts(ids, how, max_tokens=max_tokens, samples=samples, strings=strings)

    @property
    def _decoder_start(self) -> int:
        start = self.source.decoder_start
        if start is None:
            rule = "no decoder_start_token_id, the id that the decoder sees first; write it into its config.json"
            raise ConfigError(f"{self.name}: {rule}")
        return start

    def evaluate(
        self,
        *texts: Text,
        choices: Sequence[str | Path] = (),
        settings: Sequence[str] = (),
        precision: str | None = None,
        progress: Progress | None = None,
    ) -> dict[str, float]:
        """Return what an evaluation of training does, on texts together: `loss`, `perplexity`, `accuracy` and so on.

        Texts are files, folders, patterns and URLs that `data` can read, names on the hub, prepared corpora, or sources
        such as `TextSource`; without any it is what the run held out, and the figures are those of its own evaluation.
        They are prepared with the model's tokenizer in `data.prepare.root`, once. Beside the figures stand `documents`,
        `text_bytes` (if all of it was measured), `tokens` that the model read, `targets` among them, and `seq_len`.

        `choices` are JSON lines files of multiple-choice questions, as `eval.choices` takes them, which a decoder
        answers: `choices/NAME`, `choices/NAME/raw`, and beside them `/chance` and `/questions`. Given without texts
        they alone are measured.

        `settings` (KEY=VALUE) are those of the sources, such as documents=line or field=review, source=jsonl for the
        kind of all, and those of a run that decide the figures, such as data.seq_len=512. Those of a run are its own
        unless changed, `precision` (fp32, bf16, fp16) among them. Raises `ConfigError` and `DataError`.
        """
        planned = measurement(self.source, texts, choices, settings, precision)
        return planned.run(self.module, self.device, progress)

    def export(
        self, out: str | Path | None = None, *, dtype: str = "fp32", shard_mb: int = 5000, overwrite: bool = False
    ) -> Path:
        """Write the weights as a directory that `transformers` loads, and return it; by default `export/` in the run.

        `dtype` is fp32, bf16 or fp16, and a weight file has at most `shard_mb` MB. An export of another run or step is
        replaced only by `overwrite`, and nothing else ever is. Raises `ConfigError` for a model of no family, and for
        one that is in that layout already.
        """
        if not isinstance(self.source, RunSource):
            raise ConfigError(f"{self.name}: is in the layout of transformers already; name a run")
        record, network, tokenizer = self.source.record, self.network, self.source.load_tokenizer()
        family, config, special_tokens, generation = hf_model(network, record, tokenizer)
        shapes = shapes_of(self._module)
        beside = list(family.objective_tensors(shapes))
        body = family.model_tensors(network, record["vocab_size"], "model.")
        tensors = [*(tensor for tensor in body if tensor.ours in shapes), *beside]
        architecture = family.architecture if self.source.objective.predicts_tokens else family.body_architecture
        if left_out := sorted(shapes.keys() - {tensor.ours for tensor in tensors}):
            log.warning("left out, as %s has no place for them: %s", architecture, ", ".join(left_out))
        if self.source.objective.wants_special_tokens:
            set_template(tokenizer, record["document_frame"], network.token_types)
        assert isinstance(self.weights, FragmentReader)
        export = Export(
            model=network,
            tensors=tensors,
            read=self.weights,
            tokenizer=tokenizer,
            config=config | {"architectures": [family.pretraining if beside else architecture]},
            special_tokens=special_tokens,
            generation=None if network.kind is ModelKind.bidirectional else generation,
            run=record["name"],
            step=step_number(self.weights.step),
            origin=Origin(step=self.weights.step, record=record, settings=read_config(self.path)),
        )
        place = Path(out or self.path / "export")
        return write_export(export, place, dtype=dtype, shard_mb=shard_mb, overwrite=overwrite)

    def _ids(self, text: str, number: int, limit: int | None, tokenizer: Tokenizer | None = None) -> list[int]:
        prefix, suffix = self.source.template or ([], [])
        ids = prefix + (tokenizer or self.tokenizer).encode(text, add_special_tokens=False).ids
        ids += [] if self.network.kind is ModelKind.causal else suffix
        rule = "has no token, and the tokenizer none that begins a document; write one"
        check(bool(ids), f"text {number}", repr(text), rule)
        rule = f"{self.name} has room for {limit} here; shorten it"
        check(limit is None or len(ids) <= limit, f"tokens of text {number}", len(ids), rule)
        return ids
