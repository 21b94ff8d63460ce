"""What OmegaConf and Hydra say, in words for somebody who knows neither.

Holds the wording; whose value or file it is about is the caller's to add.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from omegaconf.errors import OmegaConfBaseException

WHOLE, LIST = "takes a whole number", "takes a list"

# What OmegaConf says of a value -> what the setting takes.
_VALUES = {
    r"could not be converted to Integer": WHOLE,
    r"could not be converted to Float": "takes a number",
    r"type hint 'Optional\[Union\[int, str\]\]'": "takes a whole number, a word or null",
    r"is not a valid bool": "takes true or false",
    r"expected one of \[(.*)\]": r"takes one of \1",
    r"is not Optional|not optional|Incompatible value 'None'": "cannot be null; leave it out for its default",
    r"is not a ListConfig, list or tuple|Cannot merge ListConfig|Cannot assign .* to list": LIST,
    r"is not a subclass of|Cannot merge DictConfig|is not a DictConfig|Cannot assign .* to [Dd]ict": (
        "holds settings of its own; name one of those"
    ),
    r"Cannot convert '\w+' to string": "takes a text",
    r"Interpolation key '(.*)' not found": r"refers to \1, and there is no such setting",
    r"Environment variable '(.*)' not found": r"the environment variable \1 is not set; export it, or write its value",
    r"Unsupported interpolation type (\S+)": r"there is no function \1; a reference is the name of a setting, ${seed}",
    r"Recursive interpolation": "refers to itself",
    r"does not support deletion|Cannot delete": "a setting cannot be taken away; leave it out for its default",
    r"(?:extraneous|mismatched|no viable|missing|token recognition)": "is no reference; one is written ${seed}",
}

_FILE = r"'?(?P<file>[^'\n]+?)'?"
_TWICE = (
    "{key} is chosen twice; a file chooses anew by `- override /{key}: CHOICE`, a command by {key}=CHOICE without +"
)

# What Hydra says of a choice, or of the defaults list of a file -> the rule.
_DEFAULTS = {
    rf"In {_FILE}: Override '(?P<key>\S+) : (?P<name>.+)' is defined before '(?P<other>.+)'": (
        "{file}: defaults: override {key}: {name} stands before {other}; lines that override come last"
    ),
    rf"Duplicate _self_ defined in {_FILE}$": "{file}: defaults: _self_ is there twice; keep one",
    rf"In {_FILE}: Could not override '(?P<key>.+)'\.\s+Did you mean to override (?P<other>.+)\?": (
        "{file}: defaults: override /{key}: no such choice to override; did you mean /{other}?"
    ),
    rf"In {_FILE}: Could not override '(?P<key>.+)'\. No match": (
        "{file}: defaults: override /{key}: no such group to override"
    ),
    rf"In {_FILE}: Could not load '(?P<name>.+)'": (
        "{file}: defaults: {name}: no such file; name one of the same group, or write GROUP: CHOICE"
    ),
    rf"In {_FILE}: Too many keys in default item (?P<name>.+)": (
        "{file}: defaults: {name}: one choice a line, each after a - of its own"
    ),
    rf"In {_FILE}: Missing group name in (?P<name>.+)": "{file}: defaults: {name}: names no group",
    rf"In {_FILE}: Defaults List interpolation": "{file}: defaults: a list of choices may not refer to others",
    rf"{_FILE}: Default List Overrides are not allowed": (
        "{file}: defaults: a file that is chosen by a reference may not override; name the choice itself"
    ),
    rf"Invalid defaults list in {_FILE}, defaults must be a list": (
        "{file}: defaults: a list is needed, each choice after a - of its own"
    ),
    r"Error resolving interpolation '(?P<key>.+?)'": "{key}: refers to no group that is chosen; name the choice itself",
    r"Multiple values for (?P<key>.+?)\.": _TWICE,
    r"(?P<key>\S+) appears more than once": _TWICE,
    r"force-add of config groups is not supported: '\+\+(?P<key>.+)'": "++{key}: a choice is typed without +: {key}",
    r"Could not delete '(?P<key>.+)'\. No match": "~{key}: is not chosen, so it cannot be taken away; drop the word",
    r"Could not override '(?P<key>.+)'\.\s+Did you mean to override (?P<other>.+)\?": (
        "{key}: no such choice; did you mean {other}?"
    ),
    r"_self_@PACKAGE is not supported": "defaults: _self_ stands alone, without @",
}


def rule_of(error: OmegaConfBaseException) -> str:
    """Return what a setting takes, where OmegaConf refused a value."""
    said = " ".join(str(error.msg or error).splitlines()[0].split())
    for pattern, rule in _VALUES.items():
        if found := re.search(pattern, said):
            return found.expand(rule)
    return said


def defaults_rule(error: Exception, shown: Callable[[str], str]) -> str:
    """Return what is wrong with a choice or a defaults list; `shown` turns Hydra's name of a file into its path."""
    if isinstance(error, RecursionError):
        return "defaults: files name each other in a circle; take one of them out"
    for pattern, rule in _DEFAULTS.items():
        if found := re.match(pattern, str(error)):
            parts = found.groupdict()
            parts = {name: part.replace("@_global_", "") for name, part in parts.items()}
            return rule.format_map(parts | {"file": shown(parts["file"])} if "file" in parts else parts)
    return " ".join(line.strip() for line in str(error).splitlines() if "type=" not in line and line.strip())
