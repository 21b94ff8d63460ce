"""What is written with cached keys and values is what passes over whole sequences write, to the last position."""

from contextlib import nullcontext

import pytest
import torch
from small_models import BART, T5_GATED, small_decoder, small_encoder_decoder

from finetune.answering.base import Engine
from finetune.answering.written import GenerationConfig, write_all
from finetune.data.examples import Example, Examples
from finetune.model.language import AdaptedDecoder, AdaptedEncoderDecoder
from pretrain.distributed.world import World
from pretrain.models.encoder_decoder import EncoderDecoder

POSITIONS, END = 32, 7


@pytest.mark.parametrize(
    ("make", "fields"),
    [(small_encoder_decoder, BART), (small_encoder_decoder, T5_GATED), (small_decoder, {})],
    ids=["bart", "t5", "gpt2"],
)
def test_whole_weights_write_what_shards_write(make, fields):
    model, sources = make(**fields), [[5, 9, 20, 3], [11], [8, 30, 8, 12, 40, 2]]
    generator = torch.Generator().manual_seed(11)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:  # texts that depend on what came before
            parameter.data.normal_(std=0.9 if name.startswith("blocks") else 0.4, generator=generator)
    reads = isinstance(model, EncoderDecoder)
    prompts = [[0]] * 3 if reads else sources
    examples = Examples.of(
        Example(prompt, [0] * len(prompt), source=source if reads else None)
        for prompt, source in zip(prompts, sources, strict=True)
    )
    adapted = (AdaptedEncoderDecoder if reads else AdaptedDecoder)(model, label_smoothing=0.0, target_share=0.5)
    written = [
        write_all(
            Engine(
                module=adapted,
                objective=adapted,
                codec=None,  # texts are ids here
                whole=whole,
                autocast=nullcontext,
                max_tokens=64,
                world=World.alone(),
            ),
            examples,
            prompts,
            search=GenerationConfig(),
            max_tokens=POSITIONS if reads else POSITIONS - 6,  # targets of so many tokens can be learnt
            end=END,
        )
        for whole in (True, False)
    ]
    assert written[0] == written[1]
    assert max(map(len, written[0])) == (POSITIONS if reads else POSITIONS - 6)
    assert len({token for ids in written[0] for token in ids}) > 2 and adapted.training
