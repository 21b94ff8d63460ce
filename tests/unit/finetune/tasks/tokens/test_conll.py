"""Columns of words: CoNLL-U and its relatives; what is a comment, what is a word, what is blank."""

import logging

import pytest

from finetune.tasks.tokens.sentences import TagScheme
from finetune.tasks.tokens.task import TokensConfig
from pretrain.errors import DataError

UD = """\
# newdoc id = weblog
# global.Entity = x
# sent_id = 1
# text = Vámonos al mar, #1
1-2\tVámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tVamos\tir\tVERB\t_\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_
3-4\tal\t_\t_\t_\t_\t_\t_\t_\tSpaceAfter=No
3\ta\ta\tADP\t_\t_\t5\tcase\t_\t_
4\tel\tel\tDET\t_\t_\t5\tdet\t_\t_
5\tmar\tmar\tNOUN\t_\tGender=Masc\t1\tobl\t_\t_
5.1\tvamos\tir\tVERB\t_\t_\t_\t_\t0:exroot\t_

# sent_id = 2
1\t#\t#\tSYM\t_\t_\t0\troot\t_\t_
2\tNew York\t_\tPROPN\t_\t_\t1\tdep\t_\tSpacesAfter=\\n
"""
SENTENCES = [
    (["Vamos", "nos", "a", "el", "mar"], ["VERB", "PRON", "ADP", "DET", "NOUN"]),
    (["#", "New York"], ["SYM", "PROPN"]),
]


@pytest.fixture
def read(tmp_path):
    """Read the content of a file; the words and tags of each sentence."""

    def read(content, name="a.conll", labelled=True, **options):
        file = tmp_path / name
        file.write_bytes(content.encode())
        task = TokensConfig(scheme=TagScheme.none, **options)
        return [(found.words, found.tags) for found in task.records(str(file), labelled=labelled)]

    return read


@pytest.mark.parametrize("name", ["a.conllu", "a.conll", "a.txt"])
def test_conllu_is_told_from_its_content(read, name, caplog):
    caplog.set_level(logging.INFO)
    assert read(UD, name) == SENTENCES
    assert f"{name}: left out 5 lines of comments and 3 of multi-word tokens and empty nodes" in caplog.text
    assert [words for words, _ in read(UD, name, labelled=False)] == [words for words, _ in SENTENCES]
    assert read(UD, name, word_column=1, tag_column=3) == SENTENCES
    assert read(UD, name, tag_column=7)[1] == (["#", "New York"], ["root", "dep"])
    assert read(UD.replace("\n", "\r\n").rstrip(), name) == SENTENCES


def test_an_empty_node_may_come_first(read):
    head = "0.1\tthey\tthey\tPRON\t_\t_\t_\t_\t1:nsubj\t_\n"
    assert read(head + UD.split("# sent_id = 2\n")[1]) == SENTENCES[1:]


def test_places_are_those_of_the_words(tmp_path):
    file = tmp_path / "a.conllu"
    file.write_text(UD.replace("\tNOUN", "\t"))
    with pytest.raises(DataError, match=rf"\({file}:11: ''\)"):
        TokensConfig(scheme=TagScheme.none).records(str(file))
    found = TokensConfig(scheme=TagScheme.none, max_faults=0.5).records(str(file))
    assert [sentence.place_of(1) for sentence in found] == [f"{file}:16"]


def test_conllu_plus_names_its_columns(read):
    content = (
        "# global.columns = ID UPOS FORM PARSEME:MWE\n# source = x\n1-2\t_\tdon't\t*\n1\tAUX\tdo\t*\n2\tPART\tn't\t1\n"
    )
    assert read(content, "a.conllup") == [(["do", "n't"], ["AUX", "PART"])]
    assert read(content, "a.conllup", tag_column=-1) == [(["do", "n't"], ["*", "1"])]


def test_a_hash_is_a_word_where_it_has_the_columns_of_one(read):
    content = "# # O\nnumber NN O\n\n# # O\n\n1 CD O\n# # O\n"
    assert read(content) == [(["#", "number"], ["O", "O"]), (["#"], ["O"]), (["1", "#"], ["O", "O"])]
    assert read("# O\n#tag O\n") == [(["#", "#tag"], ["O", "O"])]
    assert read("#\n#tag\n\n#\n", labelled=False) == [(["#", "#tag"], None), (["#"], None)]
    assert read("#\tO\nb\tO\n") == [(["#", "b"], ["O", "O"])]


@pytest.mark.parametrize("sign", [" ", "\t"])
def test_comments_of_other_columns(read, sign, caplog):
    """As MultiCoNER, GermEval and others have them, and of as many pieces as the words have columns."""
    caplog.set_level(logging.INFO)
    words = f"a{sign}_{sign}_{sign}B-X\n# {sign}_{sign}_{sign}O\n"
    comments = ["# id 5239d808\tdomain=en", "#\thttp://example.org [2009]", "# sent_id = 1", "# newdoc"]
    for comment in comments:
        caplog.clear()
        found = read(f"{comment}\n{words}\n{comment}\n{comment}\n{words}")
        assert found == [(["a", "#" if sign == " " else "# "], ["B-X", "O"])] * 2
        assert "left out 3 lines of comments and 0" in caplog.text


def test_a_comment_between_words_is_a_bad_line(read):
    with pytest.raises(DataError, match=r"too few or too many columns: 1 \(.*a.conll:2: 3, expected 2\)"):
        read("a O\n# in between\nb O\n")


def test_ten_columns_are_not_conllu_by_themselves(read):
    row = "\t".join(["1", "b", "c", "d", "e", "f", "g", "h", "i", "O"])
    assert read(f"{row}\n8.1{row[1:]}\n") == [(["1", "8.1"], ["O", "O"])]


def test_blanks(read):
    assert read("a O  \n  b  O\n   \nc O") == [(["a", "b"], ["O", "O"]), (["c"], ["O"])], "around columns"
    assert read("a b\tX \nc\t Y\n\t\nd\tX") == [(["a b", "c"], ["X", "Y"]), (["d"], ["X"])], "not in words, but in tags"
    odd = ["\u00a0", "\x0c", "\u3000", "\u2028", "\x85", "\x1c"]
    assert read("".join(f"{word}\tO\n" for word in odd)) == [(odd, ["O"] * 6)]
    assert read("".join(f"{word}\n" for word in odd), labelled=False) == [(odd, None)]
    assert read("".join(f"{word} O\n" for word in odd)) == [(odd, ["O"] * 6)]


def test_documents_begin_a_sentence(read):
    for sign in (" ", "\t"):
        content = f"-DOCSTART-{sign}-X-{sign}O\n\na{sign}X{sign}O\n-DOCSTART-{sign}-X-{sign}O\nb{sign}X{sign}O\n"
        assert read(content) == [(["a"], ["O"]), (["b"], ["O"])]


def test_a_carriage_return_is_no_line_end(read):
    with pytest.raises(DataError, match=r"a carriage return inside a line: 1 \(.*a.conll:1: 'a O\\rb O\\r\\rc O'"):
        read("a O\rb O\r\rc O\r")
