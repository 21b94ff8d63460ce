"""Foreign texts stay what they are in Markdown; the judge is markdown-it, a parser by the CommonMark specification."""

import re
from html import unescape

from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pretrain.report.markdown import UNKNOWN, count, literal, number, percent, table

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


def test_a_pipe_in_a_cell_of_a_table_begins_no_other():
    assert PARSER.render(table(["a"], [["`b|c`"]])).count("<td>") == 1


def test_numbers():
    assert [count(value) for value in (None, 7, 999, 1000, 17_300_000, 2.5e9)] == [
        *(UNKNOWN, "7", "999", "1 k", "17.3 M", "2.5 B")
    ]
    assert (number(None), number(1234.56789), number(2.0, digits=0)) == (UNKNOWN, "1,234.5679", "2")
    assert (percent(None), percent(0.1234)) == (UNKNOWN, "12.3%")
