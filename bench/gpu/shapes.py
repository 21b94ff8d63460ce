"""What is trained on a GPU: published shapes, each with the batch that fills one, and small ones for a machine without.

Holds sizes and synthetic batches; training is in `training`, the same shape in transformers in `peer`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pretrain.data.batch import IGNORED, Batch


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A preset and a micro-batch of whole sequences: nothing for a peer to pad."""

    experiment: str
    vocab: int  # token ids
    seq_len: int  # tokens
    sequences: int  # of a step, which is one micro-batch
    fp8: bool = True  # whether it is tried: narrow products gain nothing from it
    fp8_width: int | None = None  # the narrowest product that is computed in it; None: the product's own choice
    masked: float = 0.0  # share of the tokens that are targets; 0: all, of the token that follows
    settings: tuple[str, ...] = ()  # beside the preset's

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimizer step."""
        return self.seq_len * self.sequences

    @property
    def small(self) -> Shape:
        """The same with two narrow layers, for a CPU."""
        narrow = ("model.layers=2", "model.width=64", "model.heads=2", "model.mlp_width=96")
        grouped = ("model.kv_heads=1",) if self.experiment.startswith("llama") else ()
        settings = (*self.settings, *narrow, *grouped)
        return replace(self, vocab=512, seq_len=64, sequences=2, fp8_width=16, settings=settings)


SHAPES = {
    "gpt2_124m": Shape(experiment="gpt2_124m", vocab=50257, seq_len=1024, sequences=32),
    "llama_8b_2_blocks": Shape(
        experiment="llama_8b", vocab=128256, seq_len=4096, sequences=2, settings=("model.layers=2",)
    ),
    "llama_1b": Shape(experiment="llama_1b", vocab=128256, seq_len=4096, sequences=2),
    "bert_base": Shape(experiment="bert_base", vocab=30522, seq_len=512, sequences=64, masked=0.15, fp8=False),
    "modernbert_base": Shape(
        experiment="modernbert_base", vocab=50368, seq_len=1024, sequences=32, masked=0.3, fp8=False
    ),
}


def drawn(shape: Shape, seed: int) -> tuple[Tensor, Tensor]:
    """Return ids (B, T) and targets (B, T) of a step: following tokens, or those at drawn places."""
    generator = torch.Generator().manual_seed(seed)
    size = (shape.sequences, shape.seq_len)
    ids = torch.randint(shape.vocab, size, generator=generator)
    if shape.masked:
        hidden = torch.rand(size, generator=generator) < shape.masked
        return ids, ids.masked_fill(~hidden, IGNORED)
    return ids, torch.cat([ids[:, 1:], torch.full((len(ids), 1), IGNORED)], dim=1)


def batch_of(ids: Tensor, targets: Tensor) -> Batch:
    """Return rows of ids (B, T) as sequences that lie end to end."""
    rows, length = ids.shape
    return Batch(
        tokens=ids.flatten(),
        positions=torch.arange(length).repeat(rows),
        offsets=torch.arange(0, rows * length + 1, length, dtype=torch.int32),
        max_len=length,
        targets=targets.flatten(),
        num_targets=int((targets != IGNORED).sum()),
        lengths=[length] * rows,
    )
