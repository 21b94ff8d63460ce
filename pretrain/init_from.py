"""Where the first weights of a run come from: another run, an export, a released checkpoint, or a random draw.

Holds how a source is found and read, once, and what of it fits a new module; heads and adapters are fine-tuning's.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.checkpoint.base import WEIGHT, Reader
from pretrain.checkpoint.commit import step_names
from pretrain.checkpoint.fragments import FragmentReader
from pretrain.checkpoint.load import Shapes, check_architecture, fragments_of, load_state
from pretrain.data.packing import Packing
from pretrain.distributed.world import World
from pretrain.errors import CheckpointError, ConfigError, DataError
from pretrain.hub.download import cached, fetch, is_hub_name
from pretrain.hub.weights import HuggingFaceWeights, read_network
from pretrain.models.base import named_tensors
from pretrain.models.init import draw
from pretrain.objectives.base import Objective
from pretrain.registry import choices, plain
from pretrain.settings.paths import expanded
from pretrain.tokenizer.base import TokenizerConfig, describe, find_mask, load_tokenizer, num_ids, tokenizer_sha256
from pretrain.tokenizer.file import TokenizerFile
from pretrain.train.run_dir import read_record
from pretrain.train.trained_run import network_of, step_of, tokenizer_of

# Settings that change what the same weights compute. A difference in the first group makes them another network; with
# the second a trained network may sensibly continue (a longer context wants another rope_theta), so a difference is
# only logged. Two files of one tokenizer may hash differently, hence its place there.
_NETWORK = tuple(
    f"model.{key}" for key in ("heads", "norm", "order", "activation", "positions", "position_offset", "token_types")
)
_TUNABLE = (
    *(f"model.{key}" for key in ("norm_eps", "rope_theta", "local_rope_theta", "window", "global_every")),
    "tokenizer",
)
_MODEL = "model."  # prefix of the model's tensors; those of an objective come and go with it
_VOCABULARY = ("model.embedding.weight", "model.head.weight", "model.head.bias")  # one row per token

FOREIGN = 0.01  # share of the ids that may stand for other tokens: a few special ones are often renamed

log = logging.getLogger(__name__)


class Source(ABC):
    """A trained model that a run can start from. It is read on demand, and nothing twice."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name  # what a run records: a path, or `org/name@commit`
        self.path = path  # directory of the run, or of the Hugging Face checkpoint

    @property
    @abstractmethod
    def network(self) -> Any:
        """Our configuration of the network: a registered dataclass such as `DecoderConfig`."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The rows of the embedding: the ids of the tokenizer, and maybe padding for the hardware."""

    @property
    @abstractmethod
    def template(self) -> tuple[list[int], list[int]] | None:
        """The ids before and after a document; None: the tokenizer does not say."""

    @property
    @abstractmethod
    def mask(self) -> int | None:
        """The id of the mask token; None: the tokenizer has none."""

    def check(self) -> None:
        """Raise `CheckpointError` or `ConfigError` for a source that no run could start from; milliseconds."""
        file = self.path / "tokenizer.json"
        if file.is_file():  # with a tokenizer of its own a run needs none here
            try:
                tokenizer_of(self.path)
            except DataError as error:  # what is damaged is no corpus
                raise CheckpointError(str(error)) from None

    @abstractmethod
    def weights(self, world: World, step: int | None = None) -> HuggingFaceWeights | FragmentReader:
        """Return the reader of the weights: of a run, at `step` or the newest that verifies. A collective."""

    @abstractmethod
    def settings(self, weights: Any) -> dict[str, Any]:
        """Return the settings that these `weights` were trained with: `model.*` and the hash of the `tokenizer`."""

    @cached_property
    def tokenizer(self) -> Path:
        """The tokenizer.json. Raises `ConfigError` if there is none."""
        file = self.path / "tokenizer.json"
        if not file.is_file():
            fix = "name a directory with one beside its weights (save_pretrained of transformers' AutoTokenizer)"
            raise ConfigError(f"init_from={self.name}: no tokenizer.json, which says what the ids stand for; {fix}")
        return file

    @cached_property
    def _default_mask(self) -> int | None:
        ids = load_tokenizer(self.tokenizer).get_vocab(with_added_tokens=True)
        return ids.get(find_mask(ids) or "")


class ReleasedSource(Source):
    """A directory in Hugging Face's layout: an export of ours, or a released checkpoint."""

    @cached_property
    def _weights(self) -> HuggingFaceWeights:
        return HuggingFaceWeights(self.path)

    @cached_property
    def _described(self) -> tuple[Any, int]:
        """The network of config.json and the rows of its embedding; the weights need not be there."""
        _, network, parts = read_network(self.path / "config.json")
        return network, next(part.shape[0] for part in parts if part.ours == _VOCABULARY[0])

    @property
    def network(self) -> Any:
        return self._described[0]

    @property
    def vocab_size(self) -> int:
        return self._described[1]

    @property
    def template(self) -> tuple[list[int], list[int]] | None:
        try:
            facts = describe(self.tokenizer, TokenizerConfig())
        except ConfigError:
            return None
        return facts.prefix, facts.suffix

    @property
    def mask(self) -> int | None:
        return self._default_mask

    def check(self) -> None:
        """Refuse also damaged weights and unknown architectures."""
        _ = self._weights
        super().check()

    def weights(self, world: World, step: int | None = None) -> HuggingFaceWeights:
        return self._weights

    def settings(self, weights: Any) -> dict[str, Any]:
        settings = {f"model.{key}": value for key, value in plain(self.network).items()}
        if (self.path / "tokenizer.json").is_file():
            settings["tokenizer"] = tokenizer_sha256(self.tokenizer)[:16]
        return settings


class RunSource(Source):
    """A run directory of pretraining or of fine-tuning."""

    @cached_property
    def record(self) -> dict[str, Any]:
        """The run's run.json."""
        return read_record(self.path, "vocab_size", "document_frame")

    @property
    def is_fine_tuned(self) -> bool:
        """Whether it is a run of fine-tuning, whose head has named outputs."""
        return "names" in self.record

    @property
    def network(self) -> Any:
        return network_of(self.path)

    @property
    def vocab_size(self) -> int:
        return self.record["vocab_size"]

    @property
    def template(self) -> tuple[list[int], list[int]]:
        prefix, suffix = self.record["document_frame"]
        return prefix, suffix

    @property
    def mask(self) -> int | None:
        named = self.record.get("mask")  # not in runs older than the setting `tokenizer.mask`
        return self._default_mask if named is None else named

    def check(self) -> None:
        """Refuse also a run without a saved step."""
        super().check()
        if not step_names(self.path / "checkpoints"):
            raise CheckpointError(f"init_from={self.name}: no step is saved there; name another, or train it first")

    def weights(self, world: World, step: int | None = None) -> FragmentReader:
        return fragments_of(step_of(self.path, world, step))

    def settings(self, weights: FragmentReader) -> dict[str, Any]:
        return load_state(weights.step).get("resume", {})


def find_source(init_from: str, *, first: bool) -> Source | None:
    """Return what `init_from` names, checked; None on the ranks that wait while the `first` one fetches from the hub.

    No collective, and milliseconds but for the fetching: it comes before hours of preparation. Raises `ConfigError`
    for what is no source and for a network that our models are not, `CheckpointError` for damaged files and for a run
    without a saved step.
    """
    if is_hub_name(init_from):
        if not first:
            return None
        init_from = fetch(init_from)
    source = open_source(init_from)
    source.check()
    return source


def settings_from(init_from: str) -> dict[str, Any]:
    """Return what a pretraining run takes over from a source besides its weights, by the dotted keys of its settings.

    `model`, `tokenizer` and `objective` are configurations, the others single values. Reads no weights. Raises what
    `open_source` raises.
    """
    source = open_source(fetch(init_from, weights=False) if is_hub_name(init_from) else init_from)
    name_of: Any = load_tokenizer(source.tokenizer).id_to_token
    prefix, suffix = ([name_of(token) for token in ids] for ids in source.template) if source.template else (None, None)
    mask = None if source.mask is None else name_of(source.mask)
    objectives = {name: kind for kind, (group, name) in choices().items() if group == "objective"}
    objective = objectives["causal_lm" if source.network.kind.generates else "masked_lm"]
    return {
        "model": source.network,
        "tokenizer": TokenizerFile(path=str(source.tokenizer.absolute()), prefix=prefix, suffix=suffix, mask=mask),
        "objective": objective(),
        **({} if source.network.kind.generates else {"data.packing": Packing.windows}),
        "data.seq_len": source.network.max_seq_len,
    }


def shared_source(source: Source | None, world: World) -> Source | None:
    """Return the source that rank 0 found, opened on the ranks that waited for it; None if it has none. A collective.

    Raises `ConfigError` on a rank that does not see it.
    """
    [name, *_] = world.gather(source.name if source else None)
    return None if name is None else source or open_source(name)  # rank 0 decides, for all ranks alike


def open_source(init_from: str) -> Source:
    """Return the source at a path, or at a name on the hub whose files are in its cache. Raises `ConfigError`."""
    path = cached(init_from) if is_hub_name(init_from) else Path(expanded(init_from, "init_from"))
    if not path.exists():
        rule = "name a run, a Hugging Face directory or, as org/name@main, a checkpoint on the hub"
        raise ConfigError(f"init_from={init_from}: no such directory; {rule}")
    if (path / "config.json").is_file():
        return ReleasedSource(init_from, path)
    if not (path / "checkpoints").is_dir():
        rule = "neither config.json (Hugging Face) nor checkpoints (a run) in it"
        raise ConfigError(f"init_from={path}: {rule}; name such a directory (merge an adapter first)")
    return RunSource(init_from, path)


class InitialWeights:
    """The randomly drawn first values of a module's tensors, without moments; a `Reader`.

    Every element is a function of seed, name and place, so each rank draws only what it holds.
    """

    def __init__(self, module: Objective, seed: int) -> None:
        """Note shapes and schemes while the module has its whole shapes, before a strategy takes it over."""
        self._tensors = {name: (tensor.shape, module.initial(name)) for name, tensor in named_tensors(module)}
        self._seed = seed

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """The whole shape of every tensor, by name."""
        return {name: shape for name, (shape, _) in self._tensors.items()}

    def kinds(self, name: str) -> dict[str, torch.Size]:
        return {WEIGHT: self._tensors[name][0]}

    def __call__(self, name: str, kind: str, start: int, numel: int) -> Tensor:
        shape, initial = self._tensors[name]
        return draw(initial, seed=self._seed, name=name, start=start, numel=numel, total=shape.numel())


class SourceWeights:
    """The weights of a source without its moments; a `Reader`.

    What the source lacks has initial values: whole tensors, rows of new tokens, elements past its end.
    """

    def __init__(self, source: Reader, held: Shapes, initial: Reader, names: Mapping[str, str] | None = None) -> None:
        """Read the tensors `held`, of the source's shapes, from the source; `names` maps ours to the source's."""
        self._source, self._initial = source, initial
        self._names = names or {}
        self._held = {name: shape.numel() for name, shape in held.items()}

    def kinds(self, name: str) -> dict[str, torch.Size]:
        return {WEIGHT: self._initial.kinds(name)[WEIGHT]}

    def __call__(self, name: str, kind: str, start: int, numel: int) -> Tensor:
        held = min(max(self._held.get(name, 0) - start, 0), numel)
        if not held:
            return self._initial(name, kind, start, numel)
        known = self._source(self._names.get(name, name), kind, start, held)
        if held == numel:
            return known
        return torch.cat([known, self._initial(name, kind, start + held, numel - held)])


def weights_from(
    source: Source, initial: InitialWeights, settings: dict[str, Any], world: World, *, tokenizer: Path
) -> SourceWeights:
    """Return the first weights of a pretraining run that starts from a source. A collective.

    `initial` are the random weights of the run's module; `settings` are what the run is recognised by on resume, of
    which `model.*` and `tokenizer` (16 digits of its hash) count here; `tokenizer` is the run's file. Raises
    `CheckpointError` for weights that do not fit.

    Tensors of an objective, and a head that the source lacks, get initial values. Tensors with a row per token may have
    another number of rows: additional rows get initial values, and surplus rows are dropped if they lie beyond the ids
    of the source's own tokenizer.
    """
    reader = source.weights(world)
    theirs = source.settings(reader)
    headless = reader.absent if isinstance(reader, HuggingFaceWeights) else []
    wanted, stored = initial.shapes, reader.weight_shapes()
    held = {name: shape for name, shape in stored.items() if name.startswith(_MODEL) or wanted.get(name) == shape}
    new = [name for name in wanted if name not in held and (name in headless or not name.startswith(_MODEL))]
    adapted = {name: wanted[name] for name in new} | _resized(source.path, wanted, held)
    check_architecture(source.path, wanted, {**held, **adapted})
    _check_settings(source.path, theirs, settings)
    if theirs.get("tokenizer") != settings.get("tokenizer"):
        _check_ids(source.path, tokenizer)
    log.info("starting from the weights of %s", source.name)
    if new:
        log.info("init_from: %s has no %s; they get initial values", source.path, ", ".join(new))
    if left := stored.keys() - held.keys():
        log.info("init_from: this run has no %s of %s", ", ".join(sorted(left)), source.path)
    return SourceWeights(reader, held, initial)


def _resized(source: Path, wanted: Shapes, stored: Shapes) -> Shapes:
    """Return the wanted shapes of tensors with a row per token whose number of rows differs from the source's."""
    resized = {
        name: wanted[name]
        for name in _VOCABULARY
        if name in wanted and name in stored and stored[name] != wanted[name] and stored[name][1:] == wanted[name][1:]
    }
    for name, shape in resized.items():
        rows, needed = stored[name][0], shape[0]
        if needed > rows:
            log.info("init_from: rows %d to %d of %s are new and get initial values", rows, needed - 1, name)
            continue
        file = source / "tokenizer.json"
        used = num_ids(load_tokenizer(file)) if file.is_file() else math.inf
        if needed < used:
            known = f"{used} of which its tokenizer.json uses"
            rule = known if used <= rows else "and no tokenizer.json says which of them are used"
            fix = f"tokens cannot be taken away; set tokenizer=file tokenizer.path={source}"
            raise CheckpointError(f"{source}: {name} has rows for {rows} tokens, {rule}, the model {needed}; {fix}")
        log.info("init_from: rows %d to %d of %s stand for no token and are left out", needed, rows - 1, name)
    return resized


def _check_ids(source: Path, own: Path) -> None:
    """Raise `CheckpointError` if many ids stand for other tokens than in the source: its embeddings are of those."""
    if not (source / "tokenizer.json").is_file():
        return
    theirs, ours = (
        {token: text for text, token in load_tokenizer(path).get_vocab(with_added_tokens=True).items()}
        for path in (source / "tokenizer.json", own)
    )
    shared = theirs.keys() & ours.keys()
    other = [token for token in sorted(shared) if theirs[token] != ours[token]]
    if len(other) > FOREIGN * len(shared):
        rule = f"{len(other)} of {len(shared)} ids stand for other tokens than there, so its embeddings mean nothing"
        raise CheckpointError(f"init_from: {rule}; set tokenizer=file tokenizer.path={source}")
    if other:
        log.warning("init_from: %d of %d ids stand for other tokens than in %s", len(other), len(shared), source)


def _check_settings(source: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    for key in _NETWORK + _TUNABLE:
        if theirs.get(key) != ours.get(key):
            difference = f"{key} is {ours.get(key)}, that of {source} {theirs.get(key)}"
            if key in _NETWORK:
                raise CheckpointError(f"{difference}; its weights mean nothing there, set {key} alike")
            log.warning("init_from: %s", difference)
