"""Qwen 3 in Hugging Face's layout: `Qwen3ForCausalLM`, without mixtures of experts.

Holds what differs from Qwen 2: norms of queries and keys in place of biases, and a width of heads of its own.
"""

from __future__ import annotations

from dataclasses import replace

from pretrain.hub.families.llama import Llama
from pretrain.hub.families.qwen2 import Qwen2
from pretrain.models.layers import QKNorm


class Qwen3(Qwen2):
    """Llama with normalised queries and keys."""

    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"

    tensors = replace(
        Llama.tensors,
        names=Llama.tensors.names
        | {f"blocks.#.attention.{norm}": f"model.layers.#.self_attn.{norm}" for norm in ("q_norm", "k_norm")},
    )
    settings = replace(
        Qwen2.settings,
        defaults=Qwen2.settings.defaults | {"head_dim": 128},
        fixed=Llama.settings.fixed | {"qk_norm": QKNorm.head},
        read=Qwen2.settings.read | {"head_dim": int},
    )
