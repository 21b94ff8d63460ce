"""The one registry of choices: dataclasses stored as nodes of Hydra's ConfigStore.

Holds how a choice is added and how a composed configuration becomes plain objects, not the choices themselves.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import TypeVar

from hydra.core.config_store import ConfigStore

T = TypeVar("T")

_nodes: dict[type, tuple[str, str]] = {}  # class -> (group, name)


def register(group: str, name: str) -> Callable[[type[T]], type[T]]:
    """Store the decorated dataclass as the choice `name` of a config group, e.g. `model=decoder`."""

    def store(node: type[T]) -> type[T]:
        _nodes[node] = (group, name)
        ConfigStore.instance().store(group=group, name=name, node=node)
        return node

    return store


def discover(package: ModuleType) -> None:
    """Import every module of a package, so that adding a file adds its choices."""
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)


def choice_of(node: type) -> tuple[str, str] | None:
    """Return (group, name) under which a class was registered, None for one that was not."""
    return _nodes.get(node)
