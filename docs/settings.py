"""The tables of every setting in docs/configuration.md, generated from the dataclasses that hold the settings.

Holds no setting: keys and defaults are the fields' own, meanings the comments beside them. To write the tables anew:

    python docs/settings.py
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from pretrain.config import PretrainConfig, register_choices
from pretrain.entry import CONF

PAGE = Path(__file__).with_name("configuration.md")
BEGIN, END = "<!-- settings: written by docs/settings.py -->\n", "<!-- end of settings -->\n"


class Setting(NamedTuple):
    """One row: equal rows of several choices are shown as one."""

    key: str
    default: str
    meaning: str


def tables() -> str:
    """Return the Markdown of all groups, in the order of the root configuration."""
    register_choices()
    entries = [entry for entry in _root()["defaults"] if isinstance(entry, dict)]
    chosen = {group: choice for entry in entries for group, choice in entry.items()}
    hints = get_type_hints(PretrainConfig)
    sections = []
    for field in fields(PretrainConfig):
        if field.name in chosen:
            sections.append(_group(field.name, field.name, chosen[field.name]))
            if field.name == "data":
                sections.append(_group("source", "data.sources.NAME", None))
        elif is_dataclass(hints[field.name]):
            sections.append(f"### `{field.name}`\n\n" + _table({"": hints[field.name]}, field.name))
        else:
            comment = comments(PretrainConfig)[field.name]
            rows = [f"| `{field.name}` | `{_shown(field.default)}` | {comment} |"]
            sections.append(f"### `{field.name}`\n\n" + _rows(["key", "default", "meaning"], rows))
    return "\n\n".join(sections) + "\n"


def comments(kind: type) -> dict[str, str]:
    """Return the comment beside each field of a dataclass, its bases' fields among them."""
    found: dict[str, str] = {}
    for base in reversed([base for base in kind.__mro__ if is_dataclass(base)]):
        source = inspect.getsource(base)
        lines = source.splitlines()
        [declaration] = ast.parse(source).body
        assert isinstance(declaration, ast.ClassDef)
        for field in declaration.body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                own = [line.partition("  # ")[2] for line in lines[field.lineno - 1 : field.end_lineno]]
                found[field.target.id] = "".join(own) or found.get(field.target.id, "")
    return found


def settings(kind: type, prefix: str) -> Iterator[Setting]:
    """Yield every setting below a dataclass, in the order of its fields."""
    meanings, hints = comments(kind), get_type_hints(kind)
    for field in fields(kind):
        key, hint = f"{prefix}.{field.name}", hints[field.name]
        if is_dataclass(hint) and isinstance(hint, type):
            yield from settings(hint, key)
            continue
        meaning = meanings[field.name]
        names = [name for name in _members(hint) if name not in meaning]
        if names:
            meaning += f" (one of {', '.join(_members(hint))})"
        yield Setting(key, _default(field, key), meaning)


def _group(group: str, prefix: str, default: str | None) -> str:
    """Return a config group: its choices, its preset files, its settings."""
    nodes = {
        name.removesuffix(".yaml"): OmegaConf.get_type(node.node)
        for name, node in sorted(ConfigStore.instance().repo[group].items())
    }
    kinds = {name: kind for name, kind in nodes.items() if kind is not None}
    lines = [f"### `{group}`\n"]
    for name, kind in kinds.items():
        described = (inspect.getdoc(kind) or "").splitlines()[0].removeprefix(f"`{group}={name}`: ")
        lines.append(f"- `{group}={name}`" + (" (default)" if name == default else "") + f": {described}")
    files = [path.stem for path in sorted((CONF / group).glob("*.yaml"))]
    if files:
        shown = ", ".join(f"`{name}`" + (" (default)" if name == default else "") for name in files)
        lines.append(f"- Files in `conf/{group}` that fill in values: {shown}")
    table = _table(kinds, prefix)
    return "\n".join(lines) + (f"\n\n{table}" if table else "\n\nNo settings of its own.")


def _table(kinds: dict[str, type], prefix: str) -> str:
    """Return one table for all choices of a group; a column says which of them have a setting."""
    owners: dict[Setting, list[str]] = {}
    for name, kind in kinds.items():
        for setting in settings(kind, prefix):
            owners.setdefault(setting, []).append(name)
    if not owners:
        return ""
    several = len(kinds) > 1
    rows = []
    for (key, default, meaning), names in owners.items():
        owner = "all" if len(names) == len(kinds) else ", ".join(names)
        cells = [f"`{key}`", f"`{default}`", *([owner] if several else []), meaning]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return _rows(["key", "default", *(["choices"] if several else []), "meaning"], rows)


def _rows(header: list[str], rows: list[str]) -> str:
    return "\n".join(["| " + " | ".join(header) + " |", "| --- " * len(header) + "|", *rows])


def _default(field: Field[Any], key: str) -> str:
    if field.default_factory is not MISSING:
        return _shown(field.default_factory())
    if field.default is MISSING:
        group, _, name = key.partition(".")
        return str(_root().get(group, {}).get(name, "required"))
    return _shown(field.default)


def _root() -> dict[str, Any]:
    """Return conf/pretrain.yaml, which names the default choices and links a few settings to others."""
    root = OmegaConf.to_container(OmegaConf.load(CONF / "pretrain.yaml"), resolve=False)
    assert isinstance(root, dict)
    return {str(key): value for key, value in root.items()}


def _shown(value: object) -> str:
    """Return a default as it is written in YAML."""
    return value.name if isinstance(value, Enum) else json.dumps(value)


def _members(hint: object) -> list[str]:
    """Return the names that a setting of this type may have, nothing for types that are no enumeration."""
    kinds = [hint, *getattr(hint, "__args__", ())]
    return [member.name for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum) for member in kind]


def with_tables(page: str) -> str:
    """Return a page with the tables between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
