"""The released ELECTRAs: their config.json as published, and a discriminator's directory, which predicts no tokens."""

import json

import pytest
import torch
from transformers import ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining

from pretrain.hub.family import family_for
from pretrain.hub.weights import HuggingFaceWeights, read_network
from pretrain.models.attention.sdpa import sdpa
from pretrain.objectives.masked_lm import MaskedLMConfig
from pretrain.objectives.replaced_tokens import ReplacedTokensConfig

COMMON = {
    **{"model_type": "electra", "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1},
    **{"initializer_range": 0.02, "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "num_hidden_layers": 12},
    **{"type_vocab_size": 2, "vocab_size": 30522},
}
SMALL = {"embedding_size": 128, "hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4}
SUMMARY = {"summary_activation": "gelu", "summary_last_dropout": 0.1, "summary_type": "first", "summary_use_proj": True}
PUBLISHED = {
    "electra-small-discriminator": {**COMMON, **SMALL, **SUMMARY, "architectures": ["ElectraForPreTraining"]},
    "electra-small-generator": {**COMMON, **SMALL, **SUMMARY, "architectures": ["ElectraForMaskedLM"]},
    "electra-base-discriminator": {
        **{**COMMON, "architectures": ["ElectraForPreTraining"], "embedding_size": 768, "hidden_size": 768},
        **{"intermediate_size": 3072, "num_attention_heads": 12, "position_embedding_type": "absolute"},
    },
    "electra-base-generator": {  # whose embeddings are wider than its blocks
        **{**COMMON, **SMALL, "architectures": ["ElectraForMaskedLM"], "embedding_size": 768},
        **{"pad_token_id": 0, "position_embedding_type": "absolute"},
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_the_parameters_that_transformers_counts(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    family, config, _ = read_network(tmp_path / "config.json")
    assert family.model_type == family_for(config).model_type == "electra"
    detects = "discriminator" in name
    with torch.device("meta"):
        kind = ElectraForPreTraining if detects else ElectraForMaskedLM
        theirs = kind(ElectraConfig.from_dict(PUBLISHED[name]))
        objective = ReplacedTokensConfig() if detects else MaskedLMConfig()
        ours = objective.build(config.build(vocab_size=30522, attend=sdpa, head=not detects))
    count, expected = (sum(each.numel() for each in module.parameters()) for module in (ours, theirs))
    assert count == expected
    assert ElectraConfig.from_dict(family.to_hf(config, 30522)).embedding_size == PUBLISHED[name]["embedding_size"]


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
