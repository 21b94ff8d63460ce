"""What scaled_dot_product_attention is asked on CUDA devices, by a call on a fake one; its choice, on the CPU."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from attention_laws import layout, random_qkv
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from pretrain.models.attention.sdpa import SdpaConfig, sdpa
from pretrain.models.attention.sdpa_kernels import added, kernel_of, repeated
from pretrain.models.attention.sdpa_ragged import Mask, attend_dense, mask_of
from pretrain.models.base import AttentionUse

USE = AttentionUse(heads=4, kv_heads=2, head_width=16, causal=(True,), windows=(None,), biased=False)
CPU = torch.device("cpu")


class Asked(TorchFunctionMode):
    """Keeps what sdpa is called with, and answers with the queries."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            self.calls.append((*args, kwargs))
            return args[0]
        return function(*args, **kwargs or {})


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 16), (torch.bfloat16, 16), (torch.bfloat16, 264)])
@pytest.mark.parametrize("masked", [False, True])
def test_grouped_heads_are_repeated_where_no_fused_kernel_takes_them(dtype, width, masked):
    """That is in fp32, under every mask, and where heads are wider than flash takes."""
    with FakeTensorMode(), Asked() as asked:
        q, k, v = (torch.empty((128, heads, width), dtype=dtype, device="cuda") for heads in (4, 2, 2))
        mask = torch.empty((1, 1, 64, 64), dtype=dtype, device="cuda") if masked else None
        out = attend_dense(q, k, v, 2, Mask(mask, not masked), None, 0.1, None)
    [(query, key, value, options)] = asked.calls
    takes_groups = dtype == torch.bfloat16 and width == 16 and not masked
    assert out.shape == q.shape and query.shape == (2, 4, 64, width)
    assert key.shape == value.shape == (2, 2 if takes_groups else 4, 64, width)
    assert (options["enable_gqa"], options["dropout_p"], options["is_causal"]) == (takes_groups, 0.1, not masked)


def test_repeated_heads_change_nothing():
    q, k, v = random_qkv(24, 24, (4, 2), "cpu", torch.float32)
    once, twice = (sdpa(q, *kv, layout([24]), causal=True) for kv in ((k, v), (repeated(k, 2), repeated(v, 2))))
    torch.testing.assert_close(once, twice)


@pytest.mark.parametrize("window", [None, 3])
def test_masks_for_cuda_are_added_to_scores_and_their_rows_are_aligned(window):
    """To 16 bytes: the kernel copies others, in every layer."""
    lengths = ([5, 13, 2], [5, 13, 2])
    seen, mask = (mask_of(*lengths, False, window, None, CPU, dtype).tensor for dtype in (None, torch.bfloat16))
    assert seen.dtype == torch.bool and mask.shape == seen.shape == (3, 1, 13, 13)
    assert torch.equal(mask, torch.zeros(()).masked_fill(~seen, float("-inf")))
    assert mask.dtype == torch.bfloat16 and all(stride % 8 == 0 for stride in mask.stride()[:-1])
    assert added(seen[..., :8], torch.float32).is_contiguous()


def test_the_kernel_that_torch_takes_is_named():
    """On the CPU its rules are others: there, no fused kernel drops weights, and nothing is said of it."""
    assert kernel_of(USE, CPU, masked=False) == ("flash", [])
    assert kernel_of(replace(USE, dropout=0.1), CPU, masked=True) == ("math", [])
    assert SdpaConfig().start(USE, CPU) == "sdpa"
