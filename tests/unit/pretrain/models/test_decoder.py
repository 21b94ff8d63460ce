"""The decoder alone: its checks, initial weights, operation count, positions, windows, dropout and compilation."""

import math

import pytest
import torch
from attention_laws import layout
from small_models import GEMMA3, LLAMA, OLMO2, VOCAB_SIZE, ragged_batch, small_decoder
from torch.utils.flop_counter import FlopCounterMode

from pretrain.models.attention.eager import eager
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.base import Layout
from pretrain.models.decoder import DecoderConfig
from pretrain.models.init import CHUNK, Init, Initial, draw
from pretrain.models.layers import Norm, Positions, sinusoids
from pretrain.models.rotary import rotary, rotate
from pretrain.objectives.causal_lm import CausalLMConfig


def hidden(model, batch):
    return model(batch.tokens, batch.positions, Layout.of(batch.offsets, batch.max_len))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": 0}, "model.layers=0: must be at least 1"),
        ({"width": 64, "heads": 7}, "model.heads=7: must divide model.width=64"),
        ({"width": 64, "heads": 8, "kv_heads": 3}, "model.kv_heads=3: must divide 8 heads"),
        (
            {"width": 12, "heads": 4, "positions": Positions.rotary},
            "model.positions=rotary: needs pairs of coordinates",
        ),
        (
            {"width": 5, "heads": 1, "positions": Positions.sinusoidal},
            "model.positions=sinusoidal: needs pairs of coordinates",
        ),
        ({"positions": Positions.relative}, "model.positions=relative: is not for decoders"),
        ({"dropout": 1.0}, r"model.dropout=1.0: must lie in \[0, 1\)"),
        ({"attention_dropout": -0.1}, "model.attention_dropout=-0.1"),
        ({"window": 0}, "model.window=0"),
        ({"global_every": 2}, "model.global_every=2: means something only beside model.window"),
        ({"norm_eps": 0.0}, "model.norm_eps=0.0: must be positive"),
    ],
)
def test_refuses_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(max_seq_len=32, **fields)


@pytest.mark.parametrize(("scheme", "shrink"), [(Init.gpt2, 1 / math.sqrt(2 * 3)), (Init.olmo2, 1.0)])
def test_initial_weights_follow_the_scheme(scheme, shrink):
    model = small_decoder(width=128, layers=3, init=scheme, tie_embeddings=False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif parameter.ndim == 1:
            assert (parameter == 1).all()
        else:
            residual = name.endswith(("attention.out.weight", "mlp.down.weight"))
            assert parameter.std().item() == pytest.approx(0.02 * (shrink if residual else 1), rel=0.05)
            assert abs(parameter.mean().item()) < 0.002


@pytest.mark.parametrize("norm", Norm)
def test_norms_multiply_by_one_at_first(norm):
    model = small_decoder(**{**GEMMA3, "norm": norm, "layers": 1})
    norms = [module for name, module in model.named_modules() if name.endswith("norm")]
    assert len(norms) == 7
    for module in norms:
        x = torch.randn(5, module.normalized_shape[0])
        x = x - x.mean(1, keepdim=True)
        torch.testing.assert_close(module(x), x / (x.square().mean(1, keepdim=True) + 1e-5).sqrt())


def test_initial_weights_depend_on_seed_and_name_alone():
    """A third block changes nothing in the first two, drawing another generator neither, and no two tensors agree."""
    first = dict(small_decoder(init=Init.olmo2).named_parameters())
    torch.manual_seed(99)
    deeper = dict(small_decoder(init=Init.olmo2, layers=3).named_parameters())
    assert all(torch.equal(parameter, deeper[name]) for name, parameter in first.items())
    other = dict(small_decoder(init=Init.olmo2, seed=2).named_parameters())
    matrices = [name for name, parameter in first.items() if parameter.ndim == 2]
    assert not any(torch.equal(first[name], other[name]) for name in matrices)
    name = "blocks.{}.attention.qkv.weight"
    assert not torch.equal(first[name.format(0)], first[name.format(1)])


def test_a_part_of_a_tensor_has_the_values_of_the_whole():
    total = 2 * CHUNK + 4711  # the last chunk is a short one
    whole = draw(Initial(mean=1.0, std=2.0), seed=3, name="w", start=0, numel=total, total=total)
    assert whole.mean().item() == pytest.approx(1.0, abs=0.01) and whole.std().item() == pytest.approx(2.0, rel=0.01)
    assert (whole[:5000] == whole[CHUNK : CHUNK + 5000]).float().mean() < 0.01, "each chunk has values of its own"
    for start, numel in [(0, 7), (CHUNK - 3, 6), (5, 2 * CHUNK), (total - 9, 9), (CHUNK, 0)]:
        part = draw(Initial(mean=1.0, std=2.0), seed=3, name="w", start=start, numel=numel, total=total)
        assert torch.equal(part, whole[start : start + numel])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tie_embeddings": False},
        {**LLAMA, "kv_heads": 2, "mlp_width": 40},
        {**OLMO2, "kv_heads": 2, "attention_width": 40},
        {**GEMMA3, "attention_width": 16, "score_width": 9},
    ],
)
def test_flops_are_those_that_torch_counts(fields):
    """Eager attention is plain matrix products, so that torch counts every one, masked or not, as PaLM does."""
    model, length = small_decoder(attend=eager, **fields), 32
    batch = ragged_batch([length])
    with FlopCounterMode(display=False) as counter:
        (hidden(model, batch) @ model.head_weight().T).sum().backward()
    assert model.flops_per_token(length) * length == counter.get_total_flops()


def test_flops_of_a_window_count_its_keys():
    full, local = small_decoder(layers=4), small_decoder(layers=4, window=8, global_every=2)
    assert full.flops_per_token(32) - local.flops_per_token(32) == 12 * 24 * 2 * (32 - 8)
    assert full.flops_per_token(4) == local.flops_per_token(4)


def test_rotary_attention_depends_on_distance_alone():
    q, k = torch.randn(1, 2, 8, dtype=torch.float64), torch.randn(1, 2, 8, dtype=torch.float64)

    def dot(q_position, k_position):
        at = [rotary(torch.tensor([position]), 8, 10_000.0) for position in (q_position, k_position)]
        return (rotate(q, at[0]) * rotate(k, at[1])).sum(-1)

    torch.testing.assert_close(dot(3, 1), dot(103, 101), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(dot(3, 1), dot(4, 1))


@pytest.mark.parametrize("cast", [True, False])
def test_rotations_are_computed_in_fp32_whatever_the_model_computes_in(cast):
    """At position 4,000 bf16 would be off by whole turns; queries are rounded once, after the rotation."""
    model, tables = small_decoder(**LLAMA), []
    model.blocks[0].register_forward_pre_hook(lambda block, inputs: tables.extend(inputs[2]))
    batch = ragged_batch([16])
    batch.positions = 250 * torch.arange(16) + 7
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not cast):
        hidden(model.to(torch.bfloat16) if cast else model, batch)
    angles = batch.positions.double()[:, None] * 10_000.0 ** -(torch.arange(0, 6, 2).double() / 6)
    for table, expected in zip(tables, (angles.cos(), angles.sin()), strict=True):
        assert table.dtype == torch.float32
        torch.testing.assert_close(table[:, 0].double(), expected, atol=1e-3, rtol=0)
    x = torch.randn(16, 4, 6, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = rotate(x.double(), (tables[0].double(), tables[1].double()))
    assert torch.equal(rotate(x, (tables[0], tables[1])), exact.bfloat16())


def test_sinusoids_are_those_of_the_paper():
    """PE(pos, 2i) = sin(pos / 10000^(2i / D)), its cosine in the second half."""
    table = sinusoids(torch.arange(50), 16)
    for position in (0, 1, 49):
        for i in range(8):
            angle = position / 10_000 ** (2 * i / 16)
            assert table[position, i].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[position, 8 + i].item() == pytest.approx(math.cos(angle), abs=1e-5)


@pytest.mark.parametrize("positions", [Positions.learned, Positions.sinusoidal, Positions.rotary])
def test_positions_matter_and_begin_anew_in_every_document(positions):
    model = small_decoder(positions=positions)
    batch = ragged_batch([6, 6])
    batch.tokens = batch.tokens[:6].repeat(2)
    out = hidden(model, batch)
    torch.testing.assert_close(out[:6], out[6:], atol=1e-6, rtol=1e-5)
    batch.positions = torch.cat([batch.positions[:6], batch.positions[6:] * 2])
    assert not torch.allclose(hidden(model, batch)[11], out[11], atol=1e-4)


@pytest.mark.parametrize(("global_every", "reaches"), [(None, False), (2, True)])
def test_a_window_hides_what_lies_before_it(global_every, reaches):
    """Two layers of window 3 reach 4 tokens back; layer 0 reaches everything where it is global."""
    model = small_decoder(window=3, global_every=global_every)
    inputs = torch.randn(10, 24)
    with torch.no_grad():
        model.embedding.weight[:10] = inputs
    batch = ragged_batch([10])
    batch.tokens = torch.arange(10)
    gradient = torch.autograd.grad(hidden(model, batch)[9].square().sum(), model.embedding.weight)[0]
    assert gradient[5:10].any(dim=1).all()
    assert bool(gradient[:5].any()) == reaches


def test_every_nth_layer_is_global_from_the_first_on():
    config = DecoderConfig(max_seq_len=32, layers=5, window=3, global_every=2)
    assert [config.layer_window(layer) for layer in range(5)] == [None, 3, None, 3, None]


def test_dropout_reaches_both_branches_of_a_block():
    block, inputs = small_decoder(dropout=0.999).blocks[0], torch.randn(50, 24)
    kept = torch.isclose(block.train()(inputs, layout([50])), inputs)
    assert kept.float().mean() > 0.99


@pytest.mark.parametrize("field", ["dropout", "attention_dropout"])
def test_dropout_acts_in_training_only(field):
    model, batch = small_decoder(**{field: 0.5}), ragged_batch([9, 4])
    exact = hidden(small_decoder(), batch)
    torch.testing.assert_close(hidden(model.eval(), batch), exact)
    assert not torch.allclose(hidden(model.train(), batch), exact)


@pytest.mark.parametrize("fields", [{}, {**LLAMA, "kv_heads": 2}])
def test_documents_of_a_pack_are_strangers(fields):
    """The law of isolation, end to end: logits as alone, and exactly no gradient into a neighbour's embeddings."""
    model, lengths = small_decoder(**fields), [9, 1, 32, 7]
    batch = ragged_batch(lengths)
    inputs = model.embedding(batch.tokens).detach().requires_grad_()
    model.embedding.register_forward_hook(lambda *_: inputs)
    out = hidden(model, batch)
    gradient = torch.autograd.grad(out[10:42].square().sum(), inputs)[0]
    assert gradient[10:42].any(dim=1).all()
    assert not gradient[:10].any()
    assert not gradient[42:].any()
    alone = small_decoder(**fields)(batch.tokens[10:42], batch.positions[10:42], layout([32]))
    torch.testing.assert_close(out[10:42], alone, atol=1e-5, rtol=1e-5)


def test_queries_keys_and_values_meet_in_one_dtype():
    """Also where norms return fp32 whatever they read, as torch's RMSNorm does under autocast on a GPU."""
    dtypes = set()

    def attend(q, k, v, *args, **settings):
        dtypes.update(x.dtype for x in (q, k, v))
        return sdpa(q, k, v, *args, **settings)

    model = small_decoder(attend=attend, layers=1, **OLMO2)
    for norm in (model.blocks[0].attention.q_norm, model.blocks[0].attention.k_norm):
        norm.register_forward_hook(lambda module, inputs, out: out.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden(model, ragged_batch([5, 3]))
    assert dtypes == {torch.bfloat16}


@pytest.mark.parametrize("fields", [{}, {**GEMMA3, "kv_heads": 2, "window": 5, "global_every": 2}])
def test_compiles_without_a_break_on_sequences_of_one_length(fields):
    model, batch = small_decoder(**fields), ragged_batch([16, 16, 16])
    plain = CausalLMConfig().build(model)
    loss = plain(batch).total
    loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    out = compiled(batch.tokens, batch.positions, Layout.of(batch.offsets, batch.max_len))
    torch.testing.assert_close(out, hidden(model, batch), atol=1e-5, rtol=1e-5)
    torch.compile(plain, backend="aot_eager")(batch).total.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-4)
    assert model.head_weight().shape == (VOCAB_SIZE, 24)
