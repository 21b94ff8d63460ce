"""The encoder alone: its checks, initial weights, operation count, positions, windows, segments and head."""

import math

import pytest
import torch
from attention_laws import layout
from small_models import DEBERTA, MODERNBERT, ROBERTA, VOCAB_SIZE, ragged_batch, small_encoder
from torch.utils.flop_counter import FlopCounterMode

from pretrain.models.attention.eager import eager
from pretrain.models.base import Layout
from pretrain.models.encoder import EncoderConfig, Order
from pretrain.models.init import Init
from pretrain.models.layers import Positions

NARROW = {"embedding_width": 10}
KINDS = [{}, ROBERTA, NARROW, DEBERTA, MODERNBERT, {**MODERNBERT, "window": 4, "global_every": 2}]


def hidden(model, batch, segments=None):
    return model(batch.tokens, batch.positions, Layout.of(batch.offsets, batch.max_len), segments)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": 0}, "model.layers=0: must be at least 1"),
        ({"width": 64, "heads": 7}, "model.heads=7: must divide model.width=64"),
        (
            {"width": 12, "heads": 4, "positions": Positions.rotary},
            "model.positions=rotary: needs pairs of coordinates",
        ),
        ({"positions": Positions.sinusoidal}, "model.positions=sinusoidal: is not for encoders"),
        (
            {"positions": Positions.rotary, "position_offset": 2},
            "model.position_offset=2: belongs to learned positions",
        ),
        ({"position_offset": -1}, "model.position_offset=-1: must not be negative"),
        ({"token_types": -1}, "model.token_types=-1: must not be negative"),
        ({"dropout": 1.0}, r"model.dropout=1.0: must lie in \[0, 1\)"),
        ({"global_every": 2}, "model.global_every=2: means something only beside model.window"),
        ({"norm_eps": 0.0}, "model.norm_eps=0.0: must be positive"),
        ({"embedding_width": 0}, "model.embedding_width=0: at least 1 and other than model.width=768"),
        ({"embedding_width": 768}, "model.embedding_width=768: at least 1 and other than model.width=768; null is"),
        ({"embedding_width": 10, "order": Order.pre}, "model.embedding_width=10: .* needs model.order=post"),
    ],
)
def test_refuses_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        EncoderConfig(max_seq_len=32, **fields)


@pytest.mark.parametrize(("scheme", "shrink"), [(Init.bert, 1.0), (Init.modernbert, 1 / math.sqrt(2 * 3))])
def test_initial_weights_follow_the_scheme(scheme, shrink):
    """A normal distribution cut at two deviations has 0.8796 of its deviation, and nothing beyond."""
    model = small_encoder(width=128, layers=3, init=scheme)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif parameter.ndim == 1:
            assert (parameter == 1).all()
        else:
            residual = name.endswith(("attention.out.weight", "mlp.down.weight", "transform.dense.weight"))
            std = 0.02 * (shrink if residual else 1)
            assert parameter.abs().max() <= 2 * std
            if parameter.numel() > 1000:
                assert parameter.std().item() == pytest.approx(0.8796 * std, rel=0.05)


@pytest.mark.parametrize("fields", [{}, {"tie_embeddings": False, "token_types": 0}, NARROW, MODERNBERT])
def test_flops_are_those_that_torch_counts(fields):
    model, length = small_encoder(attend=eager, **fields), 32
    batch = ragged_batch([length])
    for share in (1.0, 0.25):
        with FlopCounterMode(display=False) as counter:
            chosen = hidden(model, batch)[: int(length * share)]
            (model.head_input(chosen) @ model.head_weight().T).sum().backward()
        assert model.flops_per_token(length, share) * length == counter.get_total_flops()


def test_flops_of_a_window_count_its_keys():
    full, local = small_encoder(layers=4), small_encoder(layers=4, window=4, global_every=2)
    assert full.flops_per_token(32) - local.flops_per_token(32) == 12 * 24 * 2 * (32 - 7)


@pytest.mark.parametrize("fields", KINDS)
def test_tokens_see_both_sides_of_their_own_document_alone(fields):
    """The law of isolation, end to end: states as alone, and exactly no gradient into a neighbour's embeddings."""
    model, lengths = small_encoder(**fields), [9, 1, 32, 7]
    batch = ragged_batch(lengths)
    inputs = model.embedding(batch.tokens).detach().requires_grad_()
    model.embedding.register_forward_hook(lambda *_: inputs)
    out = hidden(model, batch)
    gradient = torch.autograd.grad(out[10:42].square().sum(), inputs)[0]
    assert gradient[10:42].any(dim=1).all()
    assert not gradient[:10].any() and not gradient[42:].any()
    from_the_first = torch.autograd.grad(hidden(model, batch)[10].square().sum(), inputs)[0]
    assert from_the_first[11:14].any(dim=1).all(), "the first token of a document sees those after it"
    alone = small_encoder(**fields)(batch.tokens[10:42], batch.positions[10:42], layout([32]))
    torch.testing.assert_close(out[10:42], alone, atol=1e-5, rtol=1e-5)


def test_a_window_reaches_as_far_to_the_right_as_to_the_left():
    model = small_encoder(**MODERNBERT, layers=1, window=3)
    inputs = torch.randn(10, 24)
    with torch.no_grad():
        model.embedding.weight[:10] = inputs
    batch = ragged_batch([10])
    batch.tokens = torch.arange(10)
    gradient = torch.autograd.grad(hidden(model, batch)[5].square().sum(), model.embedding.weight)[0]
    assert gradient[:10].any(dim=1).tolist() == [3 <= token <= 7 for token in range(10)]


def test_layers_with_a_window_have_a_rotation_of_their_own():
    batch = ragged_batch([12])
    sharp = {**MODERNBERT, "init_std": 0.5}  # weights at which attention is far from even
    same = {**sharp, "window": 1000, "global_every": 2, "local_rope_theta": 160_000.0}
    expected = hidden(small_encoder(**sharp), batch)
    torch.testing.assert_close(hidden(small_encoder(**same), batch), expected)
    other = small_encoder(**{**same, "local_rope_theta": 10.0})
    assert not torch.allclose(hidden(other, batch), expected, atol=1e-2)


def test_the_position_offset_leaves_the_first_rows_alone():
    model, batch = small_encoder(position_offset=2), ragged_batch([32, 3])
    assert model.position_embedding.weight.shape == (34, 24)
    hidden(model, batch).square().sum().backward()
    assert model.position_embedding.weight.grad.any(dim=1).tolist() == [False] * 2 + [True] * 32


def test_segments_default_to_the_first_type():
    model, batch = small_encoder(), ragged_batch([5, 4])
    first = hidden(model, batch)
    assert torch.equal(first, hidden(model, batch, torch.zeros(9, dtype=torch.int64)))
    segments = torch.tensor([0, 0, 1, 1, 1, 0, 0, 0, 0])
    mixed = hidden(model, batch, segments)
    assert not torch.allclose(mixed[:5], first[:5], atol=1e-4)
    torch.testing.assert_close(mixed[5:], first[5:])


@pytest.mark.parametrize("field", ["dropout", "attention_dropout"])
@pytest.mark.parametrize("order", [Order.post, Order.pre])
def test_dropout_acts_in_training_only(field, order):
    model, batch = small_encoder(order=order, **{field: 0.5}), ragged_batch([9, 4])
    exact = hidden(small_encoder(order=order), batch)
    torch.testing.assert_close(hidden(model.eval(), batch), exact)
    assert not torch.allclose(hidden(model.train(), batch), exact)


def test_a_head_of_its_own_where_the_embedding_is_not_tied():
    tied, untied = small_encoder(), small_encoder(tie_embeddings=False)
    assert tied.head_weight() is tied.embedding.weight
    assert untied.head_weight() is untied.head.weight and untied.head.weight.shape == (VOCAB_SIZE, 24)
    assert tied.head_bias().shape == (VOCAB_SIZE,)


def test_narrow_embeddings_are_widened_before_the_blocks_and_narrowed_before_the_logits():
    """Everything but blocks and the projections has the embeddings' width, and lies before or after all blocks."""
    model = small_encoder(width=64, embedding_width=48, init_std=0.02)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters() if "blocks" not in name}
    assert shapes == {
        "embedding.weight": (VOCAB_SIZE, 48),
        "position_embedding.weight": (32, 48),
        "type_embedding.weight": (2, 48),
        "embedding_norm.weight": (48,),
        "embedding_norm.bias": (48,),
        "embedding_projection.weight": (64, 48),
        "embedding_projection.bias": (64,),
        "transform.dense.weight": (48, 64),
        "transform.dense.bias": (48,),
        "transform.norm.weight": (48,),
        "transform.norm.bias": (48,),
        "head.bias": (VOCAB_SIZE,),
    }
    assert {model.depth(name) for name in shapes if "embedding" in name} == {0}
    assert model.embedding_projection.weight.std().item() == pytest.approx(0.8796 * 0.02, rel=0.05)
    assert not model.embedding_projection.bias.any()
    assert hidden(model, ragged_batch([5])).shape == (5, model.width) == (5, 64)
    untied = small_encoder(width=64, embedding_width=48, tie_embeddings=False)
    assert untied.head_weight().shape == (VOCAB_SIZE, 48)
