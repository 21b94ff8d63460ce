"""Small models of every family of hub checkpoints, with what its families' settings allow."""

from small_models import (
    BART,
    DISTILBERT,
    ELECTRA,
    LLAMA,
    MARIAN,
    MBART,
    MODERNBERT,
    ROBERTA,
    T5_GATED,
    T5_TIED,
    small_decoder,
    small_encoder,
    small_encoder_decoder,
)

from pretrain.models.layers import Activation

SHAPES = {
    "gpt2": {},
    "gpt2, untied": {"tie_embeddings": False, "mlp_width": 40, "activation": Activation.gelu, "norm_eps": 1e-3},
    "llama": {**LLAMA, "kv_heads": 2, "rope_theta": 5e5},
    "llama, untied": {**LLAMA, "tie_embeddings": False, "mlp_width": 56},
    "mistral": {**LLAMA, "window": 3, "kv_heads": 1},
    "bert": {},
    "bert, tanh": {"activation": Activation.gelu_tanh, "mlp_width": 40, "token_types": 3, "norm_eps": 1e-5},
    "roberta": ROBERTA,
    "xlm-roberta": {**ROBERTA, "family": "xlm-roberta"},
    "electra": {**ELECTRA, "mlp_width": 40, "token_types": 3},
    "electra, as wide": {"family": "electra"},
    "distilbert": DISTILBERT,
    "distilbert, untied": {**DISTILBERT, "tie_embeddings": False, "mlp_width": 40},
    "modernbert": {**MODERNBERT, "window": 3, "global_every": 2, "layers": 5},
    "modernbert, everywhere": {**MODERNBERT, "rope_theta": 1e4},
    "bart": {**BART, "decoder_layers": 3, "activation": Activation.relu},
    "mbart": {**MBART, "embedding_scale": True},
    "marian": {**MARIAN, "mlp_width": 40},
    "t5": {**T5_TIED, "attention_width": 20, "buckets": 16, "max_distance": 40},
    "t5, gated": {**T5_GATED, "width": 26, "attention_width": 32, "decoder_layers": 1},
    "modernbert, untied": {**MODERNBERT, "window": 9, "bias": True, "tie_embeddings": False, "local_rope_theta": 2e4},
}


def small_model(name):
    """Return a model of a family."""
    builders = {"gpt2": small_decoder, "llama": small_decoder, "mistral": small_decoder}
    builders |= dict.fromkeys(("bart", "mbart", "marian", "t5"), small_encoder_decoder)
    return builders.get(name.partition(",")[0], small_encoder)(**SHAPES[name])
