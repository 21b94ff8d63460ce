"""One configuration out of files and words: later files are merged into earlier ones, and words into both.

Of Hydra it uses the grammar of words, the search for files and the order that their defaults lists make; what Hydra can
start, log to or instantiate is never reached. The merging is done here, where it is known which file sets a value and
which word or file made the choice that the value belongs to.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hydra import version
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.structured_config_source import StructuredConfigSource
from hydra._internal.defaults_list import DefaultsList, create_defaults_list
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import GroupDefault, ResultDefault
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from pretrain.errors import ConfigError, as_written
from pretrain.errors.nearest import nearest
from pretrain.settings.alternatives import taken_back
from pretrain.settings.grammar import as_text
from pretrain.settings.habits import advice, instead_of
from pretrain.settings.messages import LIST, WHOLE, defaults_rule, rule_of
from pretrain.settings.own_files import OwnFiles, OwnFolder
from pretrain.settings.yaml_files import place

SOURCES = "data.sources."  # below which each key is a source, named by its choice


class Composed(NamedTuple):
    """What files and words come to."""

    cfg: DictConfig
    chosen: dict[str, Any]  # group -> the name of what was chosen of it, or None
    left_out: list[str]  # what of which file was left out, a line each


class Files(ConfigRepository):
    """Where files of settings are looked for: `conf`, the user's own files and folder, the registered classes."""

    def __init__(self, conf: Path, own: Mapping[str, Path], folder: Path | None) -> None:
        """Look in `conf`, among `own` files by GROUP/NAME, and in a `folder`. Each is read once."""
        folders = [OwnFolder("own", str(folder))] if folder else []
        self.sources: list[ConfigSource] = [
            OwnFiles(own),
            FileConfigSource("main", str(conf)),
            *folders,
            StructuredConfigSource("schema", "structured://"),
        ]
        self._own = own
        self._folders = [conf, *([folder] if folder else [])]
        self._read: dict[str, ConfigResult | None] = {}

    def load_config(self, config_path: str) -> ConfigResult | None:
        """Return what GROUP/NAME stands for, None if nothing. Raises `ConfigError` for a file that is refused."""
        if config_path not in self._read:
            self._read[config_path] = super().load_config(config_path)
        return self._read[config_path]

    def path(self, config_path: str) -> Path | None:
        """Return the file that GROUP/NAME stands for, None if there is none."""
        there = [folder / f"{config_path}.yaml" for folder in self._folders]
        return self._own.get(config_path) or next((path for path in there if path.is_file()), None)

    def place(self, config_path: str, key: str = "") -> str:
        """Return the file, and the line of a key in it, that GROUP/NAME stands for."""
        path = self.path(config_path)
        conf = f"{self._folders[0].parent}/"
        return place(path, key).removeprefix(conf) if path else config_path

    def chooser(self, group: str, choice: str) -> str | None:
        """Return the GROUP/NAME of the user's file that makes a choice."""
        for config_path, held in self._read.items():
            for entry in (held.defaults_list or []) if held and held.provider == "own" else []:
                if isinstance(entry, GroupDefault) and (str(entry.group).removeprefix("/"), entry.value) == (
                    group,
                    choice,
                ):
                    return config_path
        return None

    @property
    def plugins(self) -> list[str]:
        """The plugins that the user's own files name."""
        return [name for place, held in self._held_by_own() if not place for name in held.get("plugins") or []]

    @property
    def settings(self) -> list[str]:
        """The dotted keys of the settings that the user's own files give."""
        return [key for place, held in self._held_by_own() for key in _keys(held, place)]

    def _held_by_own(self) -> Iterator[tuple[str, dict[Any, Any]]]:
        """Yield what the user's own files hold, each behind the place of its keys: "" for the root, or `GROUP.`"""
        for config_path, result in self._read.items():
            if result and result.provider == "own":
                held = OmegaConf.to_container(result.config, resolve=False)
                place = result.header["package"] or config_path.rpartition("/")[0].replace("/", ".")
                if isinstance(held, dict):
                    yield "" if place == "_global_" else f"{place}.", held


def composed(name: str, words: Sequence[Override], files: Files) -> Composed:
    """Compose the file, or node of Hydra's ConfigStore, of this name with what it chooses and with `words`.

    Raises `ConfigError` by file and line, or by word.
    """
    version.setbase("1.3")
    try:
        order = create_defaults_list(
            repo=files, config_name=name, overrides_list=list(words), prepend_hydra=False, skip_missing=False
        )
    except ConfigError:
        raise
    except (HydraException, ValueError, RecursionError) as error:
        raise ConfigError(_unchosen(error, files, words) or defaults_rule(error, files.place)) from None
    merging = _Merging(files, _choosers(order, words, files))
    for default in order.defaults:
        merging.add(default)
    OmegaConf.set_struct(merging.cfg, True)
    chosen = dict(order.overrides.known_choices)
    for word in order.config_overrides:
        _apply(merging.cfg, word, chosen)
    merging.replace([key for word in order.config_overrides if not word.is_delete() for key in _of_word(word)])
    return Composed(merging.cfg, chosen, merging.left_out)


class _Merging:
    """A configuration that files are merged into, in their order."""

    def __init__(self, files: Files, choosers: Mapping[str, str]) -> None:
        self.cfg = OmegaConf.create()
        self.left_out: list[str] = []
        self._files = files
        self._choosers = choosers
        self._places: dict[str, tuple[str, str]] = {}  # dotted key -> the file that gave it last, and its key there

    def add(self, default: ResultDefault) -> None:
        """Merge a file, or a class, less what belongs to a choice that somebody else has changed."""
        config_path = str(default.config_path)
        loaded = self._files.load_config(config_path)
        assert loaded is not None
        config, package = loaded.config, default.package or ""
        if isinstance(config, DictConfig) and not is_dataclass(OmegaConf.get_type(config)) and not package:
            config = self._fitting(config, config_path, default.primary and self._files.path(config_path) is not None)
        inner, prefix = config, f"{package}." if package else ""
        if package:
            config = OmegaConf.create()
            OmegaConf.update(config, package, inner, merge=False)
        try:
            self.cfg.merge_with(config)
        except OmegaConfBaseException as error:
            key = str(error.full_key) or self._refused(config)
            where = self._files.place(config_path, key.removeprefix(f"{package}.") if package else key)
            if isinstance(error, ConfigKeyError | ConfigAttributeError):
                raise ConfigError(f"{where}: {no_such_setting(key, self.cfg)}") from None
            group = key.partition(".")[0]
            chosen = f" ({self._choosers[group]} is chosen)" if group in self._choosers else ""
            value = as_written(OmegaConf.select(config, key))
            raise ConfigError(f"{where}: {key}={value}: {rule_of(error)}{chosen}") from None
        if not is_dataclass(OmegaConf.get_type(inner)):
            keys = list(_keys(OmegaConf.to_container(inner, resolve=False), ""))
            self.replace([f"{prefix}{key}" for key in keys])
            self._places |= {f"{prefix}{key}": (config_path, key) for key in keys}

    def replace(self, given: Collection[str]) -> None:
        """Leave out what files before said in other words than the settings that a file, or the words, just gave."""
        for key, instead in taken_back(self.cfg, given):
            where = f"{self._files.place(*self._places[key])}: " if key in self._places else ""
            self.left_out.append(f"{where}left out {key}: {instead} stands in its place")

    def _refused(self, config: Any) -> str:
        """Return the key of a configuration that cannot be merged."""
        values = OmegaConf.to_container(config, resolve=False)
        for key, value in values.items() if isinstance(values, dict) else ():
            try:
                OmegaConf.merge(self.cfg, {key: value})
            except OmegaConfBaseException:
                return str(key)
        return ""

    def _fitting(self, config: DictConfig, config_path: str, is_root: bool) -> DictConfig:
        """Return the settings of a file that the choices made have, and note those that only another choice has.

        They are left out where the choice was made elsewhere. Those of the root's own file are defaults: nobody misses
        them.
        """
        values: dict[str, Any] = OmegaConf.to_container(config, resolve=False)  # pyright: ignore[reportAssignmentType]
        gone: dict[str, list[str]] = {}
        for key in list(_unknown(self.cfg, values, "")):
            group, _, rest = key.partition(".")
            chooser = self._choosers.get(group)
            elsewhere = chooser is not None and not chooser.startswith(f"{config_path}: ")
            if elsewhere and (is_root or _owners(group, rest) or key.removeprefix(SOURCES) in _choices("source")):
                _remove(values, key)
                gone.setdefault(str(chooser), []).append(key)
        if not is_root:
            for chooser, keys in gone.items():
                where = self._files.place(config_path, keys[0])
                by, _, choice = chooser.rpartition(": ")
                by = f", chosen in {self._files.place(by, 'defaults')}," if by else ""
                self.left_out.append(f"{where}: left out {', '.join(keys)}: {choice}{by} has no such setting")
        return OmegaConf.create(values)


def _choosers(order: DefaultsList, words: Sequence[Override], files: Files) -> dict[str, str]:
    """Return who made the choice of each group that is not the default: a word, or `FILE: GROUP=CHOICE`."""
    known = order.overrides.known_choices
    found: dict[str, str] = {}
    for default in order.defaults:  # the later one wins, which has chosen the files before it
        loaded = files.load_config(str(default.config_path))
        for entry in (loaded.defaults_list or []) if loaded else []:
            if isinstance(entry, GroupDefault) and entry.override and entry.group:
                group = entry.group.removeprefix("/")
                found[group] = f"{default.config_path}: {group}={known.get(group)}"
    typed = {word.key_or_group for word in words if not word.is_delete()}
    return found | {group: f"{group}={known[group]}" for group in typed & known.keys()}


def no_such_setting(key: str, cfg: DictConfig, value: str = "", groups: Collection[str] = ()) -> str:
    """Return the refusal of a key, with the name that is meant or the choices that have it.

    The settings of `cfg` are known, and `groups` of choices.
    """
    known = {*groups, *_keys(OmegaConf.to_container(cfg, resolve=False), "")}
    group, _, rest = key.partition(".")
    first = f"{group}.{rest.partition('.')[0]}"
    if first not in known and (owners := _owners(group, rest) if rest else []):
        return f"{key}: no such setting of the {group} that is chosen; {group}={' and '.join(owners)} would have it"
    parent, _, name = key.rpartition(".")
    if name in _choices("source") or parent.rpartition(".")[2] in _choices("source"):
        name = name if name in _choices("source") else parent.rpartition(".")[2]
        return f"{key}: no source of this name is chosen; data={name} brings data.sources.{name}"
    return f"{key}: no such setting{advice(key, value, known) or nearest(key, known - {group})}"


def _keys(values: Any, prefix: str) -> Iterator[str]:
    """Yield the dotted keys of nested dictionaries, inner ones too."""
    for name, value in values.items() if isinstance(values, dict) else ():
        yield f"{prefix}{name}"
        yield from _keys(value, f"{prefix}{name}.")


def _of_word(word: Override) -> Iterator[str]:
    """Yield the dotted keys of the settings that a word gives a value."""
    yield word.key_or_group
    yield from _keys(word.value(), f"{word.key_or_group}.")


def _choices(group: str) -> dict[str, DictConfig]:
    """Return the classes of a group, by their names."""
    nodes = ConfigStore.instance().repo.get(group)
    nodes = nodes.items() if isinstance(nodes, dict) else []
    return {name.removesuffix(".yaml"): each.node for name, each in nodes if not isinstance(each, dict)}


def _owners(group: str, setting: str) -> list[str]:
    """Return the classes of a group that have a setting."""
    return [name for name, node in _choices(group).items() if setting.partition(".")[0] in node.keys()]  # noqa: SIM118


def _unknown(node: DictConfig, values: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Yield the dotted keys of `values` for which the classes in a configuration have no field."""
    for name, value in values.items():
        if name not in node.keys():  # noqa: SIM118 (a value that is missing is not `in` it)
            if is_dataclass(OmegaConf.get_type(node)) or (isinstance(value, dict) and prefix == SOURCES):
                yield f"{prefix}{name}"
        elif isinstance(value, dict) and not OmegaConf.is_interpolation(node, name):
            child = None if OmegaConf.is_missing(node, name) else node[name]
            if isinstance(child, DictConfig):
                yield from _unknown(child, value, f"{prefix}{name}.")


def _remove(values: dict[str, Any], key: str) -> None:
    *parents, name = key.split(".")
    for parent in parents:
        values = values[parent]
    del values[name]


def _unchosen(error: Exception, files: Files, words: Sequence[Override]) -> str | None:
    """Return the refusal of a choice, or of a group, that does not exist; None for another error."""
    if found := re.match(r"Could not override '(.+)'\. No match", str(error)):
        typed = next((str(word.value()) for word in words if word.key_or_group == found[1]), "")
        return f"{found[1]}: no such setting of this command{advice(found[1], typed, ()) or '; --help lists them'}"
    found = re.match(r"(?:In '.+': )?Could not find '(.+)'\s+Available options in '(.+)':", str(error))
    if found is None:
        return None
    missing, group = found.groups()
    choice = missing.removeprefix(f"{group}/")
    by = files.chooser(group, choice)
    where = f"{files.place(by, 'defaults')}: defaults: " if by else ""
    options: list[str] = getattr(error, "options", [])
    hint = instead_of(group, choice, options) or nearest(choice, options)
    return f"{where}{group}={choice}: no such choice{hint} (choices: {', '.join(options)})"


def _apply(cfg: DictConfig, word: Override, groups: Collection[str]) -> None:
    """Give a setting the value of a word. Raises `ConfigError`."""
    key, value, typed = word.key_or_group, word.value(), str(word.input_line)
    if word.package is not None:
        groups = [name for name, held in ConfigStore.instance().repo.items() if isinstance(held, dict)]
        raise ConfigError(f"{typed}: {key} is no group{nearest(key, groups)}; a setting is typed KEY=VALUE, without @")
    try:
        there = OmegaConf.select(cfg, key, throw_on_missing=False) is not None
        if word.is_delete():
            _delete(cfg, key, typed, there)
            return
        if word.is_add() and there and not isinstance(value, dict | list):
            raise ConfigError(f"{typed}: is there already; type it without the +: {typed[1:]}")
        OmegaConf.update(cfg, key, value, merge=True, force_add=word.is_add() or word.is_force_add())
    except (ConfigKeyError, ConfigAttributeError) as error:
        inside = str(error.full_key)  # of a dictionary that was given as a value
        key = inside if inside.startswith(f"{key}.") else key
        raise ConfigError(no_such_setting(key, cfg, typed.partition("=")[2], groups)) from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{typed}: {rule_of(error)}{_retyped(key, value, error)}") from None


def _retyped(key: str, value: Any, error: OmegaConfBaseException) -> str:
    """Return the word that was meant, where only the kind of its value is wrong."""
    rule = rule_of(error)
    if rule == WHOLE and isinstance(value, float) and value.is_integer():
        return f"; type {key}={int(value)}"
    if rule == LIST and isinstance(value, str):
        return f"; type {as_text(f'{key}=[{value}]')}"
    return ""


def _delete(cfg: DictConfig, key: str, typed: str, there: bool) -> None:
    if not there:
        raise ConfigError(f"{typed}: {no_such_setting(key, cfg)}; nothing is taken away")
    parent, _, name = key.rpartition(".")
    if not parent:
        raise ConfigError(f"{typed}: a setting cannot be taken away; leave it out for its default")
    with open_dict(cfg):
        node = OmegaConf.select(cfg, parent)
        del node[name]
