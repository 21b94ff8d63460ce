"""The checks that no slice of the configuration can make alone."""

import pytest

from pretrain.entry import compose
from pretrain.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "refusal"),
    [
        (["optim=muon", "strategy=zero1"], r"optim=muon: updates whole matrices"),
        (["optim=muon", "strategy=fsdp2"], r"optim=muon: updates whole matrices"),
        (["model.max_seq_len=32", "data.seq_len=64"], r"model\.max_seq_len=32: must be at least 64, which is data"),
        (["attention=flash"], r"precision=torch\.float32: attention=flash computes in half precision"),
        (["attention=flex", "model.attention_dropout=0.1"], r"model\.attention_dropout=0\.1: .* no dropout of weights"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(overrides, refusal):
    with pytest.raises(ConfigError, match=refusal):
        compose(["experiment=demo", *overrides])


@pytest.mark.parametrize("overrides", [["optim=muon"], ["optim=muon", "strategy=zero0"], ["strategy=zero3"]])
def test_what_goes_together_is_accepted(overrides):
    compose(["experiment=demo", *overrides])
