"""Options of the commands that take no settings: what is typed wrongly is refused, in words and with what was meant.

Holds the parser; which options there are, each command says. Free of torch and Hydra.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from pretrain.errors import ConfigError
from pretrain.errors.nearest import nearest
from pretrain.settings.paths import is_there

_COLLECTS = ("append", "extend", "append_const", "count")  # actions of options that may be given more than once
_SETTING = re.compile(r"(\+{0,2}[A-Za-z_][\w.]*)=(.*)", re.DOTALL)
_REQUIRED = re.compile(r"the following arguments are required: (.+)")


class CommandParser(argparse.ArgumentParser):
    """A parser whose refusals are `ConfigError`s that say what to type instead.

    An option is typed in full, and once unless it collects; it may stand before or after what it is about. `example` is
    a command line that works. Values of type int and float, and choices, are explained where they are wrong.
    """

    def __init__(self, *, prog: str, description: str, example: str) -> None:
        super().__init__(prog=prog, description=description, epilog=f"example: {example}", exit_on_error=False)
        self._example = example
        self.options: dict[str, argparse.Action] = {"-h": self._actions[0], "--help": self._actions[0]}
        self._collecting: set[str] = set()  # destinations
        self.register("type", int, _whole_number)
        self.register("type", float, _number)
        self.add_argument("--version", action="store_true", help="print the version and exit")

    def add_argument(self, *names: str, choices: Iterable[str] | None = None, **settings: Any) -> argparse.Action:
        """Add an argument as `argparse` does; its choices are texts."""
        if choices is not None:
            settings |= {"choices": list(choices), "type": _one_of(list(choices))}
        action = super().add_argument(*names, **settings)
        if settings.get("action") in _COLLECTS:
            self._collecting.add(action.dest)
        if hasattr(self, "options"):  # not yet while the base class adds --help
            self.options |= dict.fromkeys(action.option_strings, action)
        return action

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Return the options of a command line; exits after --help and --version. Raises `ConfigError`."""
        words = sys.argv[1:] if args is None else list(args)
        typed = words[: words.index("--")] if "--" in words else words
        if "-h" in typed or "--help" in typed:
            self.print_help()
            sys.exit()
        if "--version" in typed:
            print(version_text())
            sys.exit()
        self._check_options(typed)
        try:
            options, rest = self.parse_known_intermixed_args(words, namespace)
        except argparse.ArgumentError as error:
            self.error(self._explained(error))
        positional = [action.dest for action in self._actions if not action.option_strings]
        values = [getattr(options, name) for name in positional]
        self._check_no_settings([*(str(each) for value in values for each in _listed(value)), *rest])
        if rest:
            raise ConfigError(f"{rest[0]}: one word too many; for example: {self._example}")
        vars(options).pop("version")
        return options

    def error(self, message: str) -> NoReturn:
        """Raise a `ConfigError`; `argparse` calls this for what it does not raise itself."""
        if found := _REQUIRED.search(message):
            message = f"{found[1]}: missing"
        raise ConfigError(f"{message}; for example: {self._example}")

    def _check_options(self, words: Sequence[str]) -> None:
        """Refuse unknown options, and those given twice that hold one value."""
        given: dict[str, str] = {}
        for place, word in enumerate(words):
            name, _, value = word.partition("=")
            if not word.startswith("-") or word == "-" or " " in name or _is_number(word):
                continue
            if name not in self.options:
                raise ConfigError(self._unknown(name, words[place - 1] if place else ""))
            action = self.options[name]
            shown = " ".join(words[place : place + 2]) if action.nargs is None and not value else word
            if action.dest in given and action.dest not in self._collecting:
                raise ConfigError(f"{given[action.dest]} and {shown}: {name} is given twice; give it once")
            given[action.dest] = shown

    def _unknown(self, name: str, before: str) -> str:
        """Return what is said of an unknown option that stands behind the word `before`."""
        if before in self.options and self.options[before].nargs is None:
            return f"{before}: needs a value; one that begins with a dash is typed {before}={name}"
        known = [option for option in self.options if option.startswith("--")]
        longer = [option for option in known if option.startswith(name)]
        meant = f"; did you mean {longer[0]}?" if longer else nearest(f"--{name.lstrip('-')}", known)
        return f"{name}: no such option{meant} (options: {', '.join(known)})"

    def _check_no_settings(self, words: Iterable[str]) -> None:
        """Refuse KEY=VALUE where a file, directory or name is meant; what exists under such a name is meant so."""
        for word in words:
            found = _SETTING.fullmatch(word)
            if not found or is_there(word.partition("/")[0]):
                continue
            option = f"--{found[1].lstrip('+').replace('_', '-')}"
            named = {action.dest for action in self._actions if not action.option_strings}
            instead = (
                f"type {option} {found[2]}"
                if option in self.options
                else f"type {found[2]}"
                if found[1] in named
                else f"for example: {self._example}"
            )
            raise ConfigError(f"{word}: this command takes options, not settings KEY=VALUE; {instead}")

    def _explained(self, error: argparse.ArgumentError) -> str:
        """Return what was wrong with the value of one argument."""
        name, message = error.argument_name, error.message
        if message.startswith("expected"):
            return f"{name}: needs a value"
        if found := re.match(r"ignored explicit argument (.+)", message):
            return f"{name}={found[1][1:-1]}: {name} takes no value; leave it out"
        return f"{name} {message}" if name else message


def version_text() -> str:
    """Return the version of Headwater, with those of Python and torch, on which most bugs depend."""
    return f"headwater {version_of('headwater')}, Python {sys.version.split()[0]}, torch {version_of('torch')}"


def version_of(package: str) -> str:
    """Return the version of an installed package."""
    from importlib.metadata import PackageNotFoundError, version  # a third of the time that --help takes

    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number, such as 3") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: must be a number, such as 0.5") from None


def _one_of(choices: Sequence[str]) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text not in choices:
            rule = f"no such choice{nearest(text, choices)} (choices: {', '.join(choices)})"
            raise argparse.ArgumentTypeError(f"{text}: {rule}")
        return text

    return check


def _is_number(word: str) -> bool:
    """Whether a word that begins with a dash is a negative number, not an option."""
    try:
        float(word)
    except ValueError:
        return False
    return True


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
