"""What objectives make of batches: the same however a step is divided, whoever reads it, and after a restart."""

import itertools
import random

import numpy as np
import pytest
from corpora import write_corpus

from pretrain.data.batch import Batch, Vocabulary
from pretrain.data.course import Course
from pretrain.data.loader import DataConfig, StepLoader
from pretrain.data.packing import Packing
from pretrain.data.sources.base import PreparedSource
from pretrain.data.stream import TrainStream
from pretrain.objectives.base import ObjectiveConfig
from pretrain.objectives.denoising import DenoisingConfig
from pretrain.objectives.fill_in_the_middle import FillInTheMiddleConfig
from pretrain.objectives.masked_lm import MaskedLMConfig
from pretrain.objectives.masking import MaskingConfig, Unit
from pretrain.objectives.prefix_lm import PrefixLMConfig
from pretrain.objectives.replaced_tokens import ReplacedTokensConfig, Replacements
from pretrain.objectives.sentence_pairs import Sentences
from pretrain.objectives.span_corruption import Denoiser, SpanCorruptionConfig

CLS, SEP, MASK, SIZE = 1, 2, 3, 500
CHOICES = [
    MaskedLMConfig(),
    MaskedLMConfig(masking=MaskingConfig(unit=Unit.whole_words)),
    MaskedLMConfig(masking=MaskingConfig(unit=Unit.spans), sentences=Sentences.nsp),
    MaskedLMConfig(sentences=Sentences.sop),
    SpanCorruptionConfig(mixture=[Denoiser(), Denoiser(density=0.25, mean_span=None)]),
    DenoisingConfig(permute_sentences=True),
    FillInTheMiddleConfig(),
    PrefixLMConfig(),
    ReplacedTokensConfig(),
    ReplacedTokensConfig(replacements=Replacements.uniform),
]


def vocabulary() -> Vocabulary:
    ids = np.arange(SIZE)
    names = {"<|fim_prefix|>": 4, "<|fim_suffix|>": 5, "<|fim_middle|>": 6}
    more = {"ids": names, "sentinels": list(range(470, SIZE)), "ends_sentence": ids % 9 == 0, "start": 0}
    return Vocabulary(ids < 10, ids < 300, ids < 10, MASK, [CLS], [SEP], **more)


@pytest.fixture
def stream(tmp_path) -> TrainStream:
    """A mixture of two small corpora, of which an epoch takes a few steps."""
    draw = random.Random(0)
    corpora = {
        name: write_corpus(
            tmp_path / name,
            [[CLS, *(draw.randrange(10, 470) for _ in range(draw.randrange(1, 30))), SEP] for _ in range(60)],
            vocab_size=SIZE,
            prefix=[CLS],
            suffix=[SEP],
        )
        for name in ("one", "two")
    }
    sources = {name: PreparedSource(path=str(path)) for name, path in corpora.items()}
    return DataConfig(seq_len=32, packing=Packing.best_fit, sources=sources).train_stream(corpora, seed=3)


def steps(stream: TrainStream, objective: ObjectiveConfig, **changes) -> list[list[Batch]]:
    options = {
        "course": Course.constant(12),
        "micro_batch_size": 12,
        "rank": 0,
        "world_size": 1,
        "start_step": 0,
        "num_steps": 5,
    }
    with StepLoader(
        stream, objective.examples(vocabulary, seed=7, seq_len=32), **{"pin": False, **options, **changes}
    ) as loader:
        return list(loader)


def sequences(batches: list[Batch]) -> list[tuple]:
    """Return tokens, targets, segments, source and label of each sequence."""
    found = []
    for batch in batches:
        offsets = batch.offsets.tolist()
        for number, (begin, end) in enumerate(itertools.pairwise(offsets)):
            columns = [batch.tokens, batch.targets] + ([] if batch.segments is None else [batch.segments])
            label = None if batch.labels is None else batch.labels[number].item()
            source = ()
            if batch.source is not None:
                first, last = batch.source.offsets[number : number + 2].tolist()
                source = tuple(batch.source.tokens[first:last].tolist())
            found.append((*(tuple(column[begin:end].tolist()) for column in columns), source, label))
    return found


@pytest.mark.parametrize("objective", CHOICES)
@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(1, 1), (1, 4), (2, 6), (2, 3), (3, 4), (3, 2)])
def test_masks_are_the_same_however_a_step_is_divided(stream, objective, world_size, micro_batch_size):
    whole = steps(stream, objective)
    shared = {"world_size": world_size, "micro_batch_size": micro_batch_size}
    ranks = [steps(stream, objective, rank=rank, **shared) for rank in range(world_size)]
    for number, [batch] in enumerate(whole):
        divided = [micro for rank in ranks for micro in rank[number]]
        assert len(divided) == 12 // micro_batch_size
        assert sequences(divided) == sequences([batch])
        assert 0 < sum(micro.num_targets for micro in divided) == batch.num_targets


@pytest.mark.parametrize("objective", CHOICES)
def test_a_restart_at_a_later_step_sees_the_same_masks(stream, objective):
    whole = steps(stream, objective)
    for start in (1, 4):
        rest = steps(stream, objective, start_step=start)
        assert [sequences(step) for step in rest] == [sequences(step) for step in whole[start:]]


@pytest.mark.parametrize("objective", CHOICES)
def test_the_same_text_is_masked_anew_in_another_epoch(stream, objective):
    examples, keys = objective.examples(vocabulary, seed=7, seq_len=32), stream.locate(np.arange(12))
    first, same, later = (examples(stream.read(keys + np.array([0, epoch, 0]))) for epoch in (0, 0, 1))
    first, same, later = ([made.tokens, made.targets, *(made.source or ())] for made in (first, same, later))
    assert all(np.array_equal(one, other) for one, other in zip(first, same, strict=True))
    assert not all(np.array_equal(one, other) for one, other in zip(first, later, strict=True))
    assert stream.read(keys).tokens.tolist() == stream.read(keys + np.array([0, 1, 0])).tokens.tolist()
