"""The encoder-decoder alone: checks, initial weights, operations, isolation of pairs, decoding with caches, dropout."""

import pytest
import small_models
import torch
import torch.nn.functional as F
from attention_laws import layout
from small_models import VOCAB_SIZE, ragged_pairs, small_encoder_decoder
from torch.utils.flop_counter import FlopCounterMode
from transformers import T5Config, T5ForConditionalGeneration

from pretrain.data.lengths import Share
from pretrain.models.attention.eager import eager
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.base import Layout, Stream
from pretrain.models.encoder_decoder import EncoderDecoderConfig
from pretrain.models.generation.steps import steps_of
from pretrain.models.init import Init
from pretrain.models.layers import Order, Positions
from pretrain.objectives.sequence_to_sequence import SequenceToSequenceConfig
from pretrain.optim.adamw import AdamWConfig
from pretrain.optim.base import partition
from pretrain.strategy.ddp import DDPConfig
from pretrain.strategy.precision import BF16, FP32
from pretrain.train.summary import ModelSize

BART = small_models.BART | {"head_bias": True}
T5 = small_models.T5_TIED | {"init": Init.t5}
T5_GATED = small_models.T5_GATED | {"init": Init.t5, "attention_width": 32, "decoder_layers": 3}
SOURCES, TARGETS = [9, 1, 30, 7], [4, 12, 1, 12]  # tokens of four pairs
SECOND_SOURCE, SECOND_TARGET = slice(9, 10), slice(4, 16)
THIRD_SOURCE, THIRD_TARGET = slice(10, 40), slice(16, 17)

OF_THE_HEAD = ("head.weight", "logit_bias")

every_kind = pytest.mark.parametrize(
    "fields", [{}, BART, T5, T5_GATED, {"order": Order.pre}], ids=["transformer", "bart", "t5", "gated", "pre"]
)


def hidden(model, batch):
    return model(batch.tokens, batch.positions, Layout.of(batch.offsets, batch.max_len, batch.lengths), batch.source)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"positions": Positions.rotary}, "model.positions=rotary: is not for encoder-decoders; choose sinusoidal"),
        ({"window": 4}, "model.window=4: encoder-decoders see whole texts; set null"),
        ({"decoder_layers": 0}, "model.decoder_layers=0: must be at least 1"),
        ({"width": 12, "heads": 8}, "model.heads=8: must divide model.width=12"),
        ({"attention_width": 12}, "model.heads=8: must divide model.attention_width=12"),
        ({"attention_width": 0}, "model.attention_width=0: must be at least 1"),
        ({"position_offset": 2}, "model.position_offset=2: belongs to learned positions; set 0"),
        ({"position_offset": -1, "positions": Positions.learned}, "model.position_offset=-1: must not be negative"),
        ({"buckets": 6}, "model.buckets=6: must be a multiple of 4"),
        ({"max_distance": 16}, "model.max_distance=16: must be above half of model.buckets=32"),
        ({"mlp_dropout": 1.0}, r"model.mlp_dropout=1.0: must lie in \[0, 1\)"),
    ],
)
def test_refuses_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        EncoderDecoderConfig(max_seq_len=32, **fields)


@every_kind
@pytest.mark.parametrize("attend", [eager, sdpa])
def test_pairs_of_a_batch_are_strangers(fields, attend):
    """The law of isolation: a pair is as alone, and its loss has exactly no gradient into another pair's tokens."""
    model, batch = small_encoder_decoder(attend=attend, **fields), ragged_pairs(SOURCES, TARGETS)
    embedded = []
    model.embedding.register_forward_hook(lambda *call: embedded.append(call[-1].detach().requires_grad_()))
    model.embedding.register_forward_hook(lambda *_: embedded[-1])
    out = hidden(model, batch)
    source, target = embedded
    of_source, of_target = torch.autograd.grad(out[SECOND_TARGET].square().sum(), embedded)
    for gradient, own in ((of_source, SECOND_SOURCE), (of_target, SECOND_TARGET)):
        assert gradient[own].any(dim=1).all()
        assert not gradient[: own.start].any() and not gradient[own.stop :].any()
    assert len(source) == 47 and len(target) == 29

    stream = Stream(batch.source.tokens[THIRD_SOURCE], torch.arange(30), torch.tensor([0, 30], dtype=torch.int32), 30)
    alone = small_encoder_decoder(attend=attend, **fields)(
        batch.tokens[THIRD_TARGET], torch.arange(1), layout([1]), stream
    )
    torch.testing.assert_close(out[THIRD_TARGET], alone, atol=1e-5, rtol=1e-5)


@every_kind
def test_a_target_sees_its_whole_source_and_its_own_past(fields):
    model, batch = small_encoder_decoder(**fields), ragged_pairs([5], [4])
    embedded = []
    model.embedding.register_forward_hook(lambda *call: embedded.append(call[-1].detach().requires_grad_()))
    model.embedding.register_forward_hook(lambda *_: embedded[-1])
    out = hidden(model, batch)
    of_source, of_target = torch.autograd.grad(out[1].square().sum(), embedded)
    assert of_source.any(dim=1).all()
    assert of_target.any(dim=1).tolist() == [True, True, False, False]


@every_kind
def test_the_loss_of_a_batch_is_the_sum_of_its_pairs(fields):
    objective = SequenceToSequenceConfig(label_smoothing=0.1).build(small_encoder_decoder(**fields))
    whole = objective(ragged_pairs(SOURCES, TARGETS))
    batch, parts = ragged_pairs(SOURCES, TARGETS), []
    sources, targets, answers = (
        tokens.split(lengths)
        for tokens, lengths in ((batch.source.tokens, SOURCES), (batch.tokens, TARGETS), (batch.targets, TARGETS))
    )
    for source, target, answer in zip(sources, targets, answers, strict=True):
        pair = ragged_pairs([len(source)], [len(target)])
        pair.source.tokens, pair.tokens, pair.targets = source, target, answer
        parts.append(objective(pair).total)
    torch.testing.assert_close(whole.total, torch.stack(parts).sum(), rtol=1e-6, atol=0)


@every_kind
def test_backends_agree_and_every_parameter_takes_part(fields):
    batch, upstream = ragged_pairs(SOURCES, TARGETS), torch.randn(29, 24, generator=torch.Generator().manual_seed(1))
    found = []
    for attend in (eager, sdpa):
        model = small_encoder_decoder(attend=attend, **fields)
        out = hidden(model, batch)
        (out * upstream).sum().backward()
        gradients = [value.grad for name, value in model.named_parameters() if name not in OF_THE_HEAD]
        assert not any(gradient is None for gradient in gradients)
        found.append([out, *gradients])
    torch.testing.assert_close(*found, atol=2e-4, rtol=1e-4)


@every_kind
@torch.no_grad()
def test_decoding_token_by_token_equals_the_full_pass(fields):
    model, batch = small_encoder_decoder(**fields), ragged_pairs([9, 1, 5], [6, 6, 6])
    full = hidden(model, batch).view(3, 6, -1)
    tokens = batch.tokens.view(3, 6)
    steps = steps_of(model.eval(), list(tokens[:, :2]), batch.source.tokens.split([9, 1, 5]))
    found = [steps.begin(), *(steps.step(tokens[:, at]) for at in range(2, 6))]
    expected = F.linear(full, model.head_weight(), model.head_bias())
    torch.testing.assert_close(torch.stack(found, dim=1), expected[:, 1:], atol=1e-5, rtol=1e-5)


@every_kind
def test_matrix_products_in_bf16_come_close(fields):
    """Losses, gradients in fp32, and logits; those that caches give are those of the full pass."""
    losses, gradients, logits = [], [], []
    batch = ragged_pairs([9, 1, 5], [6, 6, 6])
    for precision in (FP32(), BF16()):
        objective = SequenceToSequenceConfig(label_smoothing=0.1).build(small_encoder_decoder(**fields))
        model, tokens = objective.model, batch.tokens.view(3, 6)
        with precision.autocast(torch.device("cpu")):
            loss = objective(batch).total
            with torch.no_grad():
                full = F.linear(hidden(model, batch), model.head_weight(), model.head_bias()).view(3, 6, -1)
                steps = steps_of(model.eval(), list(tokens[:, :5]), batch.source.tokens.split([9, 1, 5]))
                cached = [steps.begin(), steps.step(tokens[:, 5])]
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([value.grad.flatten() for value in model.parameters()]))
        logits += [full[:, 4:].float(), torch.stack(cached, dim=1)]
    torch.testing.assert_close(losses[1], losses[0], rtol=2e-3, atol=0)
    assert gradients[1].dtype == torch.float32
    torch.testing.assert_close(gradients[1].norm(), gradients[0].norm(), rtol=0.02, atol=0)
    assert F.cosine_similarity(*gradients, dim=0) > 0.99
    close = 0.1 * logits[0].std().item()
    torch.testing.assert_close(logits[3], logits[2], rtol=0, atol=close)
    torch.testing.assert_close(logits[3], logits[0], rtol=0, atol=close)


@pytest.mark.slow
def test_compiles_without_a_break_on_sequences_of_one_length():
    model, batch = small_encoder_decoder(**T5, layers=1), ragged_pairs([7, 7], [5, 5])
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(hidden(compiled, batch), hidden(model, batch), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", [Positions.learned, Positions.sinusoidal, Positions.relative])
def test_positions_matter_on_either_side(positions):
    kind = T5 if positions is Positions.relative else {"positions": positions}
    model, batch = small_encoder_decoder(**kind), ragged_pairs([6], [6])
    out = hidden(model, batch)
    swapped = ragged_pairs([6], [6])
    swapped.source.tokens = batch.source.tokens[[1, 0, 2, 3, 4, 5]]
    assert not torch.allclose(hidden(model, swapped), out, atol=1e-4)
    swapped = ragged_pairs([6], [6])
    swapped.tokens = batch.tokens[[1, 0, 2, 3, 4, 5]]
    assert not torch.allclose(hidden(model, swapped)[-1], out[-1], atol=1e-4)


def deviations(model):
    return {name: parameter.std().item() for name, parameter in model.named_parameters() if parameter.ndim == 2}


def test_initial_weights_are_those_of_t5():
    """Against what transformers draws; but the untied head is drawn for logits of deviation one."""
    shape = {"width": 96, "heads": 8, "mlp_width": 400, "layers": 1, "attention_width": 512, "decoder_layers": 1}
    ours = deviations(small_encoder_decoder(**{**T5_GATED, **shape}))
    config = T5Config(
        vocab_size=VOCAB_SIZE,
        d_model=96,
        num_heads=8,
        d_kv=64,
        d_ff=400,
        num_layers=1,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    torch.manual_seed(1)
    theirs = deviations(T5ForConditionalGeneration(config))
    block = "{}.block.0.layer.{}.{}.weight"
    pairs = {
        "embedding": "shared.weight",
        "encoder_distance_embedding": block.format("encoder", 0, "SelfAttention.relative_attention_bias"),
        "decoder_distance_embedding": block.format("decoder", 0, "SelfAttention.relative_attention_bias"),
        "blocks.0.attention.out": block.format("encoder", 0, "SelfAttention.o"),
        "blocks.0.mlp.up": block.format("encoder", 1, "DenseReluDense.wi_0"),
        "blocks.0.mlp.down": block.format("encoder", 1, "DenseReluDense.wo"),
        "blocks.1.cross.q": block.format("decoder", 1, "EncDecAttention.q"),
        "blocks.1.cross.kv": block.format("decoder", 1, "EncDecAttention.k"),
        "blocks.1.cross.out": block.format("decoder", 1, "EncDecAttention.o"),
        "blocks.1.mlp.up": block.format("decoder", 2, "DenseReluDense.wi_1"),
    }
    for mine, other in pairs.items():
        few = "distance" in mine
        assert ours[f"{mine}.weight"] == pytest.approx(theirs[other], rel=0.25 if few else 0.03), mine
    assert ours["head.weight"] == pytest.approx(96**-0.5, rel=0.03)


@pytest.mark.parametrize("side", [0, 1])
def test_queries_keys_and_values_of_a_fused_matrix_begin_as_t5s_do(side):
    shape = {"width": 96, "heads": 8, "attention_width": 512, "decoder_layers": 1, "layers": 1}
    model = small_encoder_decoder(**{**T5_GATED, **shape})
    q, k, v = model.blocks[side].attention.qkv.weight.split(512)
    assert q.std().item() == pytest.approx((96 * 64) ** -0.5, rel=0.03)
    assert [part.std().item() for part in (k, v)] == pytest.approx([96**-0.5] * 2, rel=0.03)


def test_initial_weights_are_those_of_glorot():
    """Each matrix of a fused one by its own two widths; vectors of tokens of length one."""
    found = deviations(small_encoder_decoder(width=96, mlp_width=400, layers=1))
    assert found["embedding.weight"] == pytest.approx(96**-0.5, rel=0.03)
    for name, out in (("attention.qkv", 96), ("cross.q", 96), ("cross.kv", 96), ("mlp.up", 400), ("mlp.down", 400)):
        assert found[f"blocks.1.{name}.weight"] == pytest.approx((2 / (96 + out)) ** 0.5, rel=0.03), name


@pytest.mark.parametrize("fields", [{}, {**BART, "mlp_width": 40}, T5_GATED])
def test_flops_of_two_streams_are_those_that_torch_counts(fields):
    """Eager attention is plain matrix products; the lookup of distances is none."""
    model, source, target = small_encoder_decoder(attend=eager, **fields), 32, 11
    with FlopCounterMode(display=False) as counter:
        (hidden(model, ragged_pairs([source], [target])) @ model.head_weight().T).sum().backward()
    both = source + target
    assert model.flops_per_token(both, target_share=target / both) * both == pytest.approx(counter.get_total_flops())
    without = model.flops_per_token(both, 0.0, target / both)
    head = model.flops_per_token(both, target_share=target / both) - without
    assert head * both == pytest.approx(6 * target * VOCAB_SIZE * 24)


def test_a_plan_counts_shared_parameters_once_and_the_operations_of_both_sides():
    objective = SequenceToSequenceConfig().build(small_encoder_decoder(**BART))
    size = ModelSize.of(objective, [Share(40.0, 1.0)])
    assert size.parameters == size.trainable == sum(value.numel() for value in objective.state_dict().values())
    assert size.flops_per_token == objective.model.flops_per_token(40.0, target_share=0.5)
    memory = size.memory(DDPConfig(), ranks=1, precision=FP32())
    assert (memory.weights, memory.gradients, memory.optimizer) == tuple(size.parameters * n for n in (4, 4, 8))


@pytest.mark.parametrize("field", ["dropout", "attention_dropout", "mlp_dropout"])
@pytest.mark.parametrize("kind", [{}, T5])
def test_dropout_acts_in_training_only(field, kind):
    model, batch = small_encoder_decoder(**kind, **{field: 0.5}), ragged_pairs([9, 4], [3, 6])
    exact = hidden(small_encoder_decoder(**kind), batch)
    torch.testing.assert_close(hidden(model.eval(), batch), exact)
    assert not torch.allclose(hidden(model.train(), batch), exact)


@pytest.mark.parametrize(("fields", "drops"), [(T5, True), ({"order": Order.pre}, False)])
def test_final_states_are_dropped_where_positions_are_relative(fields, drops):
    model, batch = small_encoder_decoder(**fields, dropout=0.5), ragged_pairs([9], [6])
    zeros = [(hidden(model, batch) == 0).float().mean().item(), (model.encode(batch.source) == 0).float().mean().item()]
    assert zeros == pytest.approx([0.5 if drops else 0.0] * 2, abs=0.2)


def test_what_a_tied_head_reads_is_divided_by_the_root_of_the_width():
    batch = ragged_pairs([9, 4], [3, 6])
    plain, scaled = (hidden(small_encoder_decoder(**T5 | {"head_scale": scale}), batch) for scale in (False, True))
    torch.testing.assert_close(scaled, plain / 24**0.5)


def test_one_table_of_tokens_serves_both_sides_and_the_head():
    tied, untied = small_encoder_decoder(), small_encoder_decoder(tie_embeddings=False)
    assert tied.head_weight() is tied.embedding.weight
    assert untied.head_weight() is untied.head.weight and untied.head.weight.shape == (VOCAB_SIZE, 24)
    assert sum(VOCAB_SIZE in parameter.shape for parameter in tied.parameters()) == 1
    assert tied.head_bias() is None
    assert small_encoder_decoder(**BART).head_bias().shape == (VOCAB_SIZE,)


def test_parameters_lie_as_deep_as_their_block_on_its_own_side():
    """Of three and two blocks the last ones are equally deep, and learn alike under a layer decay."""
    model = small_encoder_decoder(**{**T5, "layers": 3, "decoder_layers": 2})
    depths = [model.depth(f"blocks.{block}.mlp.up.weight") for block in range(5)]
    assert depths == [1, 2, 3, 2, 3] and model.top == 4
    other = small_encoder_decoder(**{**BART, "layers": 2, "decoder_layers": 3, "order": Order.pre})
    assert [other.depth(f"blocks.{block}.cross_norm.weight") for block in range(5)] == [2, 3, 1, 2, 3]
    named = {name: other.depth(name) for name, _ in other.named_parameters() if not name.startswith("blocks")}
    assert {depth for name, depth in named.items() if "embedding" in name} == {0}
    assert named["encoder_final_norm.weight"] == named["decoder_final_norm.bias"] == named["logit_bias"] == 4
    groups = AdamWConfig(lr=1.0, layer_decay=0.5).build(SequenceToSequenceConfig().build(other)).param_groups
    assert {group["base_lr"] for group in groups} == {1.0, 0.5, 0.25, 0.125, 0.0625}


def test_tables_of_distances_are_no_matrices_of_blocks():
    """Muon must not orthogonalise them; they decay as embeddings of tokens do."""
    model = small_encoder_decoder(**T5)
    outer = {id(parameter) for parameter in partition(model).outer}
    tables = [model.embedding, model.encoder_distance_embedding, model.decoder_distance_embedding]
    assert outer == {id(table.weight) for table in tables}
    assert all(parameter.ndim == 2 for parameter in partition(model).hidden)


@pytest.mark.parametrize("fields", [{"init": Init.gpt2}])
def test_projections_into_the_residual_stream_shrink_cross_attentions_too(fields):
    found = deviations(small_encoder_decoder(width=96, layers=2, **fields))
    for name in ("blocks.3.cross.out", "blocks.3.attention.out", "blocks.0.mlp.down"):
        assert found[f"{name}.weight"] == pytest.approx(0.02 / 2, rel=0.05)
    assert found["blocks.3.cross.q.weight"] == pytest.approx(0.02, rel=0.05)
