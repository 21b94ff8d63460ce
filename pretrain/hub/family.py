"""A Hugging Face family: where its tensors lie in ours, its configuration both ways, the heads of its task classes.

Holds what the tables mean and the choice among families; each family has a file of its own, which this module knows
nothing of. Reading and writing checkpoints is in `weights` and `export_dir`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import Enum
from math import prod
from typing import Any, ClassVar, NamedTuple

import torch

from pretrain.errors import ConfigError, check
from pretrain.hub.config_json import Settings, shown
from pretrain.hub.task_heads import NO_HEADS, HeadKind, Heads, TaskHead
from pretrain.hub.weight_files import StoredTensors
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.base import ModelConfig, ModelKind
from pretrain.models.decoder import MUP, DecoderConfig
from pretrain.models.encoder import EncoderConfig
from pretrain.models.encoder_decoder import EncoderDecoderConfig
from pretrain.models.network import TRAINING, default_of
from pretrain.registry import choices

Config = DecoderConfig | EncoderConfig | EncoderDecoderConfig


class Run(NamedTuple):
    """Rows that follow each other in our tensor and in theirs."""

    theirs: int  # the first of them there
    ours: int  # the same here
    rows: int


class HFTensor(NamedTuple):
    """One tensor of a Hugging Face checkpoint: whole rows of one of our tensors, perhaps transposed or reordered.

    Each element of ours lies in exactly one of them, so a list of these serves both directions.
    """

    theirs: str  # name in the Hugging Face checkpoint
    ours: str  # name in our model, or in the objective around it
    shape: tuple[int, ...]  # of these rows, as ours are
    row: int = 0  # the first of them
    transposed: bool = False  # theirs has the rows as columns
    is_row: bool = False  # ours has one dimension, theirs is a matrix of one row
    heads: int = 1  # theirs lists rows head by head: query, key, value; ours has all queries, all keys, all values

    @property
    def numel(self) -> int:
        """Elements of the tensor."""
        return prod(self.shape)

    @property
    def start(self) -> int:
        """First element, counted in our flattened tensor."""
        return self.row * prod(self.shape[1:])

    @property
    def their_shape(self) -> tuple[int, ...]:
        """Shape in the Hugging Face checkpoint."""
        if self.is_row:
            return (1, *self.shape)
        return self.shape[::-1] if self.transposed else self.shape

    def runs(self) -> Iterator[Run]:
        """Yield the rows in the order of theirs."""
        if self.heads == 1:
            yield Run(0, self.row, self.shape[0])
            return
        rows = self.shape[0] // (3 * self.heads)  # of the query, the key or the value of a head
        for head in range(self.heads):
            for part in range(3):
                yield Run((3 * head + part) * rows, self.row + (part * self.heads + head) * rows, rows)


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """Where the tensors of a family's checkpoints lie in ours."""

    names: dict[str, str | tuple[str, ...]]  # of our modules (see `place_of`) and theirs; several: rows in that order
    prefix: str  # of the body's names; checkpoints of the body alone lack it
    transposes_blocks: bool = False  # the matrices of its blocks have rows as columns
    by_head: tuple[str, ...] = ()  # our names of fused projections whose rows lie there head by head
    derived: tuple[str, ...] = ()  # endings of stored tensors that follow from the configuration: masks, frequencies
    tied: dict[str, str] = field(default_factory=dict)  # names of the head's copies, and of which, in tied models
    copies: dict[str, str] = field(default_factory=dict)  # names of other copies, and of which, in all models
    rows: tuple[str, ...] = ()  # parameters of ours that are matrices of one row there
    beside: dict[str, str] = field(default_factory=dict)  # modules of objectives, and theirs: its files may hold them
    unused: tuple[str, ...] = ()  # beginnings of the body's tensors that our models do not have
    other_names: dict[str, str] = field(default_factory=dict)  # beginnings of names in some files, and these here


class Family:
    """A Hugging Face architecture that some of our models are: three tables, and overrides where tables do not suffice.

    Defining a subclass registers it; its name begins those of its classes in transformers.
    """

    config_type: ClassVar[type[Config]]  # our configuration of its models
    model_type: ClassVar[str]  # in config.json
    architecture: ClassVar[str]  # the class in transformers
    pretraining: ClassVar[str] = ""  # the class that also has the tensors `beside` the model, if there is one
    objective: ClassVar[str] = ""  # that trains the class `pretraining`; "": the usual one of such networks
    tensors: ClassVar[Tensors]
    settings: ClassVar[Settings]
    heads: ClassVar[Heads] = NO_HEADS  # of its classes for tasks; we have none of encoder-decoders

    def __init_subclass__(cls) -> None:
        FAMILIES[cls.model_type] = cls()

    @property
    def body_architecture(self) -> str:
        """The name of the class without any head."""
        return f"{type(self).__name__}Model"

    def task_architecture(self, kind: HeadKind) -> str:
        """Return the name that the class with a task's head has or would have."""
        return type(self).__name__ + kind.ending

    def head(self, kind: HeadKind) -> TaskHead:
        """Return the head of the class for a task. Raises `ConfigError` where `transformers` has no such class."""
        if (found := self.heads.of(kind)) is None:
            missing = self.task_architecture(kind)
            raise ConfigError(f"transformers has no {missing}: this model cannot be exported")
        return found

    def task_of(self, theirs: dict[str, Any]) -> HeadKind | None:
        """Return what the head of a config.json's class makes predictions for; None: it is no class for a task."""
        named = theirs.get("architectures") or []
        return next((kind for kind in HeadKind if self.task_architecture(kind) in named), None)

    def differences(self, config: Any) -> Iterator[str]:
        """Yield why this architecture cannot express a configuration of its type, setting by setting."""
        plain, settings = config.plain(), self.settings
        written = {*settings.same.values(), *settings.translated, *TRAINING, *MUP, "family"}
        # What no key of theirs says is in all of its models as `network` makes it.
        known = {key.name: [default_of(key)] for key in fields(config) if key.name not in written}
        known |= {key: [value] for key, value in settings.fixed.items()}
        known["activation"] = list(settings.activations)
        for key, values in known.items():
            if (found := getattr(plain, key)) not in values:
                yield self.lacks(key, found, f"which has {' and '.join(map(_shown, values))} only")

    def lacks(self, key: str, found: Any, rule: str) -> str:
        """Return the message for a setting of ours that this architecture does not have."""
        return f"model.{key}={_shown(found)}: is not supported by {self.architecture}, {rule}"

    def model_tensors(self, config: Any, vocab_size: int, prefix: str = "") -> Iterator[HFTensor]:
        """Yield every tensor, in the order of the model; a tied head is none. `prefix` is put before our names."""
        with torch.device("meta"):
            model = config.build(vocab_size=vocab_size, attend=sdpa)
        names, queries = self.names(config), config.heads * config.head_width
        for name, parameter in model.named_parameters():
            if name in self.tensors.rows:
                yield HFTensor(str(names[name]), prefix + name, tuple(parameter.shape), is_row=True)
                continue
            module, leaf = name.rsplit(".", 1)
            place, layer = place_of(config, module)
            theirs = names[place]
            fused = [theirs] if isinstance(theirs, str) else theirs
            transposed = self.tensors.transposes_blocks and layer is not None and parameter.ndim == 2
            heads = config.heads if place in self.tensors.by_head else 1
            row = 0
            for their, rows in zip(fused, _rows(len(fused), len(parameter), queries), strict=True):
                shape = (rows, *parameter.shape[1:])
                named = f"{their.replace('#', str(layer))}.{leaf}"
                yield HFTensor(named, prefix + name, shape, row, transposed, heads=heads)
                row += rows

    def names(self, config: Any) -> Mapping[str, str | tuple[str, ...]]:
        """Return the table of names for models of such a configuration."""
        return self.tensors.names

    def objective_tensors(self, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[HFTensor]:
        """Yield those tensors of an objective, of such `shapes`, that this family's checkpoints may hold."""
        for name, shape in shapes.items():
            module, _, leaf = name.rpartition(".")
            if theirs := self.tensors.beside.get(module):
                yield HFTensor(f"{theirs}.{leaf}", name, tuple(shape))

    def to_hf(self, config: Any, vocab_size: int) -> dict[str, Any]:
        """Return what `config.json` says of the network; ids of special tokens only where the network needs them."""
        plain, settings = config.plain(), self.settings
        config = replace(plain, **{key: value for key, value in plain.nulls().items() if getattr(plain, key) is None})
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "vocab_size": vocab_size,
            **{their: getattr(config, own) for their, own in (settings.same | settings.training).items()},
            "initializer_range": config.init_std,
            settings.activation_key: settings.activations[config.activation],
        }

    def from_hf(self, theirs: dict[str, Any]) -> Any:
        """Return our configuration of the same network. Raises `ConfigError` for a setting that we do not have."""
        settings = self.settings
        theirs = settings.complete(theirs)
        settings.check(theirs, self.config_type)
        self.expect(theirs, **settings.computes)
        if self.config_type.kind is not ModelKind.bidirectional:  # decoders of transformers see later tokens without
            self.expect(theirs, is_causal=True)
        if refused := settings.refused(theirs):
            key, rule = refused
            raise self.refusal(key, theirs[key], rule)
        config = self.network(theirs)
        if _nearest(config)[0] is not self:
            return replace(config, family=self.model_type)
        return config

    def network(self, theirs: dict[str, Any]) -> Any:
        """Return our configuration of a complete config.json whose keys and types are checked."""
        settings, key = self.settings, self.settings.activation_key
        activation = settings.activation(theirs[key])
        if activation is None:
            raise self.refusal(key, theirs[key], f"{', '.join(settings.activations.values())} are")
        same = {own: theirs[their] for their, own in settings.same.items()}
        return self.config_type(**settings.fixed, **same, **self.derived(theirs), activation=activation)

    def derived(self, theirs: dict[str, Any]) -> dict[str, Any]:
        """Return settings of ours that no key of theirs says alone."""
        return {}

    def as_stored(self, config: Any, stored: StoredTensors) -> Any:
        """Return the configuration of `from_hf`, or what the tensors that are `stored` beside it make of it."""
        return config

    def generation(self, special_tokens: Mapping[str, int | None]) -> dict[str, Any]:
        """Return what generation_config.json says beside the ids of special tokens, which are given by their roles."""
        return {}

    def vocab_size(self, theirs: dict[str, Any]) -> int:
        """Return the rows of the embedding of a config.json."""
        return self.settings.complete(theirs)["vocab_size"]

    def expect(self, theirs: dict[str, Any], **wanted: Any) -> None:
        """Raise `ConfigError` for the first setting of theirs that is there with another value than our models have."""
        for key, value in wanted.items():
            if theirs.get(key, value) != value:
                raise self.refusal(key, theirs[key], f"{value} is")

    def refusal(self, key: str, found: Any, rule: str) -> ConfigError:
        """Return the error for a setting of theirs that our model does not have."""
        group, name = choices()[self.config_type]
        return ConfigError(f"{key}={shown(found)} is not supported by {group}={name} ({rule})")


FAMILIES: dict[str, Family] = {}
"""Every family by its `model_type`; importing `pretrain.hub` fills it."""


def family_for(config: Any) -> Family:
    """Return the family whose models compute what a model of this configuration computes, setting for setting.

    The one that it names, if it names one, else the first. Raises `ConfigError` for a model of no family; it names the
    settings that the closest family does not support.
    """
    nearest, differences = _nearest(config)
    if differences:
        raise ConfigError(f"{'; '.join(differences)}: this model cannot be exported")
    return nearest


def _nearest(config: Any) -> tuple[Family, list[str]]:
    """Return the closest family, and why its architecture cannot express a configuration, if it cannot."""
    possible = {kind: each for kind, each in FAMILIES.items() if isinstance(config, each.config_type)}
    if not possible:
        raise ConfigError(f"{type(config).__name__}: is none of {', '.join(FAMILIES)}: this model cannot be exported")
    named = config.family
    if named is not None:
        check(named in possible, "model.family", named, f"must be one of {', '.join(possible)}, or null")
        possible = {named: possible[named]}
    differences = {family: list(family.differences(config)) for family in possible.values()}
    nearest = min(differences, key=lambda family: len(differences[family]))
    return nearest, differences[nearest]


def check_family(config: ModelConfig) -> None:
    """Raise `ConfigError` for a network that names a family that is none, or that does not compute it."""
    if config.family is not None:
        family_for(config)


def family_of(theirs: dict[str, Any]) -> Family:
    """Return the family of a Hugging Face `config.json`. Raises `ConfigError` for one that we do not have."""
    found = theirs.get("model_type")
    if not isinstance(found, str) or found not in FAMILIES:
        text = theirs.get("text_config")
        inner = text.get("model_type") if isinstance(text, dict) else None
        if isinstance(inner, str) and inner in FAMILIES:
            rule = f"reads more than text; save its {inner} alone, with text_config as its config.json"
            raise ConfigError(f"model_type={shown(found)}: is not supported, for it {rule}")
        raise ConfigError(f"model_type={shown(found)}: is not supported; choose a model of {', '.join(FAMILIES)}")
    return FAMILIES[found]


def head_for(config: Any, kind: HeadKind) -> TaskHead:
    """Return the head that a model's family has; without one it is GPT-2's if the model is causal, else BERT's.

    Raises `ConfigError` for an encoder-decoder, which has none, and what `check_family` raises.
    """
    check_family(config)
    if config.kind is ModelKind.encoder_decoder:
        rule = f"an encoder-decoder writes its answers and has no head for a {kind.value}"
        fix = "choose task=seq2seq, or a decoder or an encoder for this task"
        raise ConfigError(f"model={choices()[type(config)][1]}: {rule}; {fix}")
    try:
        return family_for(config).head(kind)
    except ConfigError:
        return FAMILIES["gpt2" if config.kind is ModelKind.causal else "bert"].head(kind)


def place_of(config: Any, module: str) -> tuple[str, str | None]:
    """Return a module's name in tables of names, and what # stands for there if it is part of a block: its number.

    Blocks are `blocks.#`; those of an encoder-decoder are `encoder.#` and `decoder.#`, each stack counted from 0.
    """
    if not module.startswith("blocks."):
        return module, None
    stack, number, rest = module.split(".", 2)
    layer = int(number)
    if config.kind is ModelKind.encoder_decoder:
        stack, layer = ("encoder", layer) if layer < config.layers else ("decoder", layer - config.layers)
    return f"{stack}.#.{rest}", str(layer)


def _rows(fused: int, rows: int, queries: int) -> list[int]:
    """Cut so many rows into tensors: one, equal ones, or `queries`, keys and values."""
    if fused == 3:
        keys = (rows - queries) // 2
        return [queries, keys, keys]
    return [rows // fused] * fused


def _shown(value: Any) -> str:
    """Return a setting as it is written in YAML."""
    if is_dataclass(value) and not isinstance(value, type):
        return f"{{{', '.join(f'{key}: {_shown(own)}' for key, own in vars(value).items())}}}"
    return json.dumps(value.value if isinstance(value, Enum) else value).strip('"')
