"""Answers to questions are the same under every strategy on any number of ranks, and cost no step."""

import numpy as np
import pytest
import torch
from equivalence import VOCABULARY, save, start, strategies, train
from ranks import on_ranks

from pretrain.checkpoint.load import restore_weights
from pretrain.data.choice_sets import ChoiceSet, Row
from pretrain.distributed.world import World
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.decoder import DecoderConfig
from pretrain.objectives.causal_lm import CausalLMConfig
from pretrain.train.evaluation.choices import ChoiceEvaluator

pytestmark = pytest.mark.timeout(900)  # s; many processes on few cores, and others may use them too

DRAW = np.random.default_rng(5)
ROWS = [Row(DRAW.integers(VOCABULARY, size=length, dtype=np.int32), 2) for length in (5, 14, 3, 9, 4, 4, 12, 6)]
SET = ChoiceSet(
    name="set",
    rows=ROWS,
    text_bytes=np.array([4, 11, 2, 9, 3, 3, 7, 5]),
    starts=np.array([0, 2, 4, 6, 8]),
    answers=np.array([1, 0, 1, 1]),
)


def build():
    """Return a module whose head is a matrix of its own, with weights so large that tokens differ."""
    size = {"max_seq_len": 13, "width": 20, "layers": 3, "heads": 4, "kv_heads": 2, "mlp_width": 47}
    config = DecoderConfig(**size, tie_embeddings=False, init_std=0.3)
    with torch.device("meta"):
        return CausalLMConfig().build(config.build(vocab_size=VOCABULARY, attend=sdpa))


def evaluator(world, module, wrapped):
    """Return what measures three batches: two ranks make two passes, in the last of which one has no rows."""
    return ChoiceEvaluator(module=wrapped, model=module.model, sets=[SET], batch_tokens=20, world=world)


def in_one_process(step):
    """Return scores and accuracies of the weights of a step, without a strategy."""
    module = build()
    restore_weights(step, module)
    measure = evaluator(World.alone(), module, module)
    return measure._scores(ROWS), measure()


def check_choices(world, folder, names):
    for name in names:
        courses = []
        for measures in (False, True):
            module, wrapped, strategy = start(world, strategies(world.size)[name], make=build)
            measure, course = evaluator(world, module, wrapped), []
            for step in range(3):
                if measures:
                    scores, found = measure._scores(ROWS), measure()
                    if step == 2:
                        saved = save(world, strategy, folder / f"{name}-{world.size}", step)
                        expected, accuracies = in_one_process(saved)
                        assert scores == pytest.approx(expected, rel=1e-5), name
                        assert found == accuracies and module.training
                course.append(train(world, wrapped, strategy, range(step, step + 1), 3))
            courses.append(course)
        assert courses[0] == courses[1], f"{name}: answers change the training, not bit for bit the same"


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_answers_are_those_of_the_saved_step_under_every_strategy(tmp_path, ranks):
    on_ranks(ranks, check_choices, tmp_path, tuple(strategies(ranks)))
