"""A tokenizer that several tests encode with."""

import pytest
from preparing import story

from pretrain.tokenizer.bpe import BpeTokenizer
from pretrain.tokenizer.file import TokenizerFile


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(BpeTokenizer(vocab_size=300).train(story(seed) for seed in range(50)))
    return TokenizerFile(path=str(path))
