"""Foreign texts stay what they are in Markdown; the judge is markdown-it, a parser by the CommonMark specification."""

import re
from html import unescape

from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pretrain.report.markdown import inline, literal, table
from pretrain.report.page import UNKNOWN, Number, Style, Styled, count, number, percent

PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
TEXTS = st.text(st.sampled_from("ab1_*`~[]()<>&|\\!#$-+.\"'\n\t \u2028é中\x07") | st.characters(codec="utf-8"))


def as_shown(text):
    """Return a text as a browser shows it."""
    return " ".join(re.sub(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]", "\ufffd", text).split())


def without_tags(html, *tags):
    for tag in tags:
        html = re.sub(f"</?{tag}>", "", html)
    assert "<" not in html, "nothing of a text becomes an element"
    return " ".join(unescape(html).split())


@given(text=TEXTS)
@example(text="__init__ and snake_case_ *a* `b` **c** ~~d~~")
@example(text="<b>x</b> &amp; &#124; a | b \\| c \\")
@example(text="![x](y) [z]: http://a.b <http://c.d> $x$")
def test_a_text_is_shown_as_it_stands_in_a_paragraph_and_in_a_table(text):
    assert without_tags(PARSER.render(f"Text: {literal(text)}."), "p") == as_shown(f"Text: {text}.")
    page = PARSER.render(table(["a", "b"], [["x", literal(text)]]))
    [cells] = re.findall(r"<tbody>\s*<tr>\s*<td>x</td>\s*<td>(.*?)</td>\s*</tr>\s*</tbody>", page, re.DOTALL)
    assert without_tags(cells) == as_shown(text)


@given(text=TEXTS, style=st.sampled_from(Style))
@example(text="b|c", style=Style.code)
@example(text="`", style=Style.code)
def test_a_styled_text_is_one_element_in_one_cell(text, style):
    page = PARSER.render(table(["a"], [[inline(("x", Styled(text, style)))]]))
    [cell] = re.findall(r"<td>x(.*?)</td>", page, re.DOTALL)
    assert re.fullmatch(r"<(b|i|code)>.*</\1>", cell, re.DOTALL)
    assert without_tags(cell, "b", "i", "code") == as_shown(text)


def test_numbers():
    counts = [count(value) for value in (7, 999, 1000, 17_300_000, 2.5e9)]
    assert [(each.text, each.value) for each in counts] == [
        *(("7", 7), ("999", 999), ("1 k", 1000), ("17.3 M", 17_300_000), ("2.5 B", 2.5e9))
    ]
    assert {count(None), count("x"), number(None), percent(None)} == {UNKNOWN}
    assert number(1234.56789) == Number("1,234.5679", 1234.56789) and number(2.0, digits=0).text == "2"
    assert percent(0.1234).text == "12.3%"
