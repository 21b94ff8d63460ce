"""Qwen 2 and 2.5 in Hugging Face's layout: `Qwen2ForCausalLM`.

Holds what differs from Llama: biases of queries, keys and values alone, and a window of all layers or of none.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pretrain.hub.families.llama import Llama
from pretrain.models.decoder import DecoderConfig

_FULL, _SLIDING = "full_attention", "sliding_attention"


class Qwen2(Llama):
    """Llama with biases of queries, keys and values."""

    model_type = "qwen2"
    architecture = "Qwen2ForCausalLM"
    whole_heads = False

    settings = replace(
        Llama.settings,
        defaults=Llama.settings.defaults
        | {
            "vocab_size": 151936,
            "max_position_embeddings": 32768,
            "num_key_value_heads": 32,
            "intermediate_size": 22016,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "max_window_layers": 28,
            "layer_types": None,
        },
        fixed=Llama.settings.fixed | {"qkv_bias": True},
        translated=(*Llama.settings.translated, "window"),
        read=Llama.settings.read
        | {
            "use_sliding_window": bool,
            "sliding_window": int | None,
            "max_window_layers": int,
            "layer_types": list | None,
        },
    )

    def to_hf(self, config: DecoderConfig, vocab_size: int) -> dict[str, Any]:
        window = config.layer_window(0)  # as in all others
        return {
            **super().to_hf(config, vocab_size),
            "use_sliding_window": window is not None,
            "sliding_window": window,
            "max_window_layers": config.layers if window is None else 0,
            "layer_types": [_FULL if window is None else _SLIDING] * config.layers,
        }

    def derived(self, theirs: dict[str, Any]) -> dict[str, Any]:
        return {**super().derived(theirs), "window": self._window(theirs)}

    def _window(self, theirs: dict[str, Any]) -> int | None:
        """Return the window of all layers, None where none has one. Raises `ConfigError` where some have."""
        window = theirs["sliding_window"] if theirs["use_sliding_window"] else None
        layers, types, first = theirs["num_hidden_layers"], theirs["layer_types"], theirs["max_window_layers"]
        if types is not None:
            if types not in ([_FULL] * layers, [_SLIDING] * layers) or (window is None and _SLIDING in types):
                rule = f"{_FULL} or, with use_sliding_window, {_SLIDING} in all {layers} layers is"
                raise self.refusal("layer_types", types, rule)
            return window if _SLIDING in types else None
        if window is not None and 0 < first < layers:
            raise self.refusal("max_window_layers", first, f"a window in all {layers} layers is, 0, or in none")
        return window if first < layers else None
