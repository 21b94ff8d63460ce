"""Activation memory: what fake tensors predict is what autograd saves, and what is counted by hand."""

from dataclasses import replace

import pytest
import torch
from small_models import LLAMA, MODERNBERT, T5, VOCAB_SIZE, ragged_batch, ragged_pairs

from pretrain.models.attention.sdpa import sdpa
from pretrain.models.decoder import DecoderConfig
from pretrain.models.encoder import EncoderConfig
from pretrain.models.encoder_decoder import EncoderDecoderConfig
from pretrain.objectives.causal_lm import CausalLMConfig
from pretrain.objectives.denoising import DenoisingConfig
from pretrain.objectives.masked_lm import MaskedLMConfig
from pretrain.strategy.activation_checkpointing import RecomputationConfig, Recompute
from pretrain.strategy.activations import activations
from pretrain.strategy.precision import BF16, FP32

WIDTH, HEADS, LENGTHS = 24, 4, [70, 33, 48, 40]  # long enough that no attention needs copies, uneven
SHAPES = {
    "gpt2": (CausalLMConfig, DecoderConfig, {"layers": 5}),
    "llama": (CausalLMConfig, DecoderConfig, LLAMA | {"layers": 4, "kv_heads": 2}),
    "bert": (MaskedLMConfig, EncoderConfig, {"layers": 4}),
    "modernbert": (MaskedLMConfig, EncoderConfig, MODERNBERT | {"layers": 7, "window": 9, "global_every": 3}),
    "t5": (DenoisingConfig, EncoderDecoderConfig, T5 | {"layers": 3, "decoder_layers": 4, "dropout": 0.1}),
}


def built(name):
    """Return what builds a small model of a shape on the meta device with a backend of attention."""
    objective, network, fields = SHAPES[name]
    config = network(**{"max_seq_len": 128, "width": WIDTH, "heads": HEADS, **fields})

    def build(attend):
        with torch.device("meta"):
            return objective().build(config.build(vocab_size=VOCAB_SIZE, attend=attend))

    return build


def batch_of(name):
    batch = ragged_pairs(LENGTHS, LENGTHS) if name == "t5" else ragged_batch(LENGTHS)
    return replace(batch, lengths=LENGTHS)  # so that nothing reads them from tensors


def saved_for_backward(module, batch, precision):
    """Return the bytes of the storages that a forward pass on the CPU saves, and of the gradients that the loss has."""
    known = {tensor.untyped_storage().data_ptr() for tensor in module.parameters()}
    streams = [batch] if batch.source is None else [batch, batch.source]
    known |= {each.untyped_storage().data_ptr() for s in streams for each in vars(s).values() if torch.is_tensor(each)}
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
    )
    with hooks, precision.autocast(torch.device("cpu")):
        loss = module(batch)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    saved = sum(size for at, size in storages.items() if at not in known)
    gradients = loss.total.grad_fn.gradients
    return saved + sum(each.nbytes for each in gradients if each is not None)


@pytest.mark.parametrize("precision", [FP32(), BF16()], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_prediction_is_what_autograd_saves_of_the_whole_model(name, precision):
    build, batch = built(name), batch_of(name)
    options = {"precision": precision, "casts_weights": False, "recomputation": RecomputationConfig()}
    predicted = activations(build, batch, attend=sdpa, **options)
    module = build(sdpa).to_empty(device="cpu")
    assert len(predicted.blocks) == len(module.model.blocks)
    saved = saved_for_backward(module, batch, precision)
    # Numbers that the loss returns. Autocast still holds biases that no operator saves, and fake norms of half
    # precision keep means of half precision.
    assert predicted.saved == pytest.approx(saved, abs=100, rel=0 if precision.dtype == torch.float32 else 0.003)


TOKENS, HIDDEN, KEYS = sum(LENGTHS), 4 * WIDTH, WIDTH // 2
OF_PRODUCTS = 2 * (WIDTH + 2 * KEYS) + 2 * 2 * HIDDEN  # bytes a token: queries, keys, values; gate and up
ATTENTION = 2 * WIDTH + 4 * HEADS  # its output, and the normaliser of each head
CHEAP = 2 * (2 * WIDTH + 4) + 2 * (WIDTH + KEYS) + 2 * 2 * HIDDEN  # norms, rotated q and k, activated gate, product
WEIGHTS = WIDTH * (WIDTH + 2 * KEYS) + WIDTH * WIDTH + 3 * WIDTH * HIDDEN


@pytest.mark.parametrize("casts_weights", [False, True])
@pytest.mark.parametrize("choice", Recompute)
def test_a_block_of_llama_on_a_gpu_counted_by_hand(choice, casts_weights):
    stream = (2 if casts_weights else 4) * WIDTH
    kept = {
        Recompute.none: 2 * stream + CHEAP + OF_PRODUCTS + ATTENTION,
        Recompute.selective: stream + OF_PRODUCTS + ATTENTION + 2 * 2 * WIDTH,  # outcomes of out and down, too
        Recompute.full: stream,
    }[choice]
    found = activations(
        built("llama"),
        batch_of("llama"),
        precision=BF16(),
        casts_weights=casts_weights,
        recomputation=RecomputationConfig(activation_checkpointing=choice),
    )
    copies = 0 if casts_weights else 2 * WEIGHTS
    assert found.blocks[1:3] == pytest.approx((TOKENS * kept + copies,) * 2, abs=300)  # offsets and generators
