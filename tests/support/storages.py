"""The memory of all tensors of a process, found by looking at every object that it has."""

import gc
from contextlib import suppress

import torch


def storages() -> dict[int, int]:
    """Return address and bytes of every storage, on any device, that a tensor known to Python refers to.

    For processes without other threads at work: a list of all objects holds tuples that they are building, and breaks
    them (SystemError in CPython 3.11 and 3.12).
    """
    gc.collect()
    found: dict[int, int] = {}
    # By type, for asking objects for their class makes some of them warn or import.
    for tensor in [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]:
        for part in (tensor, tensor.grad) if tensor.is_leaf and tensor.grad is not None else (tensor,):
            with suppress(RuntimeError):  # sparse tensors, and stand-ins while torch compiles, have no storage to see
                storage = (part.to_local() if hasattr(part, "to_local") else part).untyped_storage()
                if storage.device.type != "meta":
                    found[storage.data_ptr()] = storage.nbytes()
    return found
