"""A virtual cluster for all tests of a session."""

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from cluster import PACKAGES, install, search_path, start, stop
from jobs import Slurm
from ranks import FAST

NODES = 3  # so that a job of two goes on where one fails


@pytest.fixture(scope="session")
def virtual_cluster(tmp_path_factory) -> Iterator[Slurm]:
    """Slurm with three nodes: n1, n2 and n3."""
    missing = [package for program, package in PACKAGES.items() if not shutil.which(program, path=search_path())]
    if missing and os.geteuid() != 0:
        pytest.skip(f"needs Debian's {' and '.join(missing)}, which only root can install")
    try:
        install()
    except (OSError, subprocess.CalledProcessError) as error:  # no Debian, or no network
        pytest.skip(f"needs Debian's {' and '.join(missing)}, which cannot be installed here: {error}")
    folder = tmp_path_factory.mktemp("slurm") / "cluster"
    start(folder, NODES)
    yield Slurm(folder=folder, variables=FAST)
    stop(folder)


@pytest.fixture
def slurm(virtual_cluster) -> Iterator[Slurm]:
    """The cluster with nothing running, before a test and after it."""
    yield virtual_cluster
    virtual_cluster.clear()
