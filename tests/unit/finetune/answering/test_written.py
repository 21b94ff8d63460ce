"""What is written with cached keys and values is what passes over whole sequences write, by a model's rules."""

from contextlib import nullcontext

import pytest
import torch
from small_models import BART, START, T5_GATED, VOCAB_SIZE, small_decoder, small_encoder_decoder
from tokenizers import Tokenizer, models

from finetune.answering.base import Codec, Engine
from finetune.answering.written import GenerationConfig, write_all
from finetune.data.examples import Example, Examples
from finetune.model.language import AdaptedDecoder, AdaptedEncoderDecoder
from pretrain.distributed.world import World
from pretrain.models.base import ModelKind
from pretrain.models.encoder_decoder import EncoderDecoder
from pretrain.models.generation.rules import Rules

POSITIONS, END = 32, 7


def written(adapted, examples, prompts, *, whole, max_tokens, rules=None):
    """Return the ids that a model writes, of which `END` is the last."""
    reads = examples.source is not None
    codec = Codec(
        tokenizer=Tokenizer(models.WordLevel({}, "")),
        kind=ModelKind.encoder_decoder if reads else ModelKind.causal,
        frame=([], [END]),
        start=START if reads else None,
        rules=rules,
    )
    engine = Engine(
        module=adapted,
        objective=adapted,
        codec=codec,
        whole=whole,
        autocast=nullcontext,
        max_tokens=64,
        world=World.alone(),
    )
    return write_all(engine, examples, prompts, search=GenerationConfig(), max_tokens=max_tokens, end=END)


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
    longest = POSITIONS if reads else POSITIONS - 6  # targets of so many tokens can be learnt
    one, other = (written(adapted, examples, prompts, whole=whole, max_tokens=longest) for whole in (True, False))
    assert one == other
    assert max(map(len, one)) == longest
    assert len({token for ids in one for token in ids}) > 2 and adapted.training


@pytest.mark.parametrize("whole", [True, False])
def test_texts_keep_to_the_rules_however_they_are_written(whole):
    model, tokens = small_encoder_decoder(**BART, init_std=0.3), 6
    examples = Examples.of([Example([START], [0], source=[5 + length] * length) for length in (1, 4, 7)])
    adapted = AdaptedEncoderDecoder(model, label_smoothing=0.0, target_share=0.5)

    def texts(rules, whole=whole):
        return written(adapted, examples, [[START]] * 3, whole=whole, max_tokens=tokens, rules=rules)

    free = texts(None)
    assert all(len(ids) == tokens for ids in free), "none ends by itself"
    banned = tuple({token for ids in free for token in ids})
    rules = Rules(first=9, last=END, banned=banned)
    found = texts(rules)
    assert [ids[0] for ids in found] == [9, 9, 9] and [len(ids) for ids in found] == [tokens - 1] * 3
    assert not {token for ids in found for token in ids[1:]} & set(banned) and max(map(max, found)) < VOCAB_SIZE
    assert found == texts(rules, whole=not whole)


@pytest.mark.parametrize("whole", [True, False])
def test_any_id_that_ends_a_text_by_the_rules_ends_it(whole):
    adapted = AdaptedDecoder(small_decoder(init_std=0.9), label_smoothing=0.0, target_share=0.5)
    prompts = [[5, 9, 20], [11], [8, 30]]
    examples = Examples.of(Example(prompt, [0] * len(prompt)) for prompt in prompts)
    free = written(adapted, examples, prompts, whole=whole, max_tokens=9)
    end = free[0][2]
    ended = written(adapted, examples, prompts, whole=whole, max_tokens=9, rules=Rules(ends=(end,)))
    assert ended == [ids[: ids.index(end)] if end in ids else ids for ids in free] != free
