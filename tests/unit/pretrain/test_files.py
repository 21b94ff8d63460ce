"""JSON that is read with suspicion, and what may not be written or deleted through a link."""

import json
import math
import os
from dataclasses import dataclass, field
from typing import Any, TypedDict

import pytest
from forgeries import SHAPES

from pretrain.files import OtherFormat, check_place, read_json, remove, sealed, typed_as


class Known(TypedDict):
    count: int
    ratio: float


@dataclass(kw_only=True)
class Part:
    """A dataclass with a required and an optional field."""

    name: str
    sizes: list[int] = field(default_factory=list)


def test_what_is_sealed_is_read_and_no_change_of_it_goes_unseen(tmp_path):
    path, content = tmp_path / "a.json", {"b": [1, 2.5, None, math.inf], "a": {"é": "x", 3: True}, "t": (1, 2)}
    path.write_bytes(data := sealed(content))
    assert read_json(path) == {"b": [1, 2.5, None, math.inf], "a": {"é": "x", "3": True}, "t": [1, 2]}
    for place in range(0, len(data), 3):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        try:
            found = read_json(path)
        except ValueError:
            continue
        assert json.dumps(found) == json.dumps(read_json_of(data)) or b"sha256" not in path.read_bytes(), place


def read_json_of(data: bytes) -> dict[str, Any]:
    content = json.loads(data)
    del content["sha256"]
    return content


@pytest.mark.parametrize("data", SHAPES, ids=lambda data: repr(data[:12]))
def test_nothing_but_an_object_that_has_what_is_needed(tmp_path, data):
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"\w"):
        read_json(path, Known, newest=1)


def test_what_is_no_file_of_bounded_size(tmp_path):
    path = tmp_path / "a.json"
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file"):
        read_json(path)
    path.unlink()
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(OSError, match="1,099,511,627,776 bytes"):
        read_json(path)


def test_a_later_format_is_told_from_damage(tmp_path):
    path = tmp_path / "a.json"
    for number, kind in ((1, None), (2, OtherFormat), (0, ValueError), (-1, ValueError), ("1", ValueError)):
        path.write_text(json.dumps({"format": number, "sha256": "of another kind"} if kind else {"format": number}))
        if kind is None:
            assert read_json(path, newest=1) == {"format": 1}
            continue
        with pytest.raises(ValueError, match="format") as refused:
            read_json(path, newest=1)
        assert isinstance(refused.value, OtherFormat) == (kind is OtherFormat)


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (Known, {"count": True, "ratio": 1}, "count is True, no int"),
        (Known, {"count": 1, "ratio": "1"}, "ratio is '1', no float"),
        (Known, {"count": 1}, "it lacks 'ratio'"),
        (Part, {"name": "a", "size": 1}, "it has 'size', which this version does not know"),
        (dict[str, list[Part]], {"a": [{"name": "b", "sizes": [1, None]}]}, r"a\[0\].sizes\[1\] is None, no int"),
        (dict[str, int | None], {"a": None, "b": 2.0}, r"b is 2.0, no int"),
        (tuple[int, int], [1], r"it is \[1\], no tuple"),
    ],
)
def test_a_value_of_another_type_is_named_by_its_place(kind, value, words):
    with pytest.raises(ValueError, match=words):
        typed_as(kind, value)


def test_what_fits_comes_back():
    assert typed_as(Known, {"count": 1, "ratio": 2, "more": "x"}) == {"count": 1, "ratio": 2, "more": "x"}
    assert typed_as(dict[str, Part], {"a": {"name": "b"}}) == {"a": Part(name="b")}
    assert typed_as(tuple[list[int], Any], [[1], "x"]) == [[1], "x"]


def test_links_are_neither_followed_nor_written_through(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    run = tmp_path / "run"
    run.mkdir()
    (run / ".tmp-a").symlink_to(outside)
    (run / ".tmp-b").touch()
    (run / ".tmp-c" / "d").mkdir(parents=True)
    for torn in run.iterdir():
        remove(torn)
    assert not list(run.iterdir()) and list(outside.iterdir())
    check_place(run, files=["lock"], folders=["checkpoints"])
    (run / "lock").symlink_to(outside / "none")
    with pytest.raises(OSError, match=r"lock is a link to .*/none; .* must be a regular file of its own"):
        check_place(run, files=["lock"])
    (run / "checkpoints").touch()
    with pytest.raises(OSError, match=r"checkpoints is no directory"):
        check_place(run, folders=["checkpoints"])
