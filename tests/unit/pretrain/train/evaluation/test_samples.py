"""What a model writes while it trains, beside `generate`; what that leaves alone; prompts that are cut or refused."""

import logging

import pytest
import torch
from rank_threads import on_threads
from small_models import small_decoder
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from toys import ALONE

from pretrain.errors import ConfigError
from pretrain.models.generation.generate import generate
from pretrain.models.generation.sampling import Sampler
from pretrain.models.layers import Positions
from pretrain.objectives.causal_lm import CausalLMConfig
from pretrain.train.evaluation.samples import Continuations, encoded_prompts

WORDS = {f"w{number}": number for number in range(100)}
PROMPTS = {"w7": [7], "w3 w1 w4 w1 w5": [3, 1, 4, 1, 5], "w9 w2": [9, 2]}


def words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def writer(module, world=ALONE, **fields):
    settings = {"prompts": PROMPTS, "max_tokens": 9, "stop_id": None, "tokenizer": words()} | fields
    return Continuations(module=module, model=module.model, world=world, **settings)


def objective(**fields):
    return CausalLMConfig().build(small_decoder(init_std=0.3, dropout=0.5, **fields))


def ids_of(module, prompt, stop_id=None, max_tokens=9):
    greedy, prompts = Sampler(temperature=0.0), [torch.tensor(prompt)]
    [drawn] = generate(module.model.eval(), prompts, greedy, max_tokens=max_tokens, stop_ids=[stop_id])
    return drawn


@pytest.mark.parametrize("fields", [{}, {"positions": Positions.rotary, "window": 4}])
def test_samples_are_what_generate_writes_greedily(fields):
    module = objective(**fields)
    samples = writer(module)()
    expected = {prompt: " ".join(f"w{each}" for each in ids_of(module, ids)) for prompt, ids in PROMPTS.items()}
    assert {prompt: text.strip() for prompt, text in samples} == expected
    assert len(set(expected.values())) == len(expected)


def test_a_document_that_ends_is_not_continued():
    module, passes = objective(), []
    [first, *rest] = ids_of(module, [7])
    stop_id = next(token for token in rest if token != first)  # which the other prompts may never draw
    module.register_forward_hook(lambda *_: passes.append(1))
    [(_, text)] = writer(module, prompts={"w7": [7]}, stop_id=stop_id)()
    expected = ids_of(module, [7], stop_id)
    expected = expected[: expected.index(stop_id)]
    assert text.split() == [f"w{each}" for each in expected] and len(passes) == len(expected) + 1
    samples = writer(module, stop_id=stop_id)()
    assert samples[0] == ("w7", text), "others go on"


def test_training_is_left_as_it_was():
    module = objective().train()
    before, state = {name: value.clone() for name, value in module.state_dict().items()}, torch.get_rng_state()
    samples = writer(module)()
    assert samples == writer(module)(), "no dropout"
    assert all(part.training for part in module.modules())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not module.model._forward_hooks


def test_all_ranks_go_on_with_the_tokens_of_the_first_one():
    """Another device may round otherwise, which other weights stand for here."""
    modules = [objective(), objective(seed=9)]

    def body(world):
        return writer(modules[world.rank], world)()

    expected = [writer(module)() for module in modules]
    assert expected[0] != expected[1]
    assert on_threads(2, body) == [expected[0]] * 2


def test_without_prompts_nothing_is_computed():
    module = objective()
    module.register_forward_hook(lambda *_: pytest.fail("a pass through the model"))
    assert writer(module, prompts={})() == []


def test_a_blank_that_the_decoder_takes_off_the_first_token_stays():
    pieces = Tokenizer(models.WordLevel({"▁the": 0, "▁cat": 1, "s": 2}, unk_token="s"))
    pieces.decoder = decoders.Metaspace()
    write = writer(objective(), tokenizer=pieces, prompts={"the": [0]})
    assert write._sample("the", [0], [1, 2, 1]) == ("the", " cats cat")


def test_long_prompts_keep_their_end_which_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        found = encoded_prompts(["w1 w2", "w1 w2 w3 w4", ""], words(), [99], 4)
    assert found == {"w1 w2": [99, 1, 2], "w1 w2 w3 w4": [1, 2, 3, 4], "": [99]}
    [said] = caplog.messages
    assert said == "eval.samples: 'w1 w2 w3 w4'... has 5 tokens; the model sees the last 4"


def test_a_prompt_without_a_token_is_refused():
    with pytest.raises(ConfigError, match=r"eval\.samples='': has no token, and none begins a document"):
        encoded_prompts(["w1", ""], words(), [], 4)
