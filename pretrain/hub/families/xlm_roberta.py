"""XLM-RoBERTa (Conneau et al. 2020) in Hugging Face's layout: `XLMRobertaForMaskedLM`.

Holds what differs from RoBERTa: its name, and the vocabulary of a config.json that says none.
"""

from __future__ import annotations

from dataclasses import replace

from pretrain.hub.families.roberta import Roberta


class XLMRoberta(Roberta):
    """RoBERTa, trained on text in a hundred languages."""

    model_type = "xlm-roberta"
    architecture = "XLMRobertaForMaskedLM"

    settings = replace(Roberta.settings, defaults=Roberta.settings.defaults | {"vocab_size": 30522})
