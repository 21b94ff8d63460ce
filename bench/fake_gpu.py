"""An H100 that is not there: what torch.cuda would say of it, and tensors on it that have no values.

For torch with a guard (`fake_gpu_guard`), which is loaded before it. Holds no model and no measurement: tests of steps
and `roofline` stand on it.

Two operators are others than on a GPU, because torch's CPU build lacks their CUDA kernels and so decomposes them:
RMSNorm becomes several operators, and `scaled_dot_product_attention` plain products.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from unittest import mock

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch._subclasses import fake_impls, fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode

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
    torch._C._ensureCUDADeviceGuardSet()  # a CUDA build's own guard asks a driver
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer, create=True))
        # A CUDA build would start the driver for the first fake tensor.
        stack.enter_context(mock.patch.object(fake_tensor, "init_gpu_context", lambda device: None))
        # The decomposition of torch 2.11 and 2.12 takes the dtype for a factor.
        added = torch.ops.aten.addmm.dtype_out
        stack.enter_context(mock.patch.dict(fake_impls.op_implementations_dict, {added: _added_product}))
        stack.enter_context(mock.patch.dict(decomposition_table)).pop(added, None)
        yield FakeTensorMode(allow_non_fake_inputs=True)


def _added_product(mode, operator, total: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype, *, out: Tensor):
    """Return what `addmm` writes into."""
    assert total.shape == out.shape == (left.shape[0], right.shape[1]) and left.shape[1] == right.shape[0]
    assert total.dtype == out.dtype == dtype
    return out
