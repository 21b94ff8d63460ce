"""YAML files of settings, read as data: bounded in size, without tags, and without what OmegaConf would resolve.

Holds the reading and the rules on what is read; which file is meant, and what a setting may be, is the caller's.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pretrain.errors import ConfigError
from pretrain.settings.paths import VARIABLE

MAX_BYTES = 1 << 20
MAX_VALUES = 20_000  # where aliases (*name) stand for all that they repeat
MAX_DEPTH = 32
_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null", "merge")}
_TAGS |= {"tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"}  # text for OmegaConf
_REFERENCE = re.compile(r"\$\{[\w.\[\]-]*\}")


def read_settings(path: Path) -> dict[str, Any]:
    """Return what a file holds, nothing of it resolved. Raises `ConfigError` for what is no file of settings."""
    try:
        root = _root(path)
        if root is not None and not isinstance(root, yaml.MappingNode):
            raise ValueError("holds no settings (key: value)")
        nodes = list(itertools.islice(_nodes(root, MAX_DEPTH), MAX_VALUES + 1)) if root else []
        if len(nodes) > MAX_VALUES:
            raise ValueError(f"holds more than {MAX_VALUES:,} values")
        if tagged := [node for node in nodes if node.tag not in _TAGS]:
            raise ValueError(f"line {tagged[0].start_mark.line + 1}: a tag ({tagged[0].tag}); write a plain value")
        held = OmegaConf.to_container(OmegaConf.load(io.StringIO(_text(path))), resolve=False)
        assert isinstance(held, dict)
        return {str(key): value for key, value in held.items()}
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise ConfigError(f"{path}{f':{mark.line + 1}' if mark else ''}: {_yaml_rule(error)}") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: cannot be read ({' '.join(str(error).split())}); mend the file") from None


def place(path: Path, key: str) -> str:
    """Return PATH:LINE of a dotted key, or else of the last part of it that the file has; PATH without any."""
    node, line = _root(path), None
    names = [name.value for name, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    for part in [key] if key in names else key.split("."):
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = [(name, value) for name, value in pairs if name.value == part]
        if not found:
            break
        name, node = found[-1]
        line = name.start_mark.line + 1
    return f"{path}:{line}" if line else str(path)


def _text(path: Path) -> str:
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES:,} bytes")
    return path.read_text(encoding="utf-8-sig")


def _root(path: Path) -> yaml.Node | None:
    return yaml.compose(_text(path), Loader=yaml.SafeLoader)


def _yaml_rule(error: yaml.MarkedYAMLError) -> str:
    """Return what breaks the rules of YAML in a line."""
    problem = " ".join(str(error.problem).split())
    if "'\\t'" in problem:
        return "begins with a tab; YAML is indented by spaces"
    if found := re.match(r"found duplicate key (.*)", problem):
        return f"{found[1]} is there twice; keep one"
    hint = "a list of settings in [] or {} that is not closed, a : or a quote too few"
    return f"cannot be read as YAML ({problem}); mend the line: {hint}"


def check_references(values: Any, path: Path) -> None:
    """Refuse what OmegaConf would call, such as ${oc.env:HOME}; names of settings, as ${data.seq_len}, may stay."""
    for text in texts_in(values):
        rest, found = text, 1
        while found:
            rest, found = _REFERENCE.subn("", rest)
        if "${" in rest:
            rule = "a file may refer to settings by their names, ${data.seq_len}, and call nothing"
            raise ConfigError(f"{path}: {text}: {rule}; type the setting on the command line")
        if "://" in text and VARIABLE.search(text):
            rule = "a file may not send an environment variable to a server"
            raise ConfigError(f"{path}: {text}: {rule}; type the setting on the command line")


def check_literal(values: Any, place: object) -> None:
    """Refuse everything that OmegaConf would resolve: what a run wrote holds values."""
    for text in texts_in(values):
        if "${" in text:
            raise ConfigError(
                f"{place}: {text}: a run writes values, and nothing that is to be resolved; write a value"
            )


def _nodes(node: yaml.Node, depth: int) -> Iterator[yaml.Node]:
    if not depth:
        raise ValueError(f"is nested more than {MAX_DEPTH} deep")
    yield node
    if not isinstance(node, yaml.ScalarNode):
        children = itertools.chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
        for child in children:
            yield from _nodes(child, depth - 1)


def texts_in(values: Any) -> Iterator[str]:
    """Yield every text in nested dictionaries and lists, keys too."""
    if isinstance(values, dict):
        values = [*values, *values.values()]
    if isinstance(values, list):
        for value in values:
            yield from texts_in(value)
    elif isinstance(values, str):
        yield values
