"""OLMo 2 in Hugging Face's layout: `Olmo2ForCausalLM`.

Holds what differs from Llama: where the norms are. Those after a branch have the names of norms before one there.
"""

from __future__ import annotations

from dataclasses import replace

from pretrain.hub.families.llama import Llama
from pretrain.hub.task_heads import LAST_TOKEN, Heads
from pretrain.models.layers import Order, QKNorm


class Olmo2(Llama):
    """Llama that normalises what branches return, and queries and keys over all heads together."""

    model_type = "olmo2"
    architecture = "Olmo2ForCausalLM"

    tensors = replace(
        Llama.tensors,
        names=Llama.tensors.names
        | {
            "blocks.#.attention_norm": "model.layers.#.post_attention_layernorm",
            "blocks.#.attention.q_norm": "model.layers.#.self_attn.q_norm",
            "blocks.#.attention.k_norm": "model.layers.#.self_attn.k_norm",
            "blocks.#.mlp_norm": "model.layers.#.post_feedforward_layernorm",
        },
    )
    settings = replace(
        Llama.settings,
        defaults=Llama.settings.defaults | {"vocab_size": 50304, "rms_norm_eps": 1e-5},
        fixed=Llama.settings.fixed | {"order": Order.output, "qk_norm": QKNorm.projection},
        computes={"attention_bias": False},
        silent=(),
    )
    heads = Heads(sequence=LAST_TOKEN, span=None, token=None)
