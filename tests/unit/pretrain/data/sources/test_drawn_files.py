"""Files of any encoding, compression, format and name: the right texts arrive, or an error names the file."""

from drawn_files import draw_file, outcome


def test_drawn_files_are_read_or_refused(tmp_path_factory):
    found: dict[str, list[str]] = {}
    for seed in range(300):
        drawn = draw_file(seed, tmp_path_factory.mktemp("drawn"))
        found.setdefault(outcome(drawn), []).append(f"seed {seed}: {drawn.choices}")
    assert found.keys() == {"read", "refused"}, {told: seeds for told, seeds in found.items() if len(told) > 7}
    assert len(found["read"]) > 100 < len(found["refused"])
