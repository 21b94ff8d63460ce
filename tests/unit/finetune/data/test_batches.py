"""Which examples are in which micro-batch: laws for any lengths, batch size, epochs, ranks and budget."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.batches import TrainingSteps, divide, measuring_batches, under_budget
from finetune.data.examples import Example, Examples

LONGEST = 20  # tokens of an example
LENGTHS = st.lists(st.integers(1, LONGEST), min_size=1, max_size=30)
BUDGETS = st.integers(LONGEST, 4 * LONGEST)
RANKS = st.integers(1, 4)


def examples_of(lengths):
    """Return examples that know who they are: the number of each is its every token, and its label."""
    return Examples.of([Example([number] * length, [0] * length, number) for number, length in enumerate(lengths)])


def steps_of(examples, rank=0, world_size=1, max_tokens=LONGEST, **fields):
    fields = {"epochs": 1.0, "batch_size": 4, "seed": 3, **fields}
    return TrainingSteps(examples=examples, rank=rank, world_size=world_size, max_tokens=max_tokens, **fields)


def members(batch):
    """Return the examples of a batch, none of one that is empty."""
    return [] if batch.labels is None else batch.labels.tolist()


def of_all_ranks(examples, world_size, max_tokens, **fields):
    """Return for each step the micro-batches of each rank."""
    ranks = [steps_of(examples, rank, world_size, max_tokens, **fields).since(0) for rank in range(world_size)]
    return list(zip(*ranks, strict=True))


@given(LENGTHS, st.floats(0.01, 3), st.integers(1, 40), RANKS, BUDGETS)
def test_every_example_is_seen_once_an_epoch(lengths, epochs, batch_size, world_size, max_tokens):
    found = []
    steps = of_all_ranks(examples_of(lengths), world_size, max_tokens, epochs=epochs, batch_size=batch_size)
    for step in steps:
        found.append([number for own in step for batch in own for number in members(batch)])
    assert [len(step) for step in found[:-1]] == [batch_size] * (len(found) - 1)
    assert len(found) == steps_of(examples_of(lengths), epochs=epochs, batch_size=batch_size).total
    seen = np.bincount(np.concatenate(found), minlength=len(lengths))
    assert seen.sum() == max(round(epochs * len(lengths)), 1)
    assert seen.max() - seen.min() <= 1, "the last epoch may end early, no other one does"
    assert 1 <= len(found[-1]) <= batch_size


@given(LENGTHS, st.integers(1, 12), RANKS, BUDGETS)
def test_what_a_step_learns_depends_neither_on_ranks_nor_on_the_budget(lengths, batch_size, world_size, max_tokens):
    examples = examples_of(lengths)
    many = of_all_ranks(examples, world_size, max_tokens, epochs=2, batch_size=batch_size)
    one = list(steps_of(examples, epochs=2, batch_size=batch_size).since(0))
    for alone, together in zip(one, many, strict=True):
        found = sorted(number for own in together for batch in own for number in members(batch))
        assert found == sorted(number for batch in alone for number in members(batch))
        assert sum(batch.num_targets for own in together for batch in own) == len(found)
        assert sum(batch.num_tokens for own in together for batch in own) == sum(lengths[number] for number in found)


@given(LENGTHS, st.integers(1, 40), RANKS, BUDGETS)
def test_budgets_are_kept_and_ranks_have_as_many_micro_batches_and_alike_tokens(
    lengths, batch_size, world_size, max_tokens
):
    for step in of_all_ranks(examples_of(lengths), world_size, max_tokens, batch_size=batch_size):
        assert len({len(own) for own in step}) == 1
        assert any(members(own[-1]) for own in step), "no more of them than one rank needs"
        for own in step:
            assert all(len(batch.tokens) <= max_tokens for batch in own)
        tokens = [sum(len(batch.tokens) for batch in own if members(batch)) for own in step]
        longest = max(lengths[number] for own in step for batch in own for number in members(batch))
        assert max(tokens) - min(tokens) <= longest
        counts = [sum(len(members(batch)) for batch in own) for own in step]
        assert max(counts) - min(counts) <= 1


def test_longest_examples_are_dealt_there_and_back():
    lengths = np.array([1, 5, 7, 3, 8, 2, 6, 4])
    first, second = divide(np.arange(8), lengths, 100, 2)
    assert [lengths[own].tolist() for own in first + second] == [[8, 5, 4, 1], [7, 6, 3, 2]]


def test_a_micro_batch_holds_as_much_as_it_may():
    parts = under_budget(np.arange(6), np.array([5, 4, 3, 3, 2, 2]), 10)
    assert [part.tolist() for part in parts] == [[0, 1], [2, 3, 4, 5]]


@given(LENGTHS, st.integers(1, 8), st.integers(0, 30), RANKS)
def test_a_run_goes_on_at_any_step_as_if_it_had_not_stopped(lengths, batch_size, start, world_size):
    own = steps_of(examples_of(lengths), world_size - 1, world_size, batch_size=batch_size, epochs=1.5)
    whole = [[members(batch) for batch in step] for step in own.since(0)]
    assert [[members(batch) for batch in step] for step in own.since(start)] == whole[start:]


def test_the_order_is_the_seeds_and_the_epochs():
    examples = examples_of([3] * 60)
    orders = {seed: steps_of(examples, seed=seed, epochs=2, batch_size=60).chosen(0).tolist() for seed in (1, 2)}
    second = steps_of(examples, seed=1, epochs=2, batch_size=60).chosen(1).tolist()
    assert len({tuple(order) for order in (orders[1], orders[2], second, range(60))}) == 4


def test_examples_of_a_step_are_drawn_without_regard_to_their_lengths():
    lengths = np.arange(400) % LONGEST + 1
    examples = examples_of(lengths.tolist())
    steps = steps_of(examples, batch_size=40)
    means = [lengths[steps.chosen(step)].mean() for step in range(steps.total)]
    assert np.abs(np.array(means) - lengths.mean()).max() < 4 * lengths.std() / 40**0.5, (
        "batches of like lengths differ more"
    )


def test_those_of_a_micro_batch_are_alike():
    lengths = (np.arange(64) * 7 % LONGEST + 1).tolist()
    [step] = steps_of(examples_of(lengths), batch_size=64, max_tokens=2 * LONGEST).since(0)
    spread = [max(own) - min(own) for batch in step if (own := [lengths[number] for number in members(batch)])]
    assert np.mean(spread) < 3 < np.std(lengths)


@given(LENGTHS, RANKS, BUDGETS)
def test_measuring_covers_all_and_its_batches_are_those_of_one_rank(lengths, world_size, max_tokens):
    examples = examples_of(lengths)
    one = list(measuring_batches(examples, max_tokens=max_tokens, rank=0, world_size=1))
    ranks = [
        list(measuring_batches(examples, max_tokens=max_tokens, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert len({len(own) for own in ranks}) == 1, "engines that shard need all ranks in every forward pass"
    many = [pair for turn in zip(*ranks, strict=True) for pair in turn]
    many, surplus = many[: len(one)], many[len(one) :]
    for (chosen, batch), (expected, same) in zip(many, one, strict=True):
        assert chosen.tolist() == expected.tolist() == members(batch)
        assert torch.equal(batch.tokens, same.tokens) and batch.lengths == same.lengths
        assert len(batch.tokens) <= max_tokens
    assert sorted(number for chosen, _ in one for number in chosen) == list(range(len(lengths)))
    assert len(surplus) < world_size and all(not len(chosen) and not batch.num_targets for chosen, batch in surplus)
