"""Private copies in host memory: equal at the call, untouched by what follows, in memory that is used again."""

import pytest
import torch
from torch import nn

from pretrain.checkpoint.base import WEIGHT, Fragment
from pretrain.checkpoint.fragments import FragmentReader, write_fragments
from pretrain.checkpoint.staging import Staging
from pretrain.errors import ResourceError


def odd_fragments():
    """Views of live tensors, of every type that is saved, with sizes that leave what follows unaligned."""
    live = torch.arange(40, dtype=torch.float32)
    tensors = {
        "parameter": nn.Parameter(torch.randn(7)),
        "mask": torch.tensor([True, False, True]),
        "scalar": torch.tensor(5.0),
        "slice": live[3:16],
        "strided": live[::3],
        "empty": live[:0],
        "half": torch.arange(5, dtype=torch.bfloat16),
        "count": torch.tensor([2**40, 7]),
    }
    return [Fragment(name, WEIGHT, tuple(data.shape), 0, data) for name, data in tensors.items()]


def test_copies_are_equal_and_private():
    fragments = odd_fragments()
    before = [fragment.data.detach().clone() for fragment in fragments]
    staged = Staging().copy(fragments)
    with torch.no_grad():
        for fragment in fragments:
            fragment.data.zero_()
    for fragment, copy, value in zip(fragments, staged, before, strict=True):
        assert copy[:4] == fragment[:4]
        assert copy.data.dtype == value.dtype and not copy.data.requires_grad
        assert torch.equal(copy.data, value)


def test_memory_is_allocated_once():
    memory = Staging()
    first = memory.copy(odd_fragments())
    second = memory.copy(odd_fragments())
    assert [one.data.data_ptr() for one in first] == [other.data.data_ptr() for other in second]


@pytest.mark.parametrize("stage", [list, Staging().copy])
def test_every_kind_of_fragment_is_read_back_as_it_was(tmp_path, stage):
    fragments = odd_fragments()
    index = write_fragments(tmp_path / "fragments.safetensors", stage(fragments))
    tensors = {
        name: {kind: {"shape": shape, "dtype": dtype, "fragments": [[index["file"], start, numel]]}}
        for name, kind, shape, dtype, start, numel in index["fragments"]
    }
    read = FragmentReader(tmp_path, tensors)
    for fragment in fragments:
        assert torch.equal(read(fragment.name, WEIGHT, 0, fragment.data.numel()), fragment.data.detach().reshape(-1))


def test_no_memory_names_the_setting():
    endless = torch.zeros(1).expand(2**50)
    with pytest.raises(ResourceError, match=r"checkpoint\.asynchronous=true: no 4,503,599,627,370,496 bytes of host"):
        Staging().copy([Fragment("endless", WEIGHT, (2**50,), 0, endless)])
