"""Files of the user's own, named by a path or found in the folder `--config-dir`: each is read as data.

Holds what such a file may not say: nothing of Hydra's own, nothing outside its folder, no name that is taken. The
plugins that it names are imported, since it is the user's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import OmegaConf

from pretrain.errors import ConfigError
from pretrain.settings.grammar import is_hydras
from pretrain.settings.plugins import import_plugins
from pretrain.settings.yaml_files import check_references, place, read_settings, texts_in

EXPERIMENT = "experiment"  # the group of files whose keys are those of the root


class OwnFolder(FileConfigSource):
    """Files in a folder that has the layout of conf/."""

    def load_config(self, config_path: str) -> ConfigResult:
        """Return a file of the folder. Raises `ConfigError` for one that is refused."""
        name = self._normalize_file_name(config_path)
        path = Path(self.path, name)
        if not path.is_file():
            raise ConfigLoadError(f"Config not found : {path}")
        if ConfigStore.instance().get_type(name) is ObjectType.CONFIG:
            raise ConfigError(
                f"{path}: {config_path} is the name of one of Headwater's own; give the file another name"
            )
        return read_own(path, config_path)


class OwnFiles(ConfigSource):
    """Single files, wherever they are."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        """Serve `files`, by GROUP/NAME."""
        super().__init__("own", "own://")
        self._files = files

    @staticmethod
    def scheme() -> str:
        """Return how Hydra would tell them from its own."""
        return "own"

    def load_config(self, config_path: str) -> ConfigResult:
        """Return a file. Raises `ConfigError` for one that is refused."""
        return read_own(self._files[config_path], config_path)

    def is_config(self, config_path: str) -> bool:
        return config_path in self._files

    def is_group(self, config_path: str) -> bool:
        return False

    def available(self) -> bool:
        return True

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return []


def read_own(path: Path, config_path: str) -> ConfigResult:
    """Return what a file of the user's holds, after importing its plugins. Raises `ConfigError`.

    `config_path` is GROUP/NAME; an experiment's keys are those of the root.
    """
    values = read_settings(path)
    package = _package(path)
    if config_path.startswith(f"{EXPERIMENT}/"):
        if package not in (None, "_global_"):
            rule = "the keys of an experiment are those of the root: `# @package _global_`, or no such line"
            raise ConfigError(f"{path}:1: @package {package}: {rule}")
        package = "_global_"
        _check_experiment(values, path)
    defaults = _defaults(values.get("defaults", []), path)
    if hydras := [each for each in [*values, str(package), *defaults] if is_hydras(each)]:
        raise ConfigError(f"{place(path, hydras[0])}: {hydras[0]}: settings of Hydra's own are not read; take it out")
    check_references(values, path)
    if package == "_global_":
        names = values.get("plugins", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"{place(path, 'plugins')}: plugins: takes a list of modules: [my.module]")
        try:
            import_plugins(names)
        except ConfigError as error:
            raise ConfigError(f"{place(path, 'plugins')}: {error}") from None
    return ConfigResult(config=OmegaConf.create(values), path=str(path), provider="own", header={"package": package})


def _package(path: Path) -> str | None:
    """Return what the first lines of a file say of the place of its keys. Raises `ConfigError` for other such lines."""
    try:
        header = ConfigSource._get_header_dict(path.read_text(encoding="utf-8-sig"))
    except ValueError:
        raise ConfigError(f"{path}:1: a line that begins with # @ is `# @package NAME`, and nothing more") from None
    if others := sorted(header.keys() - {"package"}):
        raise ConfigError(f"{path}:1: @{others[0]}: there is only `# @package NAME`")
    return header["package"]


def _check_experiment(values: Mapping[str, Any], path: Path) -> None:
    """Refuse what is meant well in an experiment and would be taken for something else. Raises `ConfigError`."""
    groups = {name for name, held in ConfigStore.instance().repo.items() if isinstance(held, dict)}
    for key, value in values.items():
        if "." in key:
            rule = "in a file a setting stands below its group, indented"
            raise ConfigError(f"{place(path, key)}: {key}: {rule}: {key.replace('.', ': {', 1)}: ...}}")
        if key == EXPERIMENT:
            raise ConfigError(f"{place(path, key)}: {key}: another experiment is named under defaults: `- {value}`")
        if key in groups and isinstance(value, str | list):
            rule = f"a choice is made under defaults: `- override /{key}: {value}`"
            raise ConfigError(f"{place(path, key)}: {key}: {rule}")
    defaults = values.get("defaults")
    for entry in defaults if isinstance(defaults, list) else []:
        for words, choice in entry.items() if isinstance(entry, dict) else []:
            *keywords, group = str(words).split()
            if group.removeprefix("/") in groups and not (group.startswith("/") and "override" in keywords):
                rule = f"an experiment changes a choice by `- override /{group.removeprefix('/')}: {choice}`"
                raise ConfigError(f"{place(path, 'defaults')}: defaults: {words}: {rule}")


def _is_entry(entry: Any) -> bool:
    choices = entry.values() if isinstance(entry, dict) else [entry]
    return isinstance(entry, dict | str) and all(choice is None or isinstance(choice, str | list) for choice in choices)


def _defaults(entries: Any, path: Path) -> list[str]:
    """Return the groups, packages and choices that a defaults list names, with its keywords. Raises `ConfigError`."""
    entries = entries if isinstance(entries, list) else [entries]
    where = f"{place(path, 'defaults')}: defaults"
    if strange := [entry for entry in entries if not _is_entry(entry)]:
        raise ConfigError(f"{where}: {strange[0]}: defaults are a list of GROUP: CHOICE and of names of files")
    names = [part.removeprefix("/") for text in texts_in(entries) for part in re.split(r"[@\s]+", text)]
    if outside := [name for name in names if ".." in name or name.startswith("/")]:
        raise ConfigError(f"{where}: {outside[0]}: leads out of the folder; name a file of a group")
    for entry in entries:  # Hydra takes any word before a group for a part of its name
        words = str(next(iter(entry), "") if isinstance(entry, dict) else entry).split()
        if wrong := [word for word in words[:-1] if word not in ("override", "optional")]:
            raise ConfigError(f"{where}: {wrong[0]}: before a group there may be `override` or `optional`")
    return names
