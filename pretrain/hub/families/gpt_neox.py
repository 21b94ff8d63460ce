"""GPT-NeoX, of which Pythia is, in Hugging Face's layout: `GPTNeoXForCausalLM`.

Holds names and configuration. The fused projection to queries, keys and values lists them head by head there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pretrain.hub.config_json import SIZES, Settings
from pretrain.hub.family import Family, Tensors
from pretrain.hub.rope import rope_fields, rope_parameters
from pretrain.hub.task_heads import LAST_TOKEN, Heads
from pretrain.models.decoder import DecoderConfig
from pretrain.models.layers import Activation, Order, Positions
from pretrain.models.rotary import Scaling

_PARALLEL = {True: Order.parallel, False: Order.pre}  # orders by use_parallel_residual


class GPTNeoX(Family):
    """Decoder whose branches read the same stream, with rotary positions in a part of each head."""

    config_type = DecoderConfig
    model_type = "gpt_neox"
    architecture = "GPTNeoXForCausalLM"

    tensors = Tensors(
        names={
            "embedding": "gpt_neox.embed_in",
            "blocks.#.attention_norm": "gpt_neox.layers.#.input_layernorm",
            "blocks.#.attention.qkv": "gpt_neox.layers.#.attention.query_key_value",
            "blocks.#.attention.out": "gpt_neox.layers.#.attention.dense",
            "blocks.#.mlp_norm": "gpt_neox.layers.#.post_attention_layernorm",
            "blocks.#.mlp.up": "gpt_neox.layers.#.mlp.dense_h_to_4h",
            "blocks.#.mlp.down": "gpt_neox.layers.#.mlp.dense_4h_to_h",
            "final_norm": "gpt_neox.final_layer_norm",
            "head": "embed_out",  # which transformers calls lm_head in memory
        },
        prefix="gpt_neox.",
        by_head=("blocks.#.attention.qkv",),
        derived=(".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias"),
        tied=dict.fromkeys(("embed_out.weight", "lm_head.weight"), "gpt_neox.embed_in.weight"),
        copies={"lm_head.weight": "embed_out.weight"},
    )
    settings = Settings(
        same=SIZES | {"layer_norm_eps": "norm_eps", "tie_word_embeddings": "tie_embeddings"},
        defaults={
            "vocab_size": 50432,
            "max_position_embeddings": 2048,
            "hidden_size": 6144,
            "num_hidden_layers": 44,
            "num_attention_heads": 64,
            "intermediate_size": 24576,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            "use_parallel_residual": True,
            "rope_parameters": None,
            "rope_scaling": None,  # before transformers 5, as are the next two
            "rotary_emb_base": 10_000.0,
            "rotary_pct": 0.25,
            "tie_word_embeddings": False,
        },
        training={"hidden_dropout": "dropout", "attention_dropout": "attention_dropout"},
        activation_key="hidden_act",
        activations={Activation.gelu: "gelu", Activation.gelu_tanh: "gelu_new"},
        fixed={"positions": Positions.rotary},
        translated=("order", "rope_theta", "rope_scaling", "rotary_share"),
        computes={"attention_bias": True},
        read={
            "use_parallel_residual": bool,
            "rope_parameters": dict | None,
            "rope_scaling": dict | None,
            "rotary_emb_base": float,
            "rotary_pct": float,
        },
        silent=("is_decoder", "classifier_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob"),
    )
    heads = Heads(sequence=LAST_TOKEN)

    def differences(self, config: DecoderConfig) -> Iterator[str]:
        yield from super().differences(config)
        if config.order not in _PARALLEL.values():
            yield self.lacks("order", config.order, "which has parallel and pre only")

    def to_hf(self, config: DecoderConfig, vocab_size: int) -> dict[str, Any]:
        return {
            **super().to_hf(config, vocab_size),
            "use_parallel_residual": config.order is Order.parallel,
            "rope_parameters": rope_parameters(config),
            # What readers older than transformers 5 look at:
            "rotary_emb_base": config.rope_theta,
            "rotary_pct": config.rotary_share,
            "rope_scaling": None if config.rope_scaling.kind is Scaling.none else rope_parameters(config),
        }

    def derived(self, theirs: dict[str, Any]) -> dict[str, Any]:
        key = "rope_scaling" if theirs["rope_scaling"] else "rope_parameters"  # the first wins in transformers, too
        rope = rope_fields(
            self,
            key,
            theirs[key] or {},
            theta=theirs["rotary_emb_base"],
            length=theirs["max_position_embeddings"],
            share=theirs["rotary_pct"],
        )
        return {**rope, "order": _PARALLEL[theirs["use_parallel_residual"]]}
