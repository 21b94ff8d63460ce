"""The standard library, read once for all tests of what is made of it."""

import pytest

from finetune.synthetic.library import source_files


@pytest.fixture(scope="session")
def library():
    return list(source_files())
