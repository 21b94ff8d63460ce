"""Small models of every kind and ragged batches for tests of models, objectives and generation."""

from dataclasses import replace

import torch
from attention_laws import offsets

from pretrain.data.batch import IGNORED, Batch
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.base import Stream
from pretrain.models.decoder import DecoderConfig
from pretrain.models.encoder import EncoderConfig
from pretrain.models.encoder_decoder import EncoderDecoderConfig
from pretrain.models.init import draw
from pretrain.models.layers import Activation, Norm, Order, Positions, QKNorm

LLAMA = {"norm": Norm.rmsnorm, "activation": Activation.swiglu, "positions": Positions.rotary, "bias": False}
GPT_NEOX = {
    "positions": Positions.rotary,
    "rotary_share": 1 / 3,
    "order": Order.parallel,
    "activation": Activation.gelu,
}
PHI3 = LLAMA | {"rotary_share": 2 / 3}
OLMO2 = LLAMA | {"order": Order.output, "qk_norm": QKNorm.projection}
GEMMA3 = LLAMA | {
    "norm": Norm.zero_centered_rmsnorm,
    "activation": Activation.geglu_tanh,
    "order": Order.sandwich,
    "qk_norm": QKNorm.head,
    "embedding_scale": True,
}
QWEN2 = LLAMA | {"qkv_bias": True}
QWEN3 = LLAMA | {"qk_norm": QKNorm.head}
ROBERTA = {"position_offset": 2, "token_types": 1, "norm_eps": 1e-5}
DISTILBERT = {"token_types": 0}
ELECTRA = {"embedding_width": 10, "norm_eps": 1e-12}
MODERNBERT = {
    "order": Order.pre,
    "activation": Activation.geglu,
    "positions": Positions.rotary,
    "token_types": 0,
    "bias": False,
    "norm_eps": 1e-5,
}
DEBERTA = {
    "positions": Positions.disentangled,
    "buckets": 8,
    "max_distance": 16,
    "token_types": 0,
    "norm_eps": 1e-7,
}
BART = {
    "positions": Positions.learned,
    "position_offset": 2,
    "embedding_norm": True,
    "embedding_scale": False,
    "activation": Activation.gelu,
}
MBART = BART | {"order": Order.pre}
MARIAN = {"activation": Activation.silu, "head_bias": True}
T5 = {
    "positions": Positions.relative,
    "order": Order.pre,
    "norm": Norm.rmsnorm,
    "norm_eps": 1e-6,
    "embedding_scale": False,
    "attention_scale": False,
    "bias": False,
}
T5_TIED = T5 | {"head_scale": True}
T5_GATED = T5 | {"activation": Activation.geglu_tanh, "tie_embeddings": False}
VOCAB_SIZE, START = 61, 0  # ids, and that before every target


def small_decoder(seed=1, attend=sdpa, **fields):
    """Return a decoder built the way runs build theirs."""
    return small_model(DecoderConfig, seed, attend, fields)


def small_encoder(seed=1, attend=sdpa, **fields):
    """Return an encoder built the way runs build theirs."""
    return small_model(EncoderConfig, seed, attend, fields)


def small_encoder_decoder(seed=1, attend=sdpa, **fields):
    """Return an encoder-decoder built the way runs build theirs."""
    return small_model(EncoderDecoderConfig, seed, attend, fields)


def small_model(config, seed, attend, fields):
    fields = {"max_seq_len": 32, "width": 24, "layers": 2, "heads": 4, **fields}
    with torch.device("meta"):
        model = config(**fields).build(vocab_size=VOCAB_SIZE, attend=attend)
    return filled(model, seed)


def filled(model, seed, device="cpu"):
    """Fill a model the way `InitialWeights` does, tensor by tensor."""
    for name, parameter in model.to_empty(device=device).named_parameters():
        drawn = draw(
            model.initial(name), seed=seed, name=name, start=0, numel=parameter.numel(), total=parameter.numel()
        )
        parameter.data.copy_(drawn.reshape(parameter.shape))
    return model


def ragged_batch(lengths, seed=3):
    """Return random documents of these lengths; every token but a document's last predicts its follower."""
    tokens = torch.randint(VOCAB_SIZE, (sum(lengths),), generator=torch.Generator().manual_seed(seed))
    end = torch.tensor([IGNORED])
    return Batch(
        tokens=tokens,
        positions=torch.cat([torch.arange(length) for length in lengths]),
        offsets=offsets(lengths),
        max_len=max(lengths),
        targets=torch.cat([torch.cat([document[1:], end]) for document in tokens.split(lengths)]),
        num_targets=sum(lengths) - len(lengths),
    )


def ragged_pairs(source_lengths, target_lengths, seed=3):
    """Return random targets of these lengths, each predicting itself from its source and its own earlier tokens."""
    source, target = ragged_batch(source_lengths, seed), ragged_batch(target_lengths, seed + 1)
    stream = Stream(source.tokens, source.positions, source.offsets, source.max_len, source_lengths)
    starts = target.positions == 0
    shifted = torch.where(starts, START, target.tokens.roll(1))
    return replace(target, tokens=shifted, targets=target.tokens, num_targets=len(target.tokens), source=stream)
