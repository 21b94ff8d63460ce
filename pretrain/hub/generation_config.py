"""How the texts of a released model begin and end and what they never hold, by its generation_config.json.

Holds the reading and writing of these settings; `pretrain.models.generation.rules` obeys them. How many beams a search
has, and what it prefers, is for the user to say.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pretrain.errors import ConfigError
from pretrain.hub.config_json import check_value, shown
from pretrain.hub.weight_files import read_json
from pretrain.models.generation.rules import Rules

ENDS = "eos_token_id"  # one id, or several
FIRST, LAST = "forced_bos_token_id", "forced_eos_token_id"
BANNED, BANNED_TOO = "bad_words_ids", "suppress_tokens"  # sequences of ids, and ids
_FILES = ("generation_config.json", "config.json")  # the first that is there says it, as transformers decides

log = logging.getLogger(__name__)


def read_rules(directory: Path, vocab_size: int) -> Rules:
    """Return the rules of a released model. Raises `ConfigError` for settings that are no ids of its vocabulary."""
    file = next(path for name in _FILES if (path := directory / name).is_file())
    try:
        return rules_of(read_json(file), vocab_size, file)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def generation_settings(rules: Rules) -> dict[str, Any]:
    """Return what generation_config.json says of rules."""
    banned = {BANNED: [[token] for token in rules.banned]} if rules.banned else {}
    ends = {ENDS: list(rules.ends)} if rules.ends else {}
    return {FIRST: rules.first, LAST: rules.last, **banned, **ends}


def rules_of(settings: dict[str, Any], vocab_size: int, file: Path) -> Rules:
    """Return the rules that settings say, which a `file` holds. Raises `ConfigError` for what are no ids."""
    ends = _ids(ENDS, settings.get(ENDS), vocab_size)
    words = [_ids(BANNED, word, vocab_size) for word in _list(BANNED, settings.get(BANNED))]
    if several := [word for word in words if len(word) > 1]:
        log.warning("%s: %s: %d of several ids each may be written here", file, BANNED, len(several))
    banned = [word[0] for word in words if len(word) == 1 and word[0] not in ends]
    banned += _ids(BANNED_TOO, settings.get(BANNED_TOO), vocab_size)
    first, last = (_one(key, settings.get(key), vocab_size) for key in (FIRST, LAST))
    return Rules(first=first, last=last, banned=tuple(dict.fromkeys(banned)), ends=tuple(dict.fromkeys(ends)))


def with_end(settings: dict[str, Any], end: int | None) -> dict[str, Any]:
    """Return settings in which a text also ends with the id `end`, which comes first; None: nothing is added."""
    known = settings.get(ENDS) or []
    own = known if isinstance(known, list) else [known]
    ends = list(dict.fromkeys(token for token in (end, *own) if token is not None))
    return settings | ({ENDS: ends[0] if len(ends) == 1 else ends} if ends else {})


def _one(key: str, value: Any, vocab_size: int) -> int | None:
    ids = _ids(key, value, vocab_size)
    if len(ids) > 1:
        raise ConfigError(f"{key}={shown(value)}: several ids are not supported; name one")
    return ids[0] if ids else None


def _ids(key: str, value: Any, vocab_size: int) -> list[int]:
    """Return the ids of a setting that is one, a list of them, or null."""
    ids = [value] if type(value) is int else _list(key, value)
    for token in ids:
        check_value(key, token, int, most=vocab_size - 1)
    return ids


def _list(key: str, value: Any) -> list[Any]:
    check_value(key, value or [], list)
    return value or []
