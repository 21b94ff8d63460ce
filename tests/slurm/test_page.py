"""A new user's path through docs/cluster.md, word for word."""

from pathlib import Path

import pytest
from cluster import environment
from pages import carry_out

PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"


@pytest.mark.slow
@pytest.mark.timeout(1200)  # s; ten runs on few cores, of which two prepare a corpus
def test_every_command_runs(slurm, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    carry_out(PAGE, place, environment(slurm.folder))
