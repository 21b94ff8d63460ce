"""A trained model with an adapter of PEFT over it.

Holds the source alone; how it is found is in `source`, its files are in `hub/adapter_files`.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from pretrain.checkpoint.low_rank import Summed
from pretrain.distributed.world import World
from pretrain.errors import ConfigError
from pretrain.hub.adapter_config import ADAPTER_CONFIG, AdapterConfig
from pretrain.hub.adapter_files import Adapter, Places, read_adapter
from pretrain.hub.family import Family
from pretrain.models.generation.rules import Rules
from pretrain.objectives.base import ObjectiveConfig
from pretrain.trained.base import Source, Weights


class AdaptedSource(Source):
    """An adapter's directory and its base, which brings all but some differences of weights; `path` is the base's."""

    def __init__(self, name: str, directory: Path, key: str, config: AdapterConfig, base: Source) -> None:
        """Raise `ConfigError` for an adapter of layers that the base does not have; its tensors need not be there."""
        super().__init__(name, base.path, key)
        self.directory, self.config, self.base = directory, config, base
        try:
            config.check_targets(self._places.modules, self.family.model_type)
        except ConfigError as error:
            raise ConfigError(f"{directory / ADAPTER_CONFIG}: {error}") from None

    @cached_property
    def _places(self) -> Places:
        return Places(self.family, self.network, self.vocab_size)

    @cached_property
    def adapter(self) -> Adapter:
        """What the adapter changes. Raises `CheckpointError` for damaged files, and for those of another network."""
        return read_adapter(self.directory, self.config, self._places)

    @property
    def family(self) -> Family:
        return self.base.family

    @property
    def network(self) -> Any:
        return self.base.network

    @property
    def is_fine_tuned(self) -> bool:
        return self.base.is_fine_tuned or self.config.has_head

    @property
    def objective(self) -> ObjectiveConfig:
        return self.base.objective

    @property
    def vocab_size(self) -> int:
        return self.base.vocab_size

    @property
    def template(self) -> tuple[list[int], list[int]] | None:
        return self.base.template

    @property
    def mask(self) -> int | None:
        return self.base.mask

    @property
    def decoder_start(self) -> int | None:
        return self.base.decoder_start

    @property
    def rules(self) -> Rules | None:
        return self.base.rules

    def check(self) -> None:
        """Refuse also what is wrong with either directory."""
        self.base.check()
        _ = self.adapter

    def weights(self, world: World, step: int | None = None) -> Summed:
        """Return the weights of the base with the adapter added."""
        adapter = self.adapter
        return Summed(self.base.weights(world), adapter.differences, adapter.own)

    def settings(self, weights: Any) -> dict[str, Any]:
        return self.base.settings(weights.weights)


def below(weights: Weights) -> Weights:
    """Return the weights that an adapter is added to, or the weights themselves."""
    return weights.weights if isinstance(weights, Summed) else weights
