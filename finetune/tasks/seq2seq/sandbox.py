"""Where chat templates run: jinja2's sandbox, set as `transformers` sets it, but for the clock.

A template comes with a checkpoint, so it is a stranger's program: it sees the plain values that it is given, changes
none of them, and reaches no file, module or private attribute. A date would make the same conversation another text
tomorrow: `strftime_now` is not there, and templates have a date of their own for that case.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

LARGEST = 1_000_000  # of a product in a template, a number or characters


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`, around what a model writes: here no more than what is inside."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's declaration)

    def parse(self, parser: Parser) -> nodes.Node:
        """Return what is inside, in a scope of its own."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _PublicNamespace(Namespace):
    """A namespace whose names are public: one that begins with _ might stand for an attribute of Python's own."""

    def __init__(*args: Any, **values: Any) -> None:  # as jinja2's: `self` may be one of the values
        self, *pairs = args
        values = dict(*pairs, **values)
        Namespace.__init__(self, {_public(name): value for name, value in values.items()})

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(_public(name), value)


class _Environment(ImmutableSandboxedEnvironment):
    """jinja2's, in which products and powers have a limit: one of them could fill the memory, or never end."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Return a product or a power. Raises `SecurityError` for one beyond `LARGEST`."""
        size, times = (abs(side) if isinstance(side, int | float) else len(side) for side in (left, right))
        largest = LARGEST if operator == "*" else LARGEST.bit_length()
        if size * times > largest:
            raise SecurityError(f"{operator} makes more than {largest:,}, as large as a template may")
        return super().call_binop(context, operator, left, right)


def _public(name: Any) -> Any:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a template may not set {name!r}")
    return name


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, **options: Any) -> str:
    """Return a value as JSON, in which the usual filter would escape HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


@cache
def compiled(text: str) -> Template:
    """Return a template ready to render. Raises `TemplateError` for one that cannot be read."""
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "namespace": _PublicNamespace}
    return environment.from_string(text)
