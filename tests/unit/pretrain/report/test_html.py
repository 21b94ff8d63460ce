"""The HTML page as a file: whole, small, true to the page that it is made of, and inert whatever the texts are."""

import base64
import hashlib
import json
import re

import numpy as np
import pytest
from html_pages import Parsed
from hypothesis import example, given
from hypothesis import strategies as st

from pretrain.report.curves import thinned
from pretrain.report.figures import picture
from pretrain.report.html import POINTS, html
from pretrain.report.page import (
    Chart,
    Charts,
    Continued,
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
)

HOSTILE = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)><!-- ]]> &amp; \u202e \x00\ud800"


def curve(y, name="loss", **options):
    steps = np.arange(1.0, len(y) + 1)
    return Curve(name=name, group=name, look=0, x={"step": steps, "tokens": 64 * steps}, y=np.asarray(y), **options)


def page_with(text, *blocks):
    """Return a page that has a text in every place where a run or a data set can put one."""
    section = Section(
        "Everything",
        [
            *(text, (text, Styled(text, Style.code), Styled(text, Style.marked))),
            Table([text, text], [[text, Number(text, 1.0)], [Styled(text, Style.emphasis), text]]),
            Table(["", ""], [[text, text]]),
            Figures({text: text}),
            Matrix("confusion-matrix", [text, "b"], np.array([[1, 2], [0, 0]])),
            Samples({1: [Continued(text, text, text)], 20: [Continued("", text, text)]}),
            *blocks,
        ],
    )
    return Page(title=text, kind="Test", lead=[text], sections=[section, Section("More", [text], reference=True)])


BLANK = picture(Matrix("", ["a"], np.array([[1]])))


def written(page):
    return html(page, {"curves": BLANK}).decode()


def parsed(page):
    return Parsed(written(page))


def data_of(page):
    """Return what the charts of a page hold."""
    return [json.loads(text) for attributes, text in parsed(page).all("script") if "type" in attributes]


def test_no_text_becomes_an_element_an_attribute_or_a_script():
    charts = Charts("curves", [Chart(HOSTILE, [curve([3.0, 2.0], name=HOSTILE)])], "step")
    hostile, harmless = (parsed(page_with(text, charts)) for text in (HOSTILE, "x" * len(HOSTILE)))
    assert [name for name, *_ in hostile.elements] == [name for name, *_ in harmless.elements]
    keys = [[{*attributes} for _, attributes, _ in page.elements] for page in (hostile, harmless)]
    assert keys[0] == keys[1]
    assert hostile.all("script")[-1] == harmless.all("script")[-1]
    [data] = data_of(page_with(HOSTILE, charts))
    assert data["charts"][0]["title"] == HOSTILE.replace("\x00\ud800", "\ufffd\ufffd")


@given(text=st.text())
@example(text=HOSTILE)
@example(text="مرحبا 中文 עברית")
def test_a_text_is_shown_as_it_stands(text):
    shown = parsed(Page(title="t", kind="k", lead=[Table(["a"], [[text]])]))
    expected = re.sub(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]", "\ufffd", text)
    assert shown.rows[-1] == [expected]


def test_only_the_script_of_the_page_may_run_and_nothing_may_be_loaded():
    page = written(page_with("text"))
    [policy] = [each["content"] for each, _ in Parsed(page).all("meta") if "http-equiv" in each]
    [script] = [text for attributes, text in Parsed(page).all("script") if not attributes]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.split("; ") == [
        *("default-src 'none'", "style-src 'unsafe-inline'", f"script-src 'sha256-{digest}'", "img-src data:"),
        "base-uri 'none'",
    ]
    sources = re.findall(r'(?:src|href)="(.*?)"', page)
    assert all(source.startswith(("#", "data:")) for source in sources)
    assert "http" not in re.sub(r"http-equiv|http://www.w3.org/2000/svg", "", page)


def test_charts_hold_the_numbers_to_six_digits_and_gaps_where_they_are_not_finite():
    values = [8.1234567, np.nan, 1e-9, 3.0]
    [data] = data_of(page_with("text", Charts("curves", [Chart("Loss", [curve(values, ring=3)])], "tokens")))
    assert (data["axis"], [*data["axes"]]) == ("tokens", ["step", "tokens"])
    [drawn] = data["charts"][0]["curves"]
    assert drawn["y"] == [8.12346, None, 1e-9, 3] and drawn["ring"] == 3
    assert drawn["x"] == {"step": [1, 2, 3, 4], "tokens": [64, 128, 192, 256]}


def test_an_axis_on_which_a_point_has_no_place_is_not_offered():
    one, other = curve([1.0, 2.0]), curve([1.0])
    other.x["tokens"][0] = np.nan
    [data] = data_of(page_with("text", Charts("curves", [Chart("Loss", [one, other])], "step")))
    assert [*data["axes"]] == ["step"] and data["charts"][0]["curves"][0]["x"].keys() == {"step"}


@pytest.mark.parametrize("length", [3, 4, 999, 100_000])
def test_thinning_keeps_ends_and_extremes_in_order(length):
    draw = np.random.default_rng(length)
    values = draw.normal(size=length)
    values[draw.integers(0, length, length // 3)] = np.nan
    spike = length // 2
    values[spike] = 50.0
    kept = thinned(values, 200)
    assert len(kept) == min(length, len(kept)) <= max(200, min(length, 200))
    assert kept[0] == 0 and kept[-1] == length - 1 and (np.diff(kept) > 0).all()
    assert spike in kept and np.nanargmin(values) in kept


def test_twelve_long_runs_stay_below_two_megabytes():
    draw = np.random.default_rng(1)
    values = 3 + draw.normal(size=5_000)
    charts = [Chart(f"chart {n}", [curve(values, name=f"run {m}", smooth=True) for m in range(12)]) for n in range(4)]
    page = page_with("text", Charts("curves", charts, "step"))
    assert len(written(page)) < 1.5e6
    [data] = data_of(page)
    lengths = [len(each["y"]) for chart in data["charts"] for each in chart["curves"]]
    assert sum(lengths) <= POINTS and min(lengths) > 100
    assert max(data["charts"][0]["curves"][0]["y"]) == float(f"{values.max():.6g}")


def test_cells_are_sorted_by_their_values_and_aligned_where_all_are_numbers():
    rows = [["a", Number("1 k", 1000.0), "x"], ["b", "–", Number("2", 2.0)], ["c", Number("nan", np.nan), "y"]]
    cells = [
        attributes for attributes, _ in parsed(Page(title="", kind="", lead=[Table(["run", "n", "m"], rows)])).all("td")
    ]
    assert [cell.get("data-value") for cell in cells] == [
        *(None, "1000.0", None),
        *(None, None, "2.0"),
        *(None, "NaN", None),
    ]
    assert [cell.get("class") == "number" for cell in cells] == [False, True, False] * 3


def test_a_table_without_rows_is_a_page_too():
    assert parsed(Page(title="", kind="", lead=[Table(["a", "b"], [])])).cells() == [["a", "b"]]
