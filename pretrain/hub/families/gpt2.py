"""GPT-2 in Hugging Face's layout: `GPT2LMHeadModel`.

Holds names and configuration; its projections are `Conv1D`, which keeps weights transposed.
"""

from __future__ import annotations

from pretrain.hub.config_json import Settings
from pretrain.hub.family import Family, Tensors
from pretrain.hub.task_heads import LAST_TOKEN, Heads
from pretrain.models.decoder import DecoderConfig
from pretrain.models.layers import Activation


class GPT2(Family):
    """Pre-norm decoder with learned positions."""

    config_type = DecoderConfig
    model_type = "gpt2"
    architecture = "GPT2LMHeadModel"

    tensors = Tensors(
        names={
            "embedding": "transformer.wte",
            "position_embedding": "transformer.wpe",
            "blocks.#.attention_norm": "transformer.h.#.ln_1",
            "blocks.#.attention.qkv": "transformer.h.#.attn.c_attn",
            "blocks.#.attention.out": "transformer.h.#.attn.c_proj",
            "blocks.#.mlp_norm": "transformer.h.#.ln_2",
            "blocks.#.mlp.up": "transformer.h.#.mlp.c_fc",
            "blocks.#.mlp.down": "transformer.h.#.mlp.c_proj",
            "final_norm": "transformer.ln_f",
            "head": "lm_head",
        },
        transposes_blocks=True,
        prefix="transformer.",
        derived=(".attn.bias", ".attn.masked_bias"),
        tied={"lm_head.weight": "transformer.wte.weight"},
    )
    settings = Settings(
        same={
            "n_positions": "max_seq_len",
            "n_embd": "width",
            "n_layer": "layers",
            "n_head": "heads",
            "n_inner": "mlp_width",
            "layer_norm_epsilon": "norm_eps",
            "tie_word_embeddings": "tie_embeddings",
        },
        defaults={
            "vocab_size": 50257,
            "n_positions": 1024,
            "n_embd": 768,
            "n_layer": 12,
            "n_head": 12,
            "n_inner": None,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": True,
        },
        training={"embd_pdrop": "dropout", "resid_pdrop": "dropout", "attn_pdrop": "attention_dropout"},
        activation_key="activation_function",
        activations={Activation.gelu_tanh: "gelu_new", Activation.gelu: "gelu"},
        computes={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
        silent=("summary_", "n_ctx", "reorder_and_upcast_attn", "predict_special_tokens"),
        other_names={
            "max_position_embeddings": "n_positions",
            "hidden_size": "n_embd",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
        },
    )
    heads = Heads(sequence=LAST_TOKEN)
