"""What the product does on a GPU, on tensors that have shapes, dtypes and a device but no values: presets and batches.

For processes of `forks` that were started with `fake_cuda=True`, whose torch knows the device. What it proves are
shapes, dtypes, devices, signatures of operators, and that nothing is read from the device, for there is nothing to be
read. It proves no number, no speed, and nothing that a kernel demands beyond what torch's meta function checks.

Two operators are others than on a GPU, because torch's CPU build lacks their CUDA kernels and so decomposes them:
RMSNorm becomes five operators, and `scaled_dot_product_attention` plain products.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import torch
from slots_by_hand import FIRST_TEXT, PREFIX, SUFFIX, slots_of, vocabulary
from torch._subclasses.fake_tensor import FakeTensorMode

from pretrain.compose import compose
from pretrain.config import PretrainConfig
from pretrain.data.batch import Batch
from pretrain.objectives.base import Objective
from pretrain.run import build_module

CUDA = torch.device("cuda", 0)

H100 = SimpleNamespace(  # what torch.cuda.get_device_properties says of an H100 SXM
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    total_memory=80 << 30,
    multi_processor_count=132,
    warp_size=32,
    max_threads_per_multi_processor=2048,
    regs_per_multiprocessor=65536,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    L2_cache_size=50 << 20,
)


class Event:
    """An event that has happened."""

    def __init__(self, *args, **kwargs) -> None: ...

    def record(self, stream=None) -> None: ...

    def wait(self, stream=None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Event) -> float:
        return 0.0


class Stream:
    """A stream that has nothing to do."""

    device = CUDA
    device_index = device_type = stream_id = cuda_stream = 0

    def __init__(self, *args, **kwargs) -> None: ...

    def wait_stream(self, other: Stream) -> None: ...

    def wait_event(self, event: Event) -> None: ...

    def record_event(self, event: Event | None = None) -> Event:
        return event or Event()

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


@contextmanager
def pretend_h100(device_count: int = 8) -> Iterator[FakeTensorMode]:
    """Answer what is asked of torch.cuda as an H100 would, without a driver.

    Yields a mode, under which the tensors that are made are fake.
    """
    answers = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "init": lambda: None,
        "device_count": lambda: device_count,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_capability": lambda device=None: (H100.major, H100.minor),
        "get_device_properties": lambda device=None: H100,
        "_get_device_properties": lambda device=None: H100,
        "get_device_name": lambda device=None: H100.name,
        "is_bf16_supported": lambda including_emulation=True: True,
        "is_current_stream_capturing": lambda: False,
        "synchronize": lambda device=None: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device=None: None,
        "memory_allocated": lambda device=None: 0,
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda device=None: Stream(),
        "default_stream": lambda device=None: Stream(),
        "stream": lambda stream: nullcontext(),
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer, create=True))
        yield FakeTensorMode(allow_non_fake_inputs=True)


@contextmanager
def counted_graphs() -> Iterator[list[torch.fx.GraphModule]]:
    """Have `torch.compile` run the graphs that it makes operator by operator, for nothing here can compile for a GPU.

    Dynamo, its guards and its recompilations are those of the product. Yields a list that grows by each graph.
    """
    graphs: list[torch.fx.GraphModule] = []
    compile_ = torch.compile

    def counting(graph: torch.fx.GraphModule, inputs: Sequence[object]):
        graphs.append(graph)
        return graph.forward

    def compiled(function=None, *, mode=None, options=None, backend=None, **settings):
        return compile_(function, backend=counting, **settings)

    with mock.patch.object(torch, "compile", compiled):
        yield graphs


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
