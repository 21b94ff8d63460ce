"""Small models of every family of hub checkpoints, with what its families' settings allow."""

from small_models import (
    BART,
    DEBERTA,
    DISTILBERT,
    ELECTRA,
    GEMMA3,
    GPT_NEOX,
    LLAMA,
    MARIAN,
    MBART,
    MODERNBERT,
    OLMO2,
    PHI3,
    QWEN2,
    QWEN3,
    ROBERTA,
    T5_GATED,
    T5_TIED,
    small_decoder,
    small_encoder,
    small_encoder_decoder,
)

from pretrain.hub.family import FAMILIES
from pretrain.models.decoder import DecoderConfig
from pretrain.models.encoder import EncoderConfig
from pretrain.models.encoder_decoder import EncoderDecoderConfig
from pretrain.models.layers import Activation, Order
from pretrain.models.rotary import RopeScaling, Scaling

SCALINGS = {
    "linear": RopeScaling(kind=Scaling.linear, factor=3.0),
    "llama3": RopeScaling(kind=Scaling.llama3, factor=3.0, original_length=9, slow_turns=0.5, fast_turns=2.0),
    "yarn": RopeScaling(kind=Scaling.yarn, factor=3.0, original_length=9, fast_turns=2.0, truncate=False),
}
SHAPES = {
    "gpt2": {},
    "gpt2, untied": {"tie_embeddings": False, "mlp_width": 40, "activation": Activation.gelu, "norm_eps": 1e-3},
    "llama": {**LLAMA, "kv_heads": 2, "rope_theta": 5e5},
    "llama, untied": {**LLAMA, "tie_embeddings": False, "mlp_width": 56},
    "gpt_neox": {**GPT_NEOX, "rope_theta": 5e5, "layers": 3},
    "gpt_neox, sequential": {
        **{**GPT_NEOX, "order": Order.pre, "tie_embeddings": False, "activation": Activation.gelu_tanh},
        **{"rope_scaling": RopeScaling(kind=Scaling.yarn, factor=4.0, original_length=8), "mlp_width": 40},
    },
    "phi3": {**PHI3, "kv_heads": 2, "rope_theta": 5e5},
    "phi3, whole heads": {**LLAMA, "family": "phi3"},
    "phi3, untied": {**PHI3, "window": 3, "tie_embeddings": False, "mlp_width": 56},
    "olmo2": {**OLMO2, "kv_heads": 2, "attention_width": 40},
    "olmo2, tied": {**OLMO2, "rope_theta": 5e5, "tie_embeddings": True, "norm_eps": 1e-3},
    "gemma3_text": {
        **{**GEMMA3, "kv_heads": 2, "attention_width": 40, "score_width": 7, "layers": 5, "rope_theta": 1e6},
        **{"window": 3, "global_every": 3, "global_first": 2, "local_rope_theta": 1e4},
        "rope_scaling": RopeScaling(kind=Scaling.linear, factor=8.0),
    },
    "gemma3_text, everywhere": {**GEMMA3, "tie_embeddings": False, "activation": Activation.swiglu},
    "gemma3_text, nowhere": {**GEMMA3, "window": 3, "local_rope_theta": 1e4, "mlp_width": 40},
    "llama, wide heads": {**LLAMA, "attention_width": 40, "rope_scaling": SCALINGS["llama3"]},
    "mistral": {**LLAMA, "window": 3, "kv_heads": 1, "rope_scaling": SCALINGS["yarn"]},
    "mistral, wide heads": {**LLAMA, "width": 26, "attention_width": 32, "rope_scaling": SCALINGS["linear"]},
    "qwen2": {**QWEN2, "kv_heads": 2, "tie_embeddings": False},
    "qwen2, windows": {**QWEN2, "window": 3, "attention_width": 32, "rope_scaling": SCALINGS["yarn"]},
    "qwen3": {**QWEN3, "width": 26, "attention_width": 32, "kv_heads": 2},
    "qwen3, windows": {**QWEN3, "window": 5},
    "bert": {},
    "bert, tanh": {"activation": Activation.gelu_tanh, "mlp_width": 40, "token_types": 3, "norm_eps": 1e-5},
    "roberta": ROBERTA,
    "xlm-roberta": {**ROBERTA, "family": "xlm-roberta"},
    "electra": {**ELECTRA, "mlp_width": 40, "token_types": 3},
    "electra, as wide": {"family": "electra"},
    "distilbert": DISTILBERT,
    "distilbert, untied": {**DISTILBERT, "tie_embeddings": False, "mlp_width": 40},
    "deberta-v2": DEBERTA,
    "deberta-v2, apart": {**DEBERTA, "token_types": 2, "shared_projections": False, "distance_norm": False},
    "deberta-v2, content to position": {**DEBERTA, "buckets": None, "position_to_content": False},
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
    builders = {
        DecoderConfig: small_decoder,
        EncoderConfig: small_encoder,
        EncoderDecoderConfig: small_encoder_decoder,
    }
    return builders[FAMILIES[name.partition(",")[0]].config_type](**SHAPES[name])
