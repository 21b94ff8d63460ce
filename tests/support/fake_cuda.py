"""What the product does on a GPU, on the tensors of `bench.fake_gpu`: presets, batches, compilation.

For processes of `forks` that were started with `fake_cuda=True`, whose torch knows the device. What it proves are
shapes, dtypes, devices, signatures of operators, and that nothing is read from the device, for there is nothing to be
read. It proves no number, no speed, and nothing that a kernel demands beyond what torch's meta function checks.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest import mock

import torch
import torch.nn.attention.flex_attention
from slots_by_hand import FIRST_TEXT, PREFIX, SUFFIX, slots_of, vocabulary
from torch._subclasses.fake_tensor import FakeTensorMode

from pretrain.compose import compose
from pretrain.config import PretrainConfig
from pretrain.data.batch import Batch
from pretrain.objectives.base import Objective
from pretrain.run import build_module


@contextmanager
def uncompiled() -> Iterator[None]:
    """Have `torch.compile` return what it is given: the operators of flex_attention are the same, and it takes 0.3 s.

    With `counted_graphs` Dynamo traces its masks for 5 s.
    """
    flag = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"
    with (
        mock.patch.object(torch, "compile", lambda function, **settings: function),
        mock.patch.object(torch.nn.attention.flex_attention, flag, True),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "_compile flag on create_block_mask", DeprecationWarning)
        yield


@dataclass
class Compilations:
    """What Dynamo has made, and how often it ran."""

    graphs: int = 0
    calls: int = 0


@contextmanager
def counted_graphs() -> Iterator[Compilations]:
    """Have `torch.compile` run the graphs that it makes operator by operator, for nothing here can compile for a GPU.

    Dynamo, its guards and its recompilations are those of the product. Yields counts that grow.
    """
    counts, compile_ = Compilations(), torch.compile

    def counting(graph: torch.fx.GraphModule, inputs: Sequence[object]):
        counts.graphs += 1

        def run(*arguments):
            counts.calls += 1
            return graph.forward(*arguments)

        return run

    def compiled(function=None, *, mode=None, options=None, backend=None, **settings):
        return compile_(function, backend=counting, **settings)

    with mock.patch.object(torch, "compile", compiled):
        yield counts


def preset(experiment: str, *overrides: str) -> tuple[PretrainConfig, Objective]:
    """Return the configuration of an experiment and its module on the meta device, as a run on a GPU makes them.

    Called under `pretend_h100`, where `attention=auto` chooses as on an H100.
    """
    cfg = compose([f"experiment={experiment}", *overrides], quiet=True)
    return cfg, build_module(cfg, cfg.tokenizer.vocab_size)


def ragged_batch(cfg: PretrainConfig, mode: FakeTensorMode, lengths: Sequence[int] = (5, 190, 33, 1, 71)) -> Batch:
    """Return what the objective of a run makes of documents with so many tokens of text each, fake and on the CPU."""
    ids = itertools.cycle(range(FIRST_TEXT, FIRST_TEXT + 50))
    slots = slots_of([[[PREFIX, *itertools.islice(ids, length), SUFFIX] for length in lengths]])
    known = vocabulary()
    known = replace(known, ids={**known.ids, "</s>": SUFFIX})
    batch = Batch.of(cfg.objective.examples(lambda: known, cfg.seed, cfg.data.seq_len)(slots))
    return batch._map(mode.from_tensor)
