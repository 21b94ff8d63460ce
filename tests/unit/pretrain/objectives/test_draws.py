"""Numbers of a slot: those of Philox as published, the same in any company, shared with no other slot or use."""

import numpy as np
from numpy.random import Generator, Philox

from pretrain.objectives.draws import Use, uniform

KEYS = np.array([[0, 0, 5], [1, 0, 5], [0, 2, 5], [0, 0, 6], [3, 2, 2**40]])
COUNTS = np.array([4, 0, 7, 1, 3])


def test_each_slot_has_the_numbers_of_a_generator_of_its_own():
    drawn = uniform(11, Use.pairs, KEYS, COUNTS, columns=3)
    for key, rows in zip(KEYS, np.split(drawn, COUNTS.cumsum()[:-1]), strict=True):
        own = Generator(Philox(key=[11, 1], counter=[0, *key.tolist()]))
        assert rows.tolist() == own.random((len(rows), 3)).tolist()


def test_the_stream_never_changes():
    """Runs that are resumed under a later version see the same masks."""
    drawn = uniform(1, Use.masking, np.array([[0, 1, 2]]), np.array([2]), columns=2)
    assert drawn.tolist() == [
        [0.9223368856826007, 0.8043608926011809],
        [0.15715282029623445, 0.4154943352717747],
    ]


def test_seed_use_source_epoch_and_index_all_matter():
    seeds = (1, 2, -1, 2**32 + 1, 2**63)
    streams = [uniform(seed, use, KEYS, np.full(5, 8), columns=1) for seed in seeds for use in Use]
    drawn = np.concatenate(streams)
    assert len(np.unique(drawn)) == drawn.size == 5 * len(Use) * 5 * 8
    assert ((drawn >= 0) & (drawn < 1)).all()
