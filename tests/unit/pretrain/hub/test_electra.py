"""The directory of an ELECTRA discriminator, which predicts no tokens."""

import pytest
from transformers import ElectraConfig, ElectraForPreTraining

from pretrain.hub.weights import HuggingFaceWeights


@pytest.mark.parametrize("body_alone", [False, True])
def test_a_discriminator_lacks_what_predicts_tokens_and_has_the_detector(tmp_path, body_alone):
    sizes = {"embedding_size": 10, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
    theirs = ElectraForPreTraining(ElectraConfig(**sizes, vocab_size=61, intermediate_size=40))
    (theirs.electra if body_alone else theirs).save_pretrained(tmp_path)
    read = HuggingFaceWeights(tmp_path)
    assert {name.split(".")[1] for name in read.absent} == {"transform", "head"}
    held = read.weight_shapes()
    assert held["model.embedding_projection.weight"] == (24, 10)
    detector = {name: tuple(shape) for name, shape in held.items() if not name.startswith("model.")}
    expected = {"dense.weight": (24, 24), "dense.bias": (24,), "classifier.weight": (1, 24), "classifier.bias": (1,)}
    assert detector == ({} if body_alone else {f"detector.{name}": shape for name, shape in expected.items()})
