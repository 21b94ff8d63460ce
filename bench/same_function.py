"""Proof that a benchmark compares like with like: the same weights give the same loss and gradients in both models.

Holds the check for GPT-2, Headwater's against Hugging Face's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bench.contestants import Workload
from pretrain.data.batch import IGNORED, Batch
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.decoder import DecoderConfig
from pretrain.models.layers import Activation
from pretrain.objectives.causal_lm import CausalLMConfig

ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu"}  # Headwater's name -> Hugging Face's
TOLERANCE = 1e-5  # relative, fp32


def check_same_function(workload: Workload, tokens: Path) -> None:
    """Compare loss and gradient norm of both models on the same tokens. Raises `SystemExit` if they differ."""
    count = workload.batch * workload.seq_len
    ids = torch.from_numpy(np.fromfile(tokens, np.uint16, count).astype(np.int64)).view(workload.batch, -1)
    for ours, theirs in ACTIVATIONS.items():
        reference = _hugging_face(workload, theirs)
        objective = _headwater(workload, ours)
        _copy_weights(reference, objective.model)
        loss = objective(_batch(ids))
        (loss.total / (ids.numel() - len(ids))).backward()
        expected = reference(input_ids=ids, labels=ids).loss
        expected.backward()
        pairs = {
            "loss": (loss.nll / (ids.numel() - len(ids)), expected.detach()),
            "gradient norm": (_gradient_norm(objective), _gradient_norm(reference)),
        }
        for what, (mine, other) in pairs.items():
            if not torch.isclose(mine, other, rtol=TOLERANCE, atol=0.0):
                raise SystemExit(f"{ours}: {what} {mine:.6f}, Hugging Face {other:.6f}: not the same function")


def _hugging_face(workload: Workload, activation: str) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=workload.vocab,
        n_positions=workload.seq_len,
        n_embd=workload.width,
        n_layer=workload.layers,
        n_head=workload.heads,
        activation_function=activation,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config)


def _headwater(workload: Workload, activation: str) -> nn.Module:
    config = DecoderConfig(
        max_seq_len=workload.seq_len,
        width=workload.width,
        layers=workload.layers,
        heads=workload.heads,
        activation=Activation(activation),
    )
    return CausalLMConfig().build(config.build(vocab_size=workload.vocab, attend=sdpa))


def _batch(ids: Tensor) -> Batch:
    """Return rows of ids (B, T) as a batch whose last positions have no target, as Hugging Face counts them."""
    rows, length = ids.shape
    following = torch.cat([ids[:, 1:], torch.full((rows, 1), IGNORED)], dim=1)
    return Batch(
        tokens=ids.flatten(),
        positions=torch.arange(length).repeat(rows),
        offsets=torch.arange(0, rows * length + 1, length, dtype=torch.int32),
        max_len=length,
        targets=following.flatten(),
        num_targets=rows * (length - 1),
    )


@torch.no_grad()
def _copy_weights(reference: nn.Module, model: nn.Module) -> None:
    """Copy by order: both models declare the same tensors one after the other; GPT-2's matrices lie transposed."""
    theirs = reference.transformer.state_dict()
    for (name, tensor), source in zip(model.state_dict().items(), theirs.values(), strict=True):
        transposed = tensor.ndim == 2 and "embedding" not in name
        tensor.copy_(source.T if transposed else source)


def _gradient_norm(module: nn.Module) -> Tensor:
    return torch.stack([weight.grad.norm() for weight in module.parameters()]).norm()
