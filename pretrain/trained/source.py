"""Where a trained model comes from: another run, an export, a released checkpoint, an adapter over one of these.

Holds how such a source is found and read, once; what of it fits a new module is in `init_from`, its use in `model`.
"""

from __future__ import annotations

import difflib
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pretrain import objectives
from pretrain.checkpoint.commit import step_names
from pretrain.checkpoint.fragments import FragmentReader
from pretrain.checkpoint.load import fragments_of, load_state
from pretrain.distributed.world import World
from pretrain.errors import CheckpointError, ConfigError
from pretrain.hub.adapter_config import ADAPTER_CONFIG, BASE, read_adapter_config
from pretrain.hub.config_json import check_value
from pretrain.hub.download import cached, fetch, is_hub_name
from pretrain.hub.export_dir import DECODER_START
from pretrain.hub.family import Family
from pretrain.hub.generation_config import read_rules, rules_of
from pretrain.hub.task_heads import HeadKind
from pretrain.hub.weight_files import INDEX, WHOLE, read_json
from pretrain.hub.weights import HuggingFaceWeights, read_network
from pretrain.models.base import ModelKind
from pretrain.models.generation.rules import Rules
from pretrain.models.layers import Positions
from pretrain.objectives.base import ObjectiveConfig
from pretrain.registry import choices, discover, plain
from pretrain.settings.paths import expanded
from pretrain.tokenizer.base import (
    TokenizerConfig,
    describe,
    load_tokenizer,
    tokenizer_sha256,
)
from pretrain.train.run_dir.base import CHECKPOINTS
from pretrain.train.run_dir.record import RECORD_FILE, choice_of, read_record
from pretrain.trained.adapted import AdaptedSource
from pretrain.trained.base import EMBEDDING, Source, typed_as
from pretrain.trained.run_files import network_of, step_of

MISSPELT = 0.85  # likeness from which a name that is not there is taken for that of a run


class ReleasedSource(Source):
    """A directory in Hugging Face's layout: an export of ours, or a released checkpoint."""

    @cached_property
    def _weights(self) -> HuggingFaceWeights:
        return HuggingFaceWeights(self.path)

    @cached_property
    def _described(self) -> tuple[Family, Any, int]:
        """The family and network of config.json and the rows of its embedding; the weights need not be there."""
        family, network, parts = read_network(self.path / "config.json")
        return family, network, next(part.shape[0] for part in parts if part.ours == EMBEDDING)

    @property
    def family(self) -> Family:
        return self._described[0]

    @property
    def network(self) -> Any:
        return self._described[1]

    @property
    def is_fine_tuned(self) -> bool:
        return self.task is not None

    @property
    def task(self) -> HeadKind | None:
        """What the head of its class makes predictions for; None: it is no class for a task."""
        return self._described[0].task_of(read_json(self.path / "config.json"))

    @property
    def objective(self) -> ObjectiveConfig:
        family, network, _ = self._described
        named = read_json(self.path / "config.json").get("architectures") or []
        return objective_for(network, family.objective if family.pretraining in named else "")

    @property
    def vocab_size(self) -> int:
        return self._described[2]

    @property
    def template(self) -> tuple[list[int], list[int]] | None:
        try:
            own = _around(load_tokenizer(self.tokenizer))
            if own and self.network.kind is ModelKind.encoder_decoder:  # whose templates often have one side alone
                return own
            facts = describe(self.tokenizer, TokenizerConfig())
        except ConfigError:
            return None
        return facts.prefix, facts.suffix

    @property
    def mask(self) -> int | None:
        return self._default_mask

    @property
    def decoder_start(self) -> int | None:
        """That of config.json, else of generation_config.json, as transformers decides it."""
        if self.network.kind is not ModelKind.encoder_decoder:
            return None
        files = (self.path / "config.json", self.path / "generation_config.json")
        found = (read_json(file).get(DECODER_START) for file in files if file.is_file())
        start = next((each for each in found if each is not None), None)
        if start is not None:
            check_value(DECODER_START, start, int, most=self.vocab_size - 1)
        return start

    @property
    def rules(self) -> Rules | None:
        writes = self.network.kind is not ModelKind.bidirectional
        return read_rules(self.path, self.vocab_size) if writes else None

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
        return "names" in self.record  # of the head's outputs

    @cached_property
    def _network(self) -> Any:
        return network_of(self.path)

    @property
    def network(self) -> Any:
        return self._network

    @property
    def objective(self) -> ObjectiveConfig:
        discover(objectives)
        return choice_of(self.path, "objective")

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

    @property
    def decoder_start(self) -> int | None:
        return self.record.get("decoder_start")

    @property
    def rules(self) -> Rules | None:
        kept = self.record.get("generation")
        return None if kept is None else rules_of(kept, self.vocab_size, self.path / RECORD_FILE)

    def check(self) -> None:
        """Refuse also a run without a saved step."""
        super().check()
        if not step_names(self.path / CHECKPOINTS):
            raise CheckpointError(f"{self.typed}: no step is saved there; name another, or train it first")

    def weights(self, world: World, step: int | None = None) -> FragmentReader:
        return fragments_of(step_of(self.path, world, step))

    def settings(self, weights: FragmentReader) -> dict[str, Any]:
        # Steps of older versions do not say what was no setting then; the run's configuration does, by its defaults.
        network = {f"model.{key}": value for key, value in plain(self.network).items()}
        return network | load_state(weights.step).get("resume", {})


def find_source(name: str, *, first: bool, key: str = "init_from") -> Source | None:
    """Return the source of a name, checked; None on the ranks that wait while the `first` one fetches from the hub.

    `key` is the setting that it was typed as, if it was one. No collective, and milliseconds but for the fetching: it
    comes before hours of preparation, and what our models are not is refused before any weights are fetched. Raises
    `ConfigError` for what is no source and for a network that our models are not, `CheckpointError` for damaged files
    and for a run without a saved step.
    """
    if not first and is_hub_name(name):
        return None
    if not first and (base := _base_of(name, key)) and is_hub_name(base):
        return None
    source = described_source(name, key)
    parts = (source, source.base) if isinstance(source, AdaptedSource) else (source,)
    if of_hub := [each for each in parts if is_hub_name(each.name)]:
        _ = source.network
        for each in of_hub:
            fetch(each.name, each.typed)
        source = open_source(source.name, key)
    source.check()
    return source


def described_source(name: str, key: str = "init_from") -> Source:
    """Return the source of a name with its configuration and tokenizer, and perhaps without weights: from the hub only
    the former are fetched. Raises `ConfigError` for what is no source.
    """
    if is_hub_name(name):
        if meant := _meant(name):  # to ask a hub that cannot be reached takes a minute
            raise ConfigError(f"{typed_as(name, key)}: no such directory; {meant}")
        name = fetch(name, typed_as(name, key), weights=False)
    if (base := _base_of(name, key)) and is_hub_name(base):
        fetch(base, typed_as(base, BASE), weights=False)
    return open_source(name, key)


def shared_source(source: Source | None, world: World) -> Source | None:
    """Return the source that rank 0 found, opened on the ranks that waited for it; None if it has none. A collective.

    Raises `ConfigError` on a rank that does not see it.
    """
    [name, *_] = world.gather(source.name if source else None)
    return None if name is None else source or open_source(name)  # rank 0 decides, for all ranks alike


def open_source(name: str, key: str = "init_from") -> Source:
    """Return the source at a path, or at a name on the hub whose files are in its cache. Raises `ConfigError`."""
    path = _directory(name, key)
    if not path.exists():
        rule = "name a run, a Hugging Face directory or, as org/name@main, a checkpoint on the hub"
        raise ConfigError(f"{typed_as(name, key)}: no such directory; {_meant(name) or rule}")
    if _holds_adapter(path):
        config = read_adapter_config(path)
        if _base_of(config.base, BASE):
            rule = "is an adapter itself, and only one is added to a model; merge that one, and name the result"
            raise ConfigError(f"{path / ADAPTER_CONFIG}: {typed_as(config.base, BASE)}: {rule}")
        return AdaptedSource(name, path, key, config, open_source(config.base, BASE))
    if (path / "config.json").is_file():
        return ReleasedSource(name, path, key)
    if not (path / CHECKPOINTS).is_dir() and not (path / RECORD_FILE).is_file():
        rule = "neither config.json (Hugging Face) nor checkpoints (a run) in it"
        raise ConfigError(f"{typed_as(str(path), key)}: {rule}; name such a directory (merge an adapter first)")
    return RunSource(name, path, key)


def _directory(name: str, key: str) -> Path:
    """Return the directory of a path, or of a name on the hub in its cache."""
    return cached(name, typed_as(name, key)) if is_hub_name(name) else Path(expanded(name, key))


def _base_of(name: str, key: str) -> str | None:
    """Return the name of the base of an adapter whose files are here; None for another source."""
    path = _directory(name, key)
    return read_adapter_config(path).base if _holds_adapter(path) else None


def _holds_adapter(path: Path) -> bool:
    """Return whether a directory is that of an adapter; beside whole weights it has two meanings, see `locate`."""
    return (path / ADAPTER_CONFIG).is_file() and not any((path / name).is_file() for name in (WHOLE, INDEX))


def _meant(name: str) -> str:
    """Return "did you mean RUN?" with the run here whose path is spelt most like a name, or nothing."""
    runs = [str(record.parent) for record in Path().glob(f"*/*/{RECORD_FILE}")]
    found = difflib.get_close_matches(name, runs, n=1, cutoff=MISSPELT)
    return f"did you mean {found[0]}?" if found else ""


def objective_for(network: Any, name: str = "") -> ObjectiveConfig:
    """Return the objective of a name, or else the usual one of such a network, with its own defaults."""
    discover(objectives)
    by_name = {name: kind for kind, (group, name) in choices().items() if group == "objective"}
    corruption = "span_corruption" if network.positions is Positions.relative else "denoising"  # T5's and BART's
    names = {
        ModelKind.causal: "causal_lm",
        ModelKind.bidirectional: "masked_lm",
        ModelKind.encoder_decoder: corruption,
    }
    return by_name[name or names[network.kind]]()  # pyright: ignore[reportReturnType]


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]] | None:
    """Return the ids that a tokenizer itself puts before and after a text, None if it does neither."""
    whole, text = (tokenizer.encode("text", add_special_tokens=special).ids for special in (True, False))
    places = [at for at in range(len(whole)) if whole[at : at + len(text)] == text]
    if not text or not places or whole == text:
        return None
    return whole[: places[0]], whole[places[0] + len(text) :]
