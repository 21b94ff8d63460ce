"""The tables of every setting in docs/, and the words of shell completion, from the dataclasses of the settings.

Holds no setting: keys and defaults are the fields' own, meanings the comments beside them. Groups that fine-tuning
shares with pretraining have their tables among pretraining's. To write tables and words anew:

    python docs/settings.py
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING as MANDATORY
from omegaconf import OmegaConf

from finetune.config import FINETUNE
from launch.slurm.submit import SLURM
from pretrain.compose import CONF, PRETRAIN, Root

PAGES = {
    PRETRAIN: Path(__file__).with_name("configuration.md"),
    FINETUNE: Path(__file__).with_name("finetuning-settings.md"),
    SLURM: Path(__file__).with_name("cluster.md"),
}
WORDS = Path(__file__).parents[1] / "launch" / "settings.json"
BEGIN, END = "<!-- settings: written by docs/settings.py -->\n", "<!-- end of settings -->\n"


class Setting(NamedTuple):
    """One row: equal rows of several choices are shown as one."""

    key: str
    default: str
    meaning: str


def tables(root: Root) -> str:
    """Return the Markdown of all groups, in the order of the root configuration, those of pretraining once."""
    PRETRAIN.register()
    root.register()
    shared = [] if root is PRETRAIN else _shared(root)
    own = [field for field in fields(root.schema) if field.name not in shared]
    sections = [
        section
        for single, together in itertools.groupby(own, lambda field: _is_single(root, field))
        for section in ([_singles(root, list(together))] if single else [_section(root, each) for each in together])
    ]
    return "\n\n".join(sections + ([_differences(root, shared)] if shared else [])) + "\n"


def _section(root: Root, field: Field[Any]) -> str:
    """Return what a field of the root is: a group of choices or a dataclass of settings."""
    hint, chosen = get_type_hints(root.schema)[field.name], _chosen(root)
    if field.name in chosen:
        section = _group(root, field.name, field.name, chosen[field.name])
        return section + ("\n\n" + _group(root, "source", "data.sources.NAME", None) if field.name == "data" else "")
    return f"### `{field.name}`\n\n" + _table(root, {"": hint}, field.name)


def _is_single(root: Root, field: Field[Any]) -> bool:
    """Whether a field of the root is one setting."""
    return field.name not in _chosen(root) and not is_dataclass(get_type_hints(root.schema)[field.name])


def _singles(root: Root, together: list[Field[Any]]) -> str:
    """Return one table of settings that stand beside each other."""
    meanings = comments(root.schema)
    rows = [f"| `{each.name}` | `{_default(root, each, each.name)}` | {meanings[each.name]} |" for each in together]
    names = [f"`{each.name}`" for each in together]
    title = ", ".join(names) if len(names) < 4 else f"{names[0]} to {names[-1]}"
    return f"### {title}\n\n" + _rows(["key", "default", "meaning"], rows)


def _shared(root: Root) -> list[str]:
    """Return the groups that have their tables in pretraining's page: the same choices, or the same dataclass."""
    theirs, ours = get_type_hints(PRETRAIN.schema), get_type_hints(root.schema)
    groups = _chosen(PRETRAIN).keys() & _chosen(root).keys()
    same = {
        name
        for name, hint in ours.items()
        if is_dataclass(hint) and isinstance(hint, type) and issubclass(theirs.get(name, object), hint)
    }
    return [field.name for field in fields(root.schema) if field.name in groups | same]


def _differences(root: Root, shared: list[str]) -> str:
    """Return the table of shared groups: which choice is the default here, and which values are others."""
    chosen, values = _chosen(root), _values(root)
    rows = []
    for name in shared:
        set_here = ", ".join(f"`{name}.{key}={_shown(value)}`" for key, value in values.get(name, {}).items())
        choice = f"`{name}={chosen[name]}`" if name in chosen else ""
        rows.append(f"| `{name}` | {choice} | {set_here} | {comments(root.schema)[name]} |")
    header = ["group", "default choice", "other defaults than in pretraining", ""]
    return "### Groups of pretraining\n\n" + _rows(header, rows)


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


def settings(root: Root, kind: type, prefix: str) -> Iterator[Setting]:
    """Yield every setting below a dataclass, in the order of its fields."""
    meanings, hints = comments(kind), get_type_hints(kind)
    for field in fields(kind):
        key, hint = f"{prefix}.{field.name}", hints[field.name]
        if is_dataclass(hint) and isinstance(hint, type):
            yield from settings(root, hint, key)
            continue
        meaning = meanings[field.name]
        names = [name for name in _members(hint) if name not in meaning]
        if names:
            meaning += f" (one of {', '.join(_members(hint))})"
        yield Setting(key, _default(root, field, key), meaning)


def _group(root: Root, group: str, prefix: str, default: str | None) -> str:
    """Return a config group: its choices, its preset files, its settings."""
    kinds = _kinds(group)
    lines = [f"### `{group}`\n"]
    for name, kind in kinds.items():
        described = (inspect.getdoc(kind) or "").splitlines()[0].removeprefix(f"`{group}={name}`: ")
        lines.append(f"- `{group}={name}`" + (" (default)" if name == default else "") + f": {described}")
    files = [path.stem for path in sorted((CONF / group).glob("*.yaml"))]
    if files:
        shown = ", ".join(f"`{name}`" + (" (default)" if name == default else "") for name in files)
        lines.append(f"- Files in `conf/{group}` that fill in values: {shown}")
    table = _table(root, kinds, prefix)
    return "\n".join(lines) + (f"\n\n{table}" if table else "\n\nNo settings of its own.")


def _kinds(group: str) -> dict[str, type]:
    """Return the registered choices of a group."""
    nodes = {
        name.removesuffix(".yaml"): OmegaConf.get_type(node.node)
        for name, node in sorted(ConfigStore.instance().repo.get(group, {}).items())
    }
    return {name: kind for name, kind in nodes.items() if kind is not None}


def _table(root: Root, kinds: dict[str, type], prefix: str) -> str:
    """Return one table for all choices of a group; a column says which of them have a setting."""
    owners: dict[Setting, list[str]] = {}
    for name, kind in kinds.items():
        for setting in settings(root, kind, prefix):
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


def _default(root: Root, field: Field[Any], key: str) -> str:
    if field.default_factory is not MISSING:
        return _shown(field.default_factory())
    if field.default is MISSING:
        group, _, name = key.partition(".")
        return str(_values(root).get(group, {}).get(name, "required"))
    return "required" if field.default == MANDATORY else _shown(field.default)


def _chosen(root: Root) -> dict[str, str | None]:
    """Return the groups of a root, each with the choice that is its default."""
    entries = [entry for entry in _values(root)["defaults"] if isinstance(entry, dict)]
    names = {field.name for field in fields(root.schema)}
    return {group: choice for entry in entries for group, choice in entry.items() if group in names}


def _values(root: Root) -> dict[str, Any]:
    """Return a root's file in conf/, which names the default choices, sets other values or links them to others."""
    values = OmegaConf.to_container(OmegaConf.load(CONF / f"{root.name}.yaml"), resolve=False)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _shown(value: object) -> str:
    """Return a default as it is written in YAML."""
    return value.name if isinstance(value, Enum) else json.dumps(value)


def _members(hint: object) -> list[str]:
    """Return the names that a setting of this type may have, nothing for types that are no enumeration."""
    kinds = [hint, *getattr(hint, "__args__", ())]
    return [member.name for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum) for member in kind]


def with_tables(root: Root) -> str:
    """Return the page of a root with the tables between its two marks."""
    before, _, rest = PAGES[root].read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables(root)}\n{END}{after}"


def words() -> str:
    """Return what completion offers for the settings of each program, GROUP=CHOICE and KEY=, as JSON."""
    found = {}
    for root in (PRETRAIN, FINETUNE):
        root.register()
        chosen, hints = _chosen(root), get_type_hints(root.schema)
        own = [field.name for field in fields(root.schema)]
        typed = set()
        for name in [*own, *root.groups]:
            kinds = _kinds(name) if name in chosen or name not in own else {}
            choices = [*kinds, *(path.stem for path in (CONF / name).glob("*.yaml"))]
            typed |= {f"{name}={choice}" for choice in choices}
            hint = hints.get(name)
            parts = list(kinds.values()) if name in own else []
            parts += [hint] if is_dataclass(hint) and isinstance(hint, type) else []
            typed |= {f"{setting.key}=" for part in parts for setting in settings(root, part, name)}
            typed |= set() if choices or parts or name not in own else {f"{name}="}
        found[root.name] = sorted(typed)
    return json.dumps(found, indent=1) + "\n"


if __name__ == "__main__":
    for root, page in PAGES.items():
        page.write_text(with_tables(root), encoding="utf-8")
    WORDS.write_text(words(), encoding="utf-8")
