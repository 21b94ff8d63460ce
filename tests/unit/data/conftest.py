"""Lets tests import the modules that stand beside them; a tokenizer that several of them encode with."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from preparing import story

from pretrain.data.tokenization.bpe import BpeTokenizer
from pretrain.data.tokenization.ready import TokenizerFile


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(BpeTokenizer(vocab_size=300).train(story(seed) for seed in range(50)))
    return TokenizerFile(path=str(path))
