"""Files of remote stores: the same texts as from a disk, in spite of servers' faults, and no secret in a name."""

import gzip
import io
import json
import random

import fsspec
import pyarrow as pa
import pytest
from pyarrow import parquet
from web_server import serving

from pretrain.data.sources import remote
from pretrain.data.sources.bad_records import BadRecords
from pretrain.data.sources.base import Cut, TextSource
from pretrain.data.sources.locations import open_raw
from pretrain.data.sources.structured import JsonLinesSource, ParquetSource
from pretrain.errors import ConfigError, DataError

LINES = [f"line {number} é" for number in range(3000)]
TEXT = "\n".join(LINES).encode()


@pytest.fixture
def server():
    with serving({"/books/a.txt": TEXT, "/books/deep/b.txt": b"b", "/books/.c.txt": b"hidden"}) as found:
        yield found


@pytest.fixture
def memory():
    store = fsspec.filesystem("memory")
    yield store
    store.store.clear()
    store.pseudo_dirs[:] = [""]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(remote, "WAITS_S", [0.0] * 3)


def texts(source, unit_bytes=2**20):
    units = source.units(source.inputs(), unit_bytes)
    return [text for unit in units for text in source.texts(unit, BadRecords())], len(units)


def names(source):
    return [entry.name for entry in source.inputs()]


def as_parquet(rows, **options):
    sink = io.BytesIO()
    parquet.write_table(pa.table({"id": range(len(rows)), "text": rows}), sink, **options)
    return sink.getvalue()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_of_a_web_server_is_read_like_one_here(server, ranges):
    server.ranges = ranges
    found, units = texts(TextSource(paths=[f"{server.url}/books/a.txt"], documents=Cut.line), unit_bytes=5000)
    assert found == LINES
    assert units == (-(-len(TEXT) // 5000) if ranges else 1)


@pytest.mark.parametrize("ranges", [True, False])
def test_parquet_json_lines_and_compressed_files_of_a_web_server(server, ranges):
    server.ranges = ranges
    server.files |= {
        "/p/a.parquet": as_parquet(LINES, row_group_size=700),
        "/p/b.parquet": as_parquet(LINES[:5]),
        "/j.jsonl": "".join(json.dumps({"text": line}) + "\n" for line in LINES).encode(),
        "/z.txt.gz": gzip.compress(TEXT),
    }
    found, units = texts(ParquetSource(paths=[f"{server.url}/p/*.parquet"]), unit_bytes=1)
    assert found == LINES + LINES[:5] and units == (6 if ranges else 2)
    assert texts(JsonLinesSource(paths=[f"{server.url}/j.jsonl"]), 9000)[0] == LINES
    assert texts(TextSource(paths=[f"{server.url}/z.txt.gz"], documents=Cut.line), 9000)[0] == LINES


def test_random_reads_are_those_of_the_bytes(server):
    draw = random.Random(0)
    for server.ranges in (True, False):
        with open_raw(f"{server.url}/books/a.txt") as file:
            assert file.seek(0, io.SEEK_END) == len(TEXT)
            for _ in range(30):
                start, count = draw.randrange(len(TEXT) + 9), draw.randrange(9000)
                file.seek(start)
                assert file.read(count) == TEXT[start : start + count]


def test_patterns_match_on_servers_as_they_do_here(server):
    for name in ("/books/part[1].txt", "/books/part1.txt", "/runs [v2]/c.txt", "/runs [v2]/50% é.txt"):
        server.files[name] = name.encode()
    found, _ = texts(TextSource(paths=[f"{server.url}/books/**/*.txt"]))
    assert found[1:] == ["b", "/books/part1.txt", "/books/part[1].txt"]
    assert texts(TextSource(paths=[f"{server.url}/books/part[1].txt"]))[0] == ["/books/part[1].txt"]
    for address in ("runs [v2]/50*é.txt", "runs%20%5Bv2%5D/50%25%20%C3%A9.txt"):
        assert texts(TextSource(paths=[f"{server.url}/{address}"]))[0] == ["/runs [v2]/50% é.txt"]
    source = TextSource(paths=[f"{server.url}/books/*"])
    assert source.left_out() == {"hidden": 1, "folder": 1}


def test_the_memory_store_of_fsspec(memory):
    for name in ("runs [v2]/a.txt", "runs [v2]/.a.txt", "runs [v2]/in/b.txt", "runs 2/c.txt", "x*.txt", "xy.txt"):
        memory.pipe_file(f"/{name}", name.encode())
    assert texts(TextSource(paths=["memory://runs [v2]/**/*.txt"]))[0] == ["runs [v2]/a.txt", "runs [v2]/in/b.txt"]
    assert texts(TextSource(paths=["memory://x*.txt"]))[0] == ["x*.txt"]
    assert names(TextSource(paths=["memory://runs*/*.txt"])) == ["memory://runs 2/c.txt", "memory://runs [v2]/a.txt"]
    assert names(TextSource(paths="memory://runs [v2]")) == ["memory://runs [v2]/a.txt", "memory://runs [v2]/in/b.txt"]
    with pytest.raises(ConfigError, match=r"memory://nowhere/.* matches no file"):
        names(TextSource(paths=["memory://nowhere/*.txt"]))


def test_another_content_is_another_input(server, memory):
    source = TextSource(paths=[f"{server.url}/books/a.txt", "memory://a.txt"])
    memory.pipe_file("/a.txt", b"one")
    before = source.inputs()
    assert before == source.inputs() and [entry.size for entry in before] == [len(TEXT), 3]
    server.files["/books/a.txt"] = b"2" + TEXT[1:]
    memory.pipe_file("/a.txt", b"two")
    assert not {entry.version for entry in before} & {entry.version for entry in source.inputs()}


def test_a_connection_that_drops_again_and_again_is_made_again(server):
    server.drop_after = 9001
    assert texts(TextSource(paths=[f"{server.url}/books/a.txt"], documents=Cut.line))[0] == LINES
    assert server.gets("/books/a.txt") == -(-len(TEXT) // 9001)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_never_gets_further_is_given_up(server, ranges):
    server.ranges, server.drop_after = ranges, 0
    with pytest.raises(DataError, match=r"books/a\.txt: cannot be read \(.*run again"):
        texts(TextSource(paths=[f"{server.url}/books/a.txt"]))
    assert server.gets("/books/a.txt") == 4


def test_a_server_without_ranges_is_read_from_the_start_once_it_holds(server):
    server.ranges, server.drop_after, server.drops_left = False, 9001, 2
    assert texts(TextSource(paths=[f"{server.url}/books/a.txt"], documents=Cut.line))[0] == LINES


def test_a_server_that_is_away_is_a_fault_of_data():
    with serving({}) as gone:
        url = gone.url
    with pytest.raises(DataError, match=rf"{url}/a\.txt: cannot be read \(.*refused"):
        TextSource(paths=[f"{url}/a.txt"]).inputs()


def test_what_is_missing_or_refused_is_not_asked_for_again(server):
    with pytest.raises(ConfigError, match=r"books/x\.txt matches no file"):
        TextSource(paths=[f"{server.url}/books/x.txt"]).inputs()
    with pytest.raises(ConfigError, match=r"books is a folder; name its files: .*/books/\*\*/\*"):
        TextSource(paths=[f"{server.url}/books"]).inputs()
    server.login = "user:password"
    with pytest.raises(DataError, match=r"a\.txt: cannot be read \(the server answers 401"):
        TextSource(paths=[f"{server.url}/books/a.txt"]).inputs()
    assert [asked[0] for asked in server.asked if asked[1] == "/books/a.txt"] == ["HEAD", "GET"]


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(ConfigError, match=r"s3:// .*pip install s3fs"):
        TextSource(paths=["s3://bucket/a.txt"]).inputs()
    with pytest.raises(ConfigError, match=r"gs:// .*pip install gcsfs"):
        TextSource(paths=["gs://bucket/*.txt"]).inputs()
    with pytest.raises(ConfigError, match=r"nonsense://bucket/a.txt: Protocol not known"):
        TextSource(paths=["nonsense://bucket/a.txt"]).inputs()


SECRET = "s3cr3t"
SIGNED = [
    f"X-Amz-Date=20261129&X-Amz-Signature={SECRET}&X-Amz-Expires=60",
    f"sv=2025&sig={SECRET}%3D",
    f"GoogleAccessId=me&Signature={SECRET}",
    f"X-Goog-Credential=me&X-Goog-Signature={SECRET}",
]


@pytest.mark.parametrize("query", SIGNED)
def test_a_signed_url_has_the_same_name_under_every_signature(server, query):
    server.query = query
    [first] = TextSource(paths=[f"{server.url}/books/a.txt?{query}"]).inputs()
    assert first.name == f"{server.url}/books/a.txt"
    found, _ = texts(TextSource(paths=[f"{server.url}/books/a.txt?{query}"], documents=Cut.line), unit_bytes=9000)
    assert found == LINES
    server.query = query.replace(SECRET, "other")
    assert TextSource(paths=[f"{server.url}/books/a.txt?{server.query}"]).inputs() == [first]


def test_a_token_leaves_a_name_and_the_rest_of_a_query_stays(server):
    server.query = f"version=3&access_token={SECRET}"
    source = TextSource(paths=[f"{server.url}/books/a.txt?{server.query}"], documents=Cut.line)
    assert names(source) == [f"{server.url}/books/a.txt?version=3"] and texts(source)[0] == LINES


def test_a_token_in_place_of_a_user_leaves_a_name(server):
    server.login = f"{SECRET}:"
    source = TextSource(paths=[f"{server.url.replace('://', f'://{SECRET}@')}/books/a.txt"], documents=Cut.line)
    assert names(source) == [f"{server.url}/books/a.txt"] and texts(source)[0] == LINES


def test_a_password_is_used_and_not_repeated(server):
    server.login = f"me:{SECRET}@"
    url = server.url.replace("://", f"://me:{SECRET}%40@")
    source = TextSource(paths=[f"{url}/books/**/*.txt"])
    assert names(source) == [f"{server.url}/books/a.txt", f"{server.url}/books/deep/b.txt"]
    assert texts(source)[0] == [TEXT.decode(), "b"]
    server.drop_after = 0
    for act in (
        lambda: texts(source),
        lambda: names(TextSource(paths=[f"{url}/books/none.txt"])),
        lambda: names(TextSource(paths=[f"{url}/books"])),
        lambda: names(TextSource(paths=[f"http://me:{SECRET}/@127.0.0.1/a.txt"])),
        lambda: names(TextSource(paths=[f"ftp://me:{SECRET}@127.0.0.1:1/a.txt"])),
        lambda: names(TextSource(paths=[f"nonsense://me:{SECRET}@host/a.txt"])),
        lambda: names(
            TextSource(paths=[f"{url}/books/a.txt", f"{server.url.replace('://', '://you:x@')}/books/a.txt"])
        ),
    ):
        with pytest.raises((ConfigError, DataError)) as caught:
            act()
        assert SECRET not in str(caught.value)
