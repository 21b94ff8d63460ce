"""Words of a command line, KEY=VALUE in Hydra's grammar: parsed, and explained where that grammar bites."""

from __future__ import annotations

import re
from shlex import quote

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from pretrain.errors import ConfigError
from pretrain.errors.redaction import redacted

NO_SETTING = "no setting; one is typed KEY=VALUE, and a key is made of letters, digits, _ and dots"
_HYDRAS = re.compile(r"(_global_\.)*hydra(?![\w-])")
_BITES = re.compile(r"[^A-Za-z0-9_ \t/\\.+$%*?|@:-]")  # what no value may hold without quotes


def parsed(word: str) -> Override:
    """Return what a word says. Raises `ConfigError` with the quoting that works, and for settings of Hydra's own."""
    key, _, value = word.partition("=")
    secret = redacted(value, key) != value
    shown = f"{key}={redacted(value, key)}" if secret else word if word.isprintable() else repr(word)
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException as error:
        instead = "cannot be read; export it under a name and type '${oc.env:NAME}'" if secret else ""
        raise ConfigError(f"{shown}: {instead or _instead(word, str(error))}") from None
    if not override.key_or_group:
        raise ConfigError(f"{shown}: {NO_SETTING}")
    if is_hydras(override.key_or_group) or is_hydras(override.package or ""):
        raise ConfigError(
            f"{shown}: settings of Hydra's own decide nothing here; drop it (--config-dir names a folder)"
        )
    return override


def is_hydras(name: str) -> bool:
    """Whether a key, a group or a package is Hydra's own: `hydra.run.dir`, `hydra/launcher`."""
    return bool(_HYDRAS.match(name))


def as_text(word: str) -> str:
    """Return a word, typed for a shell, whose value is this word's letter by letter; a list's are its elements."""
    key, _, value = word.partition("=")
    if value[:1] == "[" and value[-1:] == "]":
        return quote(f"{key}=[{','.join(_element(each.strip()) for each in value[1:-1].split(','))}]")
    return quote(f"{key}={quoted(value)}")


def quoted(text: str) -> str:
    """Return a value of Hydra's grammar that is this text."""
    return QuotedString(text, Quote.single if '"' in text and "'" not in text else Quote.double).with_quotes()


def _instead(word: str, reason: str) -> str:
    """Return what bites in a word that cannot be parsed, and what to type instead."""
    key, equals, value = word.partition("=")
    if not word or not _parses(f"{key}=1"):
        return NO_SETTING
    if not equals:
        return f"has no value; type {key}=VALUE, without spaces around the ="
    sign = _BITES.search(value.strip("[]{}"))
    why = f"{sign[0]!r} in a value needs quotes, and these need others for the shell" if sign else ""
    if not sign or " while evaluating " in reason:
        why = f"cannot be read ({' '.join(reason.split())})"
    return f"{why}; as text, type {as_text(word)}"


def _element(text: str) -> str:
    return text if _parses(f"key=[{text}]") else quoted(text)


def _parses(word: str) -> bool:
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True
