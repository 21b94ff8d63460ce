"""The one registry of choices: dataclasses stored as nodes of Hydra's ConfigStore.

Holds how a choice is added and how a composed configuration becomes plain objects, not the choices themselves.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from types import ModuleType
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pretrain.errors import ConfigError
from pretrain.errors.nearest import nearest
from pretrain.settings.messages import rule_of
from pretrain.settings.yaml_files import check_literal

T = TypeVar("T")

_choices: dict[type, tuple[str, str]] = {}  # class -> (group, name)


def register(group: str, name: str) -> Callable[[type[T]], type[T]]:
    """Store the decorated dataclass as the choice `name` of a config group, e.g. `model=decoder`.

    Raises `ConfigError` for a name that another module has taken.
    """

    def store(node: type[T]) -> type[T]:
        taken = [known.__module__ for known, choice in _choices.items() if choice == (group, name)]
        if taken and node.__module__ not in taken:
            raise ConfigError(f"{group}={name} is registered by {taken[0]}; give yours another name")
        _choices[node] = (group, name)
        ConfigStore.instance().store(group=group, name=name, node=node)
        return node

    return store


def discover(*packages: ModuleType) -> None:
    """Import every module below the packages, so that adding a file adds its choices."""
    for package in packages:
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if "._" not in module.name:
                importlib.import_module(module.name)


def typed(cfg: DictConfig) -> Any:
    """Return the plain objects that a composed configuration describes.

    Raises `ConfigError` for a value that is missing, refused by its dataclass, or outside the schema: Hydra accepts
    `+model.foo=1`, and OmegaConf would drop it silently.
    """
    schema = OmegaConf.get_type(cfg)
    optional = {field.name for field in fields(schema) if field.default is None} if is_dataclass(schema) else set()
    for key in {group for group, _ in _choices.values()} & cfg.keys():
        if OmegaConf.is_missing(cfg, key) or (kind := OmegaConf.get_type(cfg, key)) in _choices:
            continue
        if kind is type(None) and key in optional:
            continue
        rule = "of no kind; its file has to begin with the lines `defaults:` and `  - CHOICE`"
        raise ConfigError(_required(key) if kind is type(None) else f"{key}: {rule}{_known(key)}")
    try:
        typed_config = OmegaConf.to_object(cfg)
        raw = OmegaConf.to_container(cfg, resolve=True)
    except MissingMandatoryValue as error:
        raise ConfigError(_required(str(error.full_key))) from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {rule_of(error)}") from None
    except ConfigError as error:
        raise ConfigError(_with_full_key(cfg, "", str(error))) from None
    for key, siblings in _outside_schema(typed_config, raw, ""):
        raise ConfigError(f"{key}: no such setting{nearest(key, siblings)}")
    return typed_config


def flattened(raw: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dictionaries by their dotted keys."""
    if not isinstance(raw, dict):
        return {prefix.removesuffix("."): raw}
    return {key: leaf for name, value in raw.items() for key, leaf in flattened(value, f"{prefix}{name}.").items()}


def unflattened(leaves: dict[str, Any]) -> dict[str, Any]:
    """Return nested dictionaries of leaves by their dotted keys, as `flattened` took them apart."""
    nested: dict[str, Any] = {}
    for key, leaf in leaves.items():
        *parents, name = key.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = leaf
    return nested


def choices() -> dict[type, tuple[str, str]]:
    """Return the registered classes, each with its group and name."""
    return dict(_choices)


def plain(value: Any) -> Any:
    """Return a typed configuration as nested dictionaries of plain values."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    return value.name if isinstance(value, Enum) else value


def rebuilt(choice: str, values: dict[str, Any]) -> Any:
    """Return the object of a choice, written `group=name`, from its plain values, as `plain` gives them.

    Raises `ConfigError` for values that would have to be resolved.
    """
    check_literal(values, choice)
    group, _, name = choice.partition("=")
    [kind] = [kind for kind, known in _choices.items() if known == (group, name)]
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), values))


def choices_in(typed_config: Any, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield (key, group, name) of every registered object inside a typed configuration."""
    if is_dataclass(typed_config) and not isinstance(typed_config, type):
        if choice := _choices.get(type(typed_config)):
            yield prefix.removesuffix("."), *choice
        for field in fields(typed_config):
            yield from choices_in(getattr(typed_config, field.name), f"{prefix}{field.name}.")
    elif isinstance(typed_config, dict):
        for key, value in typed_config.items():
            yield from choices_in(value, f"{prefix}{key}.")


def _required(key: str) -> str:
    return f"{key}: required and not given; add {key}=... to the command{_known(key)}"


def _known(key: str) -> str:
    options = sorted(name for group, name in _choices.values() if group == key)
    return f" (choices: {', '.join(options)})" if options else ""


def _with_full_key(cfg: DictConfig, prefix: str, refusal: str) -> str:
    """Put the whole key into a refusal: one of several objects knows its place ("data.sources.*"), not its name."""
    for name, node in cfg.items_ex(resolve=False):
        if not isinstance(node, DictConfig):
            continue
        key = f"{prefix}{name}"
        try:
            OmegaConf.to_object(node)
        except ConfigError as error:
            if str(error) == refusal and refusal.startswith(f"{prefix}*"):
                return f"{key}{refusal.removeprefix(f'{prefix}*')}"
            return _with_full_key(node, f"{key}.", refusal)
    return refusal


def _outside_schema(typed_config: Any, raw: Any, prefix: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the keys of `raw` that no dataclass field took, each with the keys that stand beside it."""
    if is_dataclass(typed_config) and not isinstance(typed_config, type):
        known = [field.name for field in fields(typed_config)]
        siblings = [f"{prefix}{name}" for name in known]
        yield from ((f"{prefix}{key}", siblings) for key in raw if key not in known)
        children = {name: getattr(typed_config, name) for name in known}
    elif isinstance(typed_config, dict):
        children = typed_config
    else:
        return
    for name, child in children.items():
        yield from _outside_schema(child, raw.get(name), f"{prefix}{name}.")
