"""What a model writes while it trains is the same under every strategy on any number of ranks, and costs no step."""

import pytest
import torch
from equivalence import VOCABULARY, save, start, strategies, train
from ranks import on_ranks
from tokenizers import Tokenizer, models

from pretrain.checkpoint.load import restore_weights
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.decoder import DecoderConfig
from pretrain.models.generation.generate import generate
from pretrain.models.generation.sampling import Sampler
from pretrain.objectives.causal_lm import CausalLMConfig
from pretrain.train.evaluation.samples import Continuations

pytestmark = pytest.mark.timeout(900)  # s; many processes on few cores, and others may use them too

PROMPTS = {"w3 w1 w4": [3, 1, 4], "w5": [5], "w9 w2 w6 w5 w3": [9, 2, 6, 5, 3]}
MORE = 8  # tokens: the longest sequence has all 13 positions
FEW = ("zero3", "fsdp2")  # whose weights no rank has all of


def build():
    """Return the module of `equivalence.build` with weights so large that a token depends on those before it."""
    config = DecoderConfig(max_seq_len=13, width=20, layers=3, heads=4, kv_heads=2, mlp_width=47, init_std=0.3)
    with torch.device("meta"):
        return CausalLMConfig().build(config.build(vocab_size=VOCABULARY, attend=sdpa))


def continuations(world, module, wrapped):
    words = models.WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w0")
    return Continuations(
        module=wrapped,
        model=module.model,
        tokenizer=Tokenizer(words),
        prompts=PROMPTS,
        max_tokens=MORE,
        stop_id=None,
        world=world,
    )


def generated(step):
    """Return what `pretrain.models.generate` writes with the weights of a step."""
    module = build()
    restore_weights(step, module)
    greedy = Sampler(temperature=0.0)
    drawn = generate(module.model.eval(), list(map(torch.tensor, PROMPTS.values())), greedy, max_tokens=MORE)
    for prompt, tokens in zip(PROMPTS, drawn, strict=True):
        yield prompt, " " + " ".join(f"w{token}" for token in tokens)


def check_samples(world, folder, names):
    for name in names:
        courses = []
        for writes in (False, True):
            module, wrapped, strategy = start(world, strategies(world.size)[name], make=build)
            write, course = continuations(world, module, wrapped), []
            for step in range(3):
                if writes:
                    samples = write()
                    if step == 2:
                        saved = save(world, strategy, folder / f"{name}-{world.size}", step)
                        assert samples == list(generated(saved)), name
                        assert len({text for _, text in samples}) == len(PROMPTS) and module.training
                course.append(train(world, wrapped, strategy, range(step, step + 1), 3))
            courses.append(course)
        assert courses[0] == courses[1], f"{name}: samples change the training, not bit for bit the same"


def test_samples_are_those_of_the_saved_step_where_no_rank_has_all_weights(tmp_path):
    on_ranks(2, check_samples, tmp_path, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_samples_are_those_of_the_saved_step_under_every_strategy(tmp_path, ranks):
    on_ranks(ranks, check_samples, tmp_path, tuple(strategies(ranks)))
