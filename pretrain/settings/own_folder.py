"""A folder of the user's own, `--config-dir`, as a place where Hydra finds files: each is read as data.

Holds what such a file may not say: nothing of Hydra's own, nothing outside the folder, no name that is taken.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult
from omegaconf import OmegaConf

from pretrain.errors import ConfigError
from pretrain.settings.grammar import is_hydras
from pretrain.settings.yaml_files import check_references, read_settings, texts_in


class OwnFolder(FileConfigSource):
    """Files below own://FOLDER."""

    @staticmethod
    def scheme() -> str:
        """Return how the folder is told from Hydra's own places."""
        return "own"

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
        values = read_settings(path)
        try:
            header = self._get_header_dict(path.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise ConfigError(f"{path}: its first lines: {error}") from None
        if config_path.startswith("experiment/") and header["package"] is None:
            rule = "an experiment begins with the line `# @package _global_`, without which its keys are not the root's"
            raise ConfigError(f"{path}: {rule}")
        defaults = _defaults(values.get("defaults", []), path)
        if hydras := [each for each in [*values, str(header["package"]), *defaults] if is_hydras(each)]:
            raise ConfigError(f"{path}: {hydras[0]}: settings of Hydra's own are not read; take it out")
        check_references(values, path)
        return ConfigResult(
            config=OmegaConf.create(values), path=self.full_path(), provider=self.provider, header=header
        )


def _is_entry(entry: Any) -> bool:
    choices = entry.values() if isinstance(entry, dict) else [entry]
    return isinstance(entry, dict | str) and all(choice is None or isinstance(choice, str | list) for choice in choices)


def _defaults(entries: Any, path: Path) -> list[str]:
    """Return the groups, packages and choices that a defaults list names, with its keywords. Raises `ConfigError`."""
    entries = entries if isinstance(entries, list) else [entries]
    if strange := [entry for entry in entries if not _is_entry(entry)]:
        raise ConfigError(f"{path}: defaults: {strange[0]}: defaults are a list of GROUP: CHOICE and of names of files")
    names = [part.removeprefix("/") for text in texts_in(entries) for part in re.split(r"[@\s]+", text)]
    if outside := [name for name in names if ".." in name or name.startswith("/")]:
        raise ConfigError(f"{path}: defaults: {outside[0]}: leads out of the folder; name a file of a group")
    return names
