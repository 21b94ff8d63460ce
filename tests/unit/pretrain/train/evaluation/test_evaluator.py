"""Evaluation: loss, perplexity and bits per byte beside sums over documents written out in plain Python."""

import itertools
import math
import random

import pytest
import torch
from corpora import write_corpus
from rank_threads import on_threads
from torch import nn

from pretrain.data.batch import IGNORED, Batch, Inputs
from pretrain.data.loader import DataConfig, evaluation_batches
from pretrain.data.packing import Packing
from pretrain.data.sources.base import PreparedSource
from pretrain.distributed.world import World
from pretrain.errors import DataError
from pretrain.objectives.base import Loss
from pretrain.tracking import no_value
from pretrain.train.evaluation.evaluator import Evaluator

VOCABULARY, END = 23, 7


class Bigrams(nn.Module):
    """Predicts the next token from the last one alone, with probabilities that dropout would change."""

    def __init__(self) -> None:
        super().__init__()
        logits = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        self.log_probabilities = 3 * logits.log_softmax(1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, batch: Batch) -> Loss:
        rows = self.dropout(self.log_probabilities)[batch.tokens]
        nll = nn.functional.nll_loss(rows, batch.targets, reduction="sum", ignore_index=IGNORED)
        return Loss(nll, nll, (rows.argmax(1) == batch.targets).sum())


@pytest.mark.parametrize(("packing", "stride"), [*((packing, 0) for packing in Packing), (Packing.windows, 5)])
@pytest.mark.parametrize("micro_batch_size", [1, 5])
def test_every_held_out_byte_is_paid_for_once(tmp_path, packing, stride, micro_batch_size):
    draw = random.Random(2)
    documents = [[END, *draw.choices(range(8, VOCABULARY), k=draw.randrange(1, 40))] for _ in range(31)]
    path = write_corpus(tmp_path / "c", [[END] * 90], documents, vocab_size=VOCABULARY, prefix=[END])
    cfg = DataConfig(seq_len=16, packing=packing, stride=stride, sources={"only": PreparedSource(path=str(path))})
    held_out = cfg.held_out({"only": path})
    module = Bigrams()
    evaluator = Evaluator(
        module=module,
        batches=lambda: evaluation_batches(
            held_out,
            lambda slots: Inputs(slots.tokens, slots.following, slots.offsets),
            micro_batch_size=micro_batch_size,
            rank=0,
            world_size=1,
        ),
        bytes_per_target=held_out.text_bytes / held_out.num_targets,
        world=World.alone(),
    )

    table = module.log_probabilities.tolist()
    pairs = [pair for row in documents for pair in itertools.pairwise([*row, END])]
    paid = [-table[token][after] for token, after in pairs]
    hits = [max(table[token]) == table[token][after] for token, after in pairs]
    text_bytes = 4 * sum(map(len, documents))  # as `corpora` writes it
    expected = {
        "loss": math.fsum(paid) / len(paid),
        "perplexity": math.exp(math.fsum(paid) / len(paid)),
        "accuracy": sum(hits) / len(hits),
        "bits_per_byte": math.fsum(paid) / math.log(2) / text_bytes,
    }
    assert evaluator() == pytest.approx(expected, rel=1e-12)
    assert evaluator() == pytest.approx(expected, rel=1e-12), "it begins anew each time"
    assert module.training, "dropout is on again for the next step"


def test_labels_of_sequences_count_alike_in_whatever_batch_they_are():
    answers = iter([(3.0, 1, 4), None, (0.5, 1, 1)])  # nll, right and all labels of a batch

    class Sentences(nn.Module):
        def forward(self, batch: Batch) -> Loss:
            sums = next(answers)
            return Loss(torch.tensor(4.0), torch.tensor(4.0), torch.tensor(1), sums and torch.tensor(sums))

    batches = [targets(2), targets(3), targets(5)]
    evaluator = Evaluator(module=Sentences(), batches=lambda: batches, bytes_per_target=None, world=World.alone())
    found = evaluator()
    assert (found["loss"], found["accuracy"]) == pytest.approx((12 / 10, 3 / 10))
    assert (found["sentence_loss"], found["sentence_accuracy"]) == pytest.approx((3.5 / 5, 2 / 5))


def test_ranks_measure_together_what_one_measures_alone():
    """Uneven shares: the mean is over all targets and labels, not over ranks."""
    sums = [[(3.0, 2, (0.5, 1, 2)), (1.0, 1, None)], [(9.0, 4, (2.0, 0, 1))], [(0.0, 0, None)]]
    counts = [[2, 3], [7], [0]]

    class Measured(nn.Module):
        def __init__(self, rank):
            super().__init__()
            self.answers = iter(sums[rank])

        def forward(self, batch):
            nll, right, labels = next(self.answers)
            return Loss(torch.tensor(nll), torch.tensor(nll), torch.tensor(right), labels and torch.tensor(labels))

    def body(world):
        batches = [targets(number) for number in counts[world.rank]]
        return Evaluator(module=Measured(world.rank), batches=lambda: batches, bytes_per_target=2.5, world=world)()

    expected = {
        "loss": 13 / 12,
        "perplexity": math.exp(13 / 12),
        "accuracy": 7 / 12,
        "sentence_loss": 2.5 / 3,
        "sentence_accuracy": 1 / 3,
        "bits_per_byte": 13 / 12 / math.log(2) / 2.5,
    }
    assert on_threads(3, body) == [pytest.approx(expected)] * 3


def targets(number: int) -> Batch:
    ids = torch.arange(number)
    offsets = torch.tensor([0, number], dtype=torch.int32)
    return Batch(tokens=ids, positions=ids, offsets=offsets, max_len=number, targets=ids, num_targets=number)


@pytest.mark.parametrize(
    ("nll", "told"),
    [
        (math.nan, "loss, perplexity, bits_per_byte: no value: the model's losses on held-out text are not finite"),
        (math.inf, "loss, perplexity, bits_per_byte: no value: the model's losses on held-out text are not finite"),
        (3000.0, "perplexity: no value: e to the loss is beyond a float"),
        (2800.0, ""),
    ],
)
def test_what_is_not_finite_is_said_once_with_the_reason(nll, told, caplog):
    class Measured(nn.Module):
        def forward(self, batch):
            return Loss(torch.tensor(nll), torch.tensor(nll), torch.tensor(1))

    no_value._say.cache_clear()
    evaluator = Evaluator(module=Measured(), batches=lambda: [targets(4)], bytes_per_target=2.5, world=World.alone())
    assert evaluator()["loss"] == pytest.approx(nll / 4, nan_ok=True)
    assert math.isfinite(evaluator()["perplexity"]) == (not told) == (not caplog.text)
    assert caplog.text.count(told) == (1 if told else caplog.text.count(""))


def test_held_out_text_without_a_target_is_refused():
    nothing = Batch(
        tokens=torch.tensor([3]),
        positions=torch.tensor([0]),
        offsets=torch.tensor([0, 1], dtype=torch.int32),
        max_len=1,
        targets=torch.tensor([IGNORED]),
        num_targets=0,
    )
    evaluator = Evaluator(module=Bigrams(), batches=lambda: [nothing], bytes_per_target=None, world=World.alone())
    with pytest.raises(DataError, match=r"data\.prepare\.held_out: nothing in the held-out text is a target"):
        evaluator()
