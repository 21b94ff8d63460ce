"""A report page as one HTML file that needs nothing beside it: no network, no other file.

Holds how the parts of a page become elements; how these look and behave is in `page.css`, `page.js` and `charts.js`.
Texts are put into a tree, never into a string of HTML, so that none can become markup. Free of torch.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from xml.etree.ElementTree import Element, tostring

import numpy as np

from pretrain.report.curves import COLOURS, ON_DARK, smoothed, thinned
from pretrain.report.figures import FEW_LABELS, small
from pretrain.report.page import (
    AXES,
    UNKNOWN,
    Block,
    Cell,
    Chart,
    Charts,
    Curve,
    Figures,
    Matrix,
    Number,
    Page,
    Samples,
    Section,
    Style,
    Styled,
    Table,
    plain,
    readable,
)

POINTS = 16_000  # of all curves of a page together: about 0.6 MB
MOST_POINTS = 2_000  # of one curve: more than a screen has columns
LONG_TEXT = 60  # characters from which on a cell is wide
_TAGS = {Style.strong: "strong", Style.marked: "mark", Style.emphasis: "em", Style.code: "code"}


def html(page: Page, pictures: Mapping[str, bytes]) -> bytes:
    """Return a page as HTML in UTF-8. `pictures` are PNGs of its charts by name, for browsers without JavaScript."""
    style, script = _asset("page.css") + _colours(), _asset("page.js") + _asset("charts.js")
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_sha256(script)}'; img-src data:"
    head = _element(
        "head",
        _element("meta", charset="utf-8"),
        _element("meta", {"http-equiv": "Content-Security-Policy"}, content=f"{policy}; base-uri 'none'"),
        _element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        _element("meta", name="color-scheme", content="light dark"),
        _element("title", f"{page.title} · {page.kind}"),
        _element("link", rel="icon", href="data:,"),  # or the browser asks the server for one
        _element("style", style),
    )
    sections = [("", Section("", page.lead)), *((_slug(section.title), section) for section in page.sections)]
    links = [_element("li", _element("a", section.title, href=f"#{slug}")) for slug, section in sections if slug]
    title = _element("div", _element("p", page.kind, {"class": "kind"}), _element("h1", page.title, dir="auto"))
    body = _element(
        "body",
        _element("header", title, _element("button", "◐", id="theme", title="Light or dark", type="button", hidden="")),
        _element("nav", _element("ul", *links), {"aria-label": "Contents"}),
        _element("main", *(_section(slug, section, pictures, _limit(page)) for slug, section in sections)),
        _element("script", script),
    )
    text = tostring(_element("html", head, body, lang="en"), encoding="unicode", method="html")
    return f"<!doctype html>\n{text}\n".encode()


def _element(tag: str, *content: Element | str | dict[str, str], **attributes: str) -> Element:
    """Return an element with texts and elements in it; a dict has attributes whose names Python could not take."""
    element = Element(tag)
    for part in (attributes, *content):
        if isinstance(part, dict):
            element.attrib |= {name: readable(value) for name, value in part.items()}
        elif isinstance(part, Element):
            element.append(part)
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + readable(part)
        else:
            element.text = (element.text or "") + readable(part)
    return element


@cache
def _asset(name: str) -> str:
    return files("pretrain.report").joinpath(name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _colours() -> str:
    """Return the colours of curves as CSS variables, `light-dark` as the page is."""
    pairs = enumerate(zip(COLOURS, ON_DARK, strict=True))
    return ":root{" + "".join(f"--curve-{n}:light-dark({light},{dark});" for n, (light, dark) in pairs) + "}"


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower())


def _limit(page: Page) -> int:
    """Return how many points each curve of a page may have."""
    blocks = [block for section in page.sections for block in section.blocks if isinstance(block, Charts)]
    curves = sum(len(chart.curves) for block in blocks for chart in block.charts)
    return min(MOST_POINTS, POINTS // max(curves, 1))


def _section(slug: str, section: Section, pictures: Mapping[str, bytes], limit: int) -> Element:
    blocks = [_block(block, pictures, limit) for block in section.blocks]
    if not slug:
        return _element("section", *blocks)
    heading = _element("h2", section.title)
    if section.reference:
        return _element("details", _element("summary", heading), *blocks, id=slug)
    return _element("section", heading, *blocks, id=slug)


def _block(block: Block, pictures: Mapping[str, bytes], limit: int) -> Element:
    match block:
        case Table():
            return _table(block)
        case Figures():
            entries = block.entries.items()
            pairs = [_element("div", _element("dt", name), _element("dd", *_inline(cell))) for name, cell in entries]
            return _element("dl", *pairs, {"class": "figures"})
        case Charts():
            return _charts(block, pictures[block.name], limit)
        case Matrix():
            return _matrix(block)
        case Samples():
            return _samples(block)
        case _:
            return _element("p", *_inline(block), dir="auto")


def _inline(cell: Cell) -> list[Element | str]:
    match cell:
        case str():
            return [cell]
        case tuple():
            return [part for piece in cell for part in _inline(piece)]
        case Styled(text, style):
            return [_element(_TAGS[style], text)]
        case _:
            return [cell.text]


def _table(block: Table) -> Element:
    numeric = [_is_numeric([row[column] for row in block.rows]) for column in range(len(block.header))]

    def cell(column: int, content: Cell) -> Element:
        tag = "th" if column == 0 and not block.header[0] else "td"
        attributes = {"scope": "row"} if tag == "th" else {}
        if isinstance(content, Number):
            attributes["data-value"] = repr(float(content.value)) if math.isfinite(content.value) else "NaN"
        kind = {"class": "long"} if len(plain(content)) > LONG_TEXT else {}
        attributes |= {"class": "number"} if numeric[column] else {"dir": "auto", **kind}
        return _element(tag, *_inline(content), attributes)

    rows = [_element("tr", *(cell(*pair) for pair in enumerate(row))) for row in block.rows]
    head = [
        _element("th", name, {"class": "number"} if number else {"dir": "auto"}, scope="col")
        for name, number in zip(block.header, numeric, strict=True)
    ]
    parts = [_element("thead", _element("tr", *head))] if any(block.header) else []
    table = _element("table", *parts, _element("tbody", *rows), {"class": "data" if block.header[0] else "facts"})
    return _element("div", table, {"class": "table"})


def _is_numeric(column: Sequence[Cell]) -> bool:
    known = [cell for cell in column if cell != UNKNOWN]
    return bool(known) and all(isinstance(cell, Number) for cell in known)


def _matrix(block: Matrix) -> Element:
    few = len(block.names) <= FEW_LABELS
    corner = _element("th", "in the data ↓ predicted →", {"class": "corner"})
    head = [_element("th", _element("span", name, dir="auto"), scope="col", title=name) for name in block.names]
    rows = []
    for own, counts, shares in zip(block.names, block.counts, block.shares, strict=True):
        cells = []
        for guess, count, share in zip(block.names, counts, shares, strict=True):
            said = f"{own} → {guess}: {count:,} of {counts.sum():,} ({share:.1%})"
            shown = f"{share:.0%}" if few and count else ""
            cells.append(_element("td", shown, title=said, style=f"--share:{share:.3f}"))
        rows.append(_element("tr", _element("th", own, scope="row", dir="auto", title=own), *cells))
    body = _element("tbody", *rows)
    table = _element("table", _element("thead", _element("tr", corner, *head)), body, {"class": "matrix"})
    return _element("div", table, {"class": "table"})


def _samples(block: Samples) -> Element:
    steps = []
    for step, continued in block.steps.items():
        texts = []
        for run, prompt, continuation in continued:
            name = [_element("strong", run)] if run else []
            texts.append(_element("p", *name, _element("span", prompt, {"class": "prompt"}), continuation, dir="auto"))
        steps.append(_element("article", _element("h3", f"Step {step:,}"), *texts))
    return _element("div", *steps, {"class": "samples"})


def _charts(block: Charts, picture: bytes, limit: int) -> Element:
    data = {
        "axis": block.axis,
        "axes": {axis: AXES[axis] for axis in block.axes or [block.axis]},
        "charts": [_chart(chart, block.axes or [block.axis], limit) for chart in block.charts],
    }
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    titles = ", ".join(chart.title for chart in block.charts)
    image = base64.b64encode(small(picture)).decode()
    image = _element("img", src=f"data:image/png;base64,{image}", alt=titles)
    json_text = _element("script", text, type="application/json")
    return _element("figure", _element("noscript", image), json_text, {"class": "charts"})


def _chart(chart: Chart, axes: Sequence[str], limit: int) -> dict[str, object]:
    return {
        "title": readable(chart.title),
        "logarithmic": chart.is_logarithmic,
        "fromZero": chart.from_zero,
        "curves": [_curve(curve, axes, limit) for curve in chart.curves if len(curve.y)],
    }


def _curve(curve: Curve, axes: Sequence[str], limit: int) -> dict[str, object]:
    kept = thinned(curve.y, limit)
    if curve.ring is not None:
        kept = np.union1d(kept, curve.ring)
    at, smooth = smoothed(curve.y, min(limit, 300)) if curve.smooth else (np.empty(0, dtype=int), np.empty(0))
    return {
        "name": readable(curve.name),
        "group": readable(curve.group),
        "look": curve.look,
        "line": curve.line,
        "dots": curve.dots,
        "x": {axis: _plain(curve.x[axis][kept], 9) for axis in axes},
        "y": _plain(curve.y[kept], 6),
        "ring": None if curve.ring is None else int(np.searchsorted(kept, curve.ring)),
        "smooth": {"x": {axis: _plain(curve.x[axis][at], 9) for axis in axes}, "y": _plain(smooth, 6)},
    }


def _plain(values: np.ndarray, digits: int) -> list[float | None]:
    """Return numbers as JSON has them, to some significant digits; whole ones are whole, NaN is null."""
    rounded = [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values.tolist()]
    return [int(value) if value is not None and value.is_integer() else value for value in rounded]
