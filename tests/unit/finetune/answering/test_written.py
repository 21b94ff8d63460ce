"""What is written keeps to a model's rules, also by passes where weights are spread over ranks."""

from contextlib import nullcontext

import pytest
from small_models import BART, START, VOCAB_SIZE, small_encoder_decoder
from tokenizers import Tokenizer, models
from toys import ALONE

from finetune.answering.base import Codec, Engine
from finetune.answering.written import GenerationConfig, write_all
from finetune.data.examples import Example, Examples
from finetune.model.language import AdaptedEncoderDecoder
from pretrain.models.base import ModelKind
from pretrain.models.generation.rules import Rules

END, TOKENS = 2, 6
EXAMPLES = Examples.of([Example([START], [0], source=[5 + length] * length) for length in (1, 4, 7)])


def written(rules, *, whole):
    model = small_encoder_decoder(**BART, init_std=0.3)
    module = AdaptedEncoderDecoder(model, label_smoothing=0.0, target_share=0.5)
    codec = Codec(
        tokenizer=Tokenizer(models.WordLevel({}, "")),
        kind=ModelKind.encoder_decoder,
        frame=([], [END]),
        start=START,
        rules=rules,
    )
    about = {"module": module, "objective": module, "codec": codec, "autocast": nullcontext, "world": ALONE}
    engine = Engine(whole=whole, max_tokens=64, **about)
    settings = {"search": GenerationConfig(), "max_tokens": TOKENS, "end": END}
    return write_all(engine, EXAMPLES, [[START]] * len(EXAMPLES), **settings)


@pytest.mark.parametrize("whole", [True, False])
def test_texts_keep_to_the_rules_however_they_are_written(whole):
    free = written(None, whole=whole)
    assert all(len(ids) == TOKENS for ids in free), "none ends by itself"
    banned = tuple({token for ids in free for token in ids})
    found = written(Rules(first=9, last=END, banned=banned), whole=whole)
    assert [ids[0] for ids in found] == [9, 9, 9] and [len(ids) for ids in found] == [TOKENS - 1] * 3
    assert not {token for ids in found for token in ids[1:]} & set(banned) and max(map(max, found)) < VOCAB_SIZE
    assert found == written(Rules(first=9, last=END, banned=banned), whole=not whole)
