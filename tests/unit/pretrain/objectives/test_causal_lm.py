"""The causal objective: what it predicts, what it sums, what it refuses."""

import numpy as np
import pytest
import torch
from small_models import LLAMA, ragged_batch, small_decoder

from pretrain.data.batch import IGNORED, Slots
from pretrain.models.base import Layout
from pretrain.objectives.causal_lm import CausalLMConfig


def test_the_targets_are_the_following_tokens():
    slots = Slots(
        tokens=np.array([5, 6, 7, 8]),
        following=np.array([6, IGNORED, 8, 9]),
        offsets=np.array([0, 2, 4], dtype=np.int32),
        slots=np.array([0, 4]),
        keys=np.array([[0, 0, 0]]),
    )
    made = CausalLMConfig().examples(no_vocabulary, seed=1, seq_len=64)(slots)
    assert made.tokens.tolist() == [5, 6, 7, 8]
    assert made.targets.tolist() == [6, IGNORED, 8, 9]
    assert made.offsets.tolist() == [0, 2, 4]
    assert made.segments is None and made.labels is None


def no_vocabulary():
    raise AssertionError("the causal objective has no use for it")


@pytest.mark.parametrize("fields", [{}, {"tie_embeddings": False, **LLAMA}])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_the_loss_is_the_sum_over_targets(fields, z_loss):
    model, batch = small_decoder(**fields), ragged_batch([7, 1, 12])
    loss = CausalLMConfig(z_loss=z_loss, chunk_tokens=5).build(model)(batch)
    hidden = model(batch.tokens, batch.positions, Layout.of(batch.offsets, batch.max_len))
    logits = hidden @ model.head_weight().T
    nll = torch.nn.functional.cross_entropy(logits, batch.targets, ignore_index=IGNORED, reduction="sum")
    penalty = logits.logsumexp(dim=1)[batch.targets != IGNORED].square().sum()
    torch.testing.assert_close(loss.nll, nll)
    torch.testing.assert_close(loss.total, nll + z_loss * penalty)
    assert loss.correct == (logits.argmax(dim=1) == batch.targets).sum()


def test_a_batch_in_two_halves_sums_to_the_whole():
    """Sums, not means: whatever the micro-batches, their gradients add up to those of the global batch."""
    model = small_decoder()
    objective = CausalLMConfig().build(model)
    whole = ragged_batch([7, 12])
    objective(whole).total.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for part, (start, end) in enumerate([(0, 7), (7, 19)]):
        half = ragged_batch([end - start])
        half.tokens, half.targets = whole.tokens[start:end], whole.targets[start:end]
        assert half.num_targets == [6, 11][part]
        objective(half).total.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fields", [{"z_loss": -1.0}, {"chunk_tokens": 0}])
def test_refuses_by_name(fields):
    with pytest.raises(ValueError, match=rf"objective\.{next(iter(fields))}="):
        CausalLMConfig(**fields)
