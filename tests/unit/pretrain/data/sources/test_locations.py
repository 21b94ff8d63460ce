"""Which local files a path names: itself if it exists, else what it matches; links, hidden files, names of any kind."""

import glob
import itertools
import os
import random
import unicodedata
from pathlib import Path

import pytest

from pretrain.data.sources.base import TextSource
from pretrain.data.sources.locations import data_set_files, find_files
from pretrain.data.sources.structured import HubSource
from pretrain.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(*names):
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(os.fsencode(f"text of {name}"))


def names(*paths):
    return [entry.name for entry in find_files(paths, "paths")[0]]


def left_out(*paths):
    return find_files(paths, "paths")[1].settled()


ODD = [
    "part[1].txt",
    "star*.txt",
    "what?.txt",
    "[a-z].txt",
    "[",
    "two  spaces .txt",
    " begins with one",
    "quote'\".txt",
    "back\\slash.txt",
    "new\nline.txt",
    "日本語/テキスト.txt",
    "كتاب.txt",
    "é.txt",
    "$(date).txt",
    "100%.txt",
    "a#b;c&d.txt",
    "-dash.txt",
    "=.txt",
    "runs [v2]/[!x]*.txt",
    "~tilde.txt",
    "**",
    b"not utf-8 \xff.txt".decode(errors="surrogateescape"),
]


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_a_path_that_exists_is_itself_alone(name):
    write(name, "part1.txt", "starlight.txt", "whatX.txt", "b.txt", "runs v/y.txt", "runs 2/y.txt")
    assert names(name) == [name]
    assert len(names(f"./{name}", str(Path(name).absolute()))) == 1


def test_a_file_that_exists_wins_and_without_it_its_name_is_a_pattern():
    write("part[1].txt", "part1.txt")
    assert names("part[1].txt") == ["part[1].txt"]
    Path("part[1].txt").unlink()
    assert names("part[1].txt") == ["part1.txt"]


def test_folders_with_brackets_hold_what_a_pattern_below_them_matches():
    write("runs [v2]/a [x]/1.txt", "runs [v2]/a [x]/2.txt", "runs v/a x/3.txt", "runs 2/a x/4.txt")
    assert names("runs [v2]/a [x]/*.txt") == ["runs [v2]/a [x]/1.txt", "runs [v2]/a [x]/2.txt"]
    assert names("runs [v2]/**/[2-9].txt") == ["runs [v2]/a [x]/2.txt"]
    assert names("runs [v3]/a */*.txt") == ["runs v/a x/3.txt"]


def test_patterns_match_what_those_of_the_library_match():
    draw = random.Random(3)
    folders = ["", "a", "b", "a/b", "a/b/c", "b/ab", "a/b/a"]
    write(
        *(
            f"{draw.choice(folders)}/{draw.choice(['a', 'ab', 'b1', 'B'])}.{draw.choice(['txt', 'md'])}".lstrip("/")
            for _ in range(60)
        )
    )
    parts = ["**", "*", "a", "?", "[ab]", "[!a]*", "*.txt", "a?.*", "b1.md", "*b*"]
    compared = 0
    for length in (1, 2, 3):
        for chosen in itertools.product(parts, repeat=length):
            pattern = "/".join(chosen)
            if os.path.lexists(pattern) or chosen[-1] == "**":
                continue
            listed = glob.glob(pattern, recursive=True)  # noqa: PTH207 (pathlib's own follows no links)
            expected = {path for path in listed if Path(path).is_file()}
            try:
                assert set(names(pattern)) == expected
                compared += 1
            except ConfigError:
                assert not expected
    assert compared > 200


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("empty", r"empty/\*\*/\* matches no file, seen from /"),
        ("b*/", r"b\*/ ends in /, so that it names folders; name their files: b\*/\*\*/\*$"),
        ("books/*.text", r"books/\*\.text matches no file, seen from /"),
        ("books/*", r"books/\* matches no file, .*; left out: a folder where .* \(1\): 'books/in'$"),
        ("nowhere/**/*.txt", r"nowhere/\*\*/\*\.txt matches no file"),
        ("books/**.txt", r"books/\*\*\.txt: \*\* stands for folders .* write \*\*/\*\.txt$"),
    ],
)
def test_a_name_without_a_file_says_why(path, message):
    write("books/in/a.txt")
    Path("empty").mkdir()
    with pytest.raises(ConfigError, match=rf"^paths: {message}"):
        names(path)


@pytest.mark.parametrize(("there", "typed"), [("NFD", "NFC"), ("NFC", "NFD")])
@pytest.mark.parametrize("path", ["café/Ångström.txt", "café/*.txt", "plain/Å*.txt"])
def test_another_form_of_unicode_is_named(there, typed, path):
    write(unicodedata.normalize(there, path.replace("*", "x")))
    with pytest.raises(
        ConfigError, match=r"matches no file, but there is '.*\\[ux].*', whose letters are in another form"
    ):
        names(unicodedata.normalize(typed, path))


def test_links_are_followed_and_each_file_is_taken_once():
    write("far/book/a.txt", "d/near/b.txt", "d/z.txt")
    Path("d/link").symlink_to(Path("far").absolute())
    Path("d/again").symlink_to("../far")
    Path("d/near/up").symlink_to("..")  # a circle
    Path("d/y.txt").symlink_to("z.txt")
    Path("d/hard.txt").hardlink_to("d/z.txt")
    assert names("d/**/*.txt") == ["d/again/book/a.txt", "d/hard.txt", "d/near/b.txt"]
    assert left_out("d/**/*.txt") == {"linked_twice": 4}
    assert names("d/*/*/a.txt", "far/**/*") == ["d/again/book/a.txt"]
    assert names("d/y.txt") == ["d/y.txt"]


def test_links_that_lead_nowhere_are_named(caplog):
    write("d/a.txt")
    Path("d/gone").symlink_to("nowhere")
    Path("d/circle").symlink_to("circle")
    assert names("d/**/*.txt") == ["d/a.txt"] and left_out("d/**/*.txt") == {"broken_link": 2}
    assert "left out: a link that leads nowhere (2): 'd/circle', 'd/gone'" in caplog.text
    with pytest.raises(DataError, match="d/gone, a link to nowhere: cannot be read"):
        names("d/*o*")
    with pytest.raises(DataError, match="d/circle, a link to circle: cannot be read"):
        names("d/circle")


HIDDEN = [".DS_Store", "._a.txt", ".a.txt.swp", "a.txt~", "#a.txt#", "b.swp", "Thumbs.db", "desktop.ini", ".git/config"]
HIDDEN += [".ipynb_checkpoints/a-checkpoint.txt"]


def test_hidden_files_are_left_out_and_counted(caplog):
    write("d/a.txt", "d/in/b.txt", *(f"d/{name}" for name in HIDDEN), "d/in/.c.txt")
    assert names("d/**/*") == ["d/a.txt", "d/in/b.txt"]
    assert left_out("d/**/*") == {"hidden": len(HIDDEN) + 1}
    assert "(11): 'd/#a.txt#', " in caplog.text
    assert left_out("d/*.txt") == left_out("d/a.*") == {"hidden": 1} and left_out("d/a.txt") == {}


@pytest.mark.parametrize("name", HIDDEN)
def test_a_hidden_file_that_is_named_is_read(name):
    write("d/a.txt", f"d/{name}")
    assert names(f"d/{name}") == [f"d/{name}"]


def test_a_pattern_that_begins_with_a_dot_reads_hidden_files():
    write("d/.a.txt", "d/.git/config", "d/x~", "d/b.txt", ".own/c.txt", ".own/.d.txt")
    assert names("d/.*") == ["d/.a.txt"] and names("d/*~") == ["d/x~"]
    assert names("d/.*/*") == ["d/.git/config"] and names(".own/**/*") == [".own/c.txt"]


def test_folders_and_pipes_that_a_pattern_matches_are_counted():
    write("d/a.txt", "d/in/b.txt")
    os.mkfifo("d/pipe")
    assert names("d/*") == ["d/a.txt"] and left_out("d/*") == {"folder": 1, "no_file": 1}


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_listed_is_named():
    write("d/a.txt", "d/in/b.txt")
    Path("d/in").chmod(0)
    with pytest.raises(DataError, match="d/in: cannot be listed"):
        names("d/**/*")


def test_home_and_variables_are_filled_in_unless_the_name_exists(monkeypatch):
    write("home/a.txt", "home/$b.txt", "home/café/c.txt")
    monkeypatch.setenv("HOME", str(Path("home").absolute()))
    monkeypatch.setenv("PART", "a")
    for path in ("~/a.txt", "$HOME/a.txt", "${HOME}/$PART.txt", "file://$HOME/${PART}.t*t"):
        assert [Path(name).read_text() for name in names(path)] == ["text of home/a.txt"]
    assert names("home/$b.txt") == ["home/$b.txt"]
    with pytest.raises(ConfigError, match=r"paths=\$NO_SUCH: this environment variable is not set"):
        names("$NO_SUCH/a.txt")
    with pytest.raises(ConfigError, match=r"paths=~nobody-of-that-name/a\.txt: there is no user of this name"):
        names("~nobody-of-that-name/a.txt")


def test_sources_count_what_they_leave_out():
    write("d/a.txt", "d/.b.txt")
    assert TextSource(paths=["d/*.txt", "d/a.txt"]).left_out() == {"hidden": 1}


def test_a_data_set_folder_lists_what_datasets_reads_and_refuses_what_it_would_not(monkeypatch):
    write("d/train.jsonl", "d/in/b.jsonl", "d/.hidden.jsonl", "d/.git/config", "far/c.jsonl")
    assert [entry.name for entry in data_set_files("d")] == ["d/in/b.jsonl", "d/train.jsonl"]
    monkeypatch.setenv("HERE", str(Path.cwd()))
    assert HubSource(path="$HERE/d").inputs() == data_set_files(str(Path("d").absolute()))
    Path("d/link").symlink_to("../far")
    with pytest.raises(ConfigError, match="d: `datasets` does not follow 'link', a link to a folder"):
        data_set_files("d")
    write("runs [v2]/a.jsonl")
    with pytest.raises(ConfigError, match=r"runs \[v2\]: `datasets` takes .* for a pattern"):
        data_set_files("runs [v2]")
