"""Every attention backend that runs on a CPU, and what the others refuse there."""

import math
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
from attention_laws import (
    BIASES,
    CASES,
    HEADS,
    MASKS,
    check_agrees_with_eager,
    check_drops_weights,
    check_isolates_sequences,
    layout,
    random_bias,
    random_qkv,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.errors import ConfigError
from pretrain.models.attention.auto import AutoConfig, make_auto
from pretrain.models.attention.eager import EagerConfig, eager
from pretrain.models.attention.flash import FlashConfig, kernel_window, make_flash
from pretrain.models.attention.flex import FlexConfig, biased_score, document_mask, make_flex
from pretrain.models.attention.masks import visible
from pretrain.models.attention.sdpa import SdpaConfig, sdpa
from pretrain.models.base import AttentionUse, Layout

SOME = list(product(CASES, MASKS, HEADS))[::5]  # each mask with each number of heads, each case with each of these
RELATIVE = "model.positions=relative"
SCALED = [{"scale": 1.0}, *({"biased": kind, **scale} for kind in BIASES for scale in ({}, {"scale": 0.3}))]
no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="tests the refusal where there is no CUDA device")


def test_eager_is_the_textbook_formula():
    """Loops over queries and keys in float64, with the rules of `Attend` written out."""
    q_lengths, k_lengths = [2, 3], [4, 3]
    q, k, v = (x.detach().double() for x in random_qkv(5, 7, (4, 2), "cpu", torch.float32))
    for causal, window in MASKS:
        if window is not None and not causal:
            continue  # refused: see the law
        out = eager(q, k, v, layout(q_lengths, k_lengths), causal=causal, window=window)
        for s, (q_start, k_start) in enumerate([(0, 0), (2, 4)]):
            for i in range(q_lengths[s]):
                position = i + k_lengths[s] - q_lengths[s]
                keys = [j for j in range(k_lengths[s]) if not causal or j <= position]
                keys = [j for j in keys if window is None or abs(position - j) < window]
                for head in range(4):
                    dots = [float(q[q_start + i, head] @ k[k_start + j, head // 2]) / math.sqrt(16) for j in keys]
                    total = sum(math.exp(dot) for dot in dots)
                    weighted = [
                        math.exp(d) / total * v[k_start + j, head // 2] for d, j in zip(dots, keys, strict=True)
                    ]
                    torch.testing.assert_close(out[q_start + i, head], torch.stack(weighted).sum(0))


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("case", CASES)
def test_sdpa_agrees_with_eager(case, mask, heads):
    check_agrees_with_eager(sdpa, case, mask, heads)


@pytest.mark.parametrize(("case", "mask", "heads"), SOME)
@pytest.mark.parametrize("options", SCALED, ids=str)
def test_sdpa_agrees_with_eager_with_a_scale_and_a_bias(case, mask, heads, options):
    check_agrees_with_eager(sdpa, case, mask, heads, **options)


@pytest.mark.parametrize(("case", "mask", "heads"), SOME)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.004)])
def test_sdpa_agrees_with_eager_in_the_code_that_drops_weights(case, mask, heads, dtype, tolerance):
    """The probability is so small that nothing is dropped and nothing is scaled."""
    attend = partial(sdpa, dropout=1e-12)
    check_agrees_with_eager(attend, case, mask, heads, dtype=dtype, tolerance=tolerance)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("biased", [None, *BIASES])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.004)])
def test_a_scale_and_a_bias_are_kept_by_the_code_that_drops_weights(case, biased, dtype, tolerance):
    attend = partial(sdpa, dropout=1e-12)
    options = {"scale": 0.3, "biased": biased, "dtype": dtype, "tolerance": tolerance}
    check_agrees_with_eager(attend, case, (True, None), (4, 2), **options)


@settings(max_examples=30)
@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=20),
    st.sampled_from(MASKS),
    st.sampled_from(HEADS),
    st.sampled_from([None, *BIASES]),
)
def test_sdpa_agrees_with_eager_on_any_lengths(lengths, mask, heads, biased):
    check_agrees_with_eager(sdpa, (lengths, None), mask, heads, biased=biased)


@pytest.mark.parametrize("biased", [None, *BIASES])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("attend", [eager, sdpa])
def test_sequences_are_isolated(attend, mask, biased):
    check_isolates_sequences(attend, mask, biased=biased)


def test_an_upper_bound_serves_as_max_len():
    q, k, v = random_qkv(12, 12, (4, 4), "cpu", torch.float32)
    exact, bound = layout([4, 4, 4]), layout([4, 4, 4])
    bound.max_q = bound.max_k = 99
    torch.testing.assert_close(sdpa(q, k, v, bound, causal=True), sdpa(q, k, v, exact, causal=True))


@pytest.mark.parametrize("biased", [None, *BIASES])
@pytest.mark.parametrize("window", [None, 2])
def test_sequences_of_one_length_never_read_the_offsets(window, biased):
    """Offsets on the meta device cannot be read: on a GPU reading them would wait for the device."""
    q, k, v = random_qkv(12, 12, (4, 4), "cpu", torch.float32)
    bias = random_bias(biased, 12, 12, 4, causal=True)[0] if biased else None
    uniform = layout([4, 4, 4])
    expected = sdpa(q, k, v, uniform, causal=True, window=window, bias=bias)
    uniform.q_offsets = uniform.k_offsets = uniform.q_offsets.to("meta")
    torch.testing.assert_close(sdpa(q, k, v, uniform, causal=True, window=window, bias=bias), expected)


def test_compiled_code_serves_all_ragged_batches():
    from torch._dynamo import reset
    from torch._dynamo.testing import CompileCounter

    reset()
    counter, compiled = CompileCounter(), []
    attend = torch.compile(lambda q, k, v, packed: 2 * sdpa(q, k, v, packed, causal=True), backend=counter)
    for lengths in ([5, 9], [3, 17, 4], [8, 2, 40, 1], [33, 6], [1, 2, 3, 4, 50]):
        q, k, v = random_qkv(sum(lengths), sum(lengths), (4, 4), "cpu", torch.float32)
        expected = 2 * sdpa(q, k, v, layout(lengths), causal=True)
        torch.testing.assert_close(attend(q, k, v, layout(lengths)), expected)
        compiled.append(counter.frame_count)
    assert compiled[-1] == compiled[1] > 0, "once for the first shape, once for all others"


@pytest.mark.parametrize(
    ("causal", "lengths", "biased"),
    [
        *((causal, [9, 2, 14], "relative") for causal in (True, False)),  # which leave the compiled code
        *((False, [8, 8], kind) for kind in BIASES),
    ],
)
def test_compiled_code_keeps_the_window_and_the_bias(causal, lengths, biased):
    from torch._dynamo import reset

    reset()
    bias, terms = random_bias(biased, sum(lengths), sum(lengths), 4, causal=causal)
    qkv = random_qkv(sum(lengths), sum(lengths), (4, 2), "cpu", torch.float32)
    inputs = [*qkv, *terms]

    def attend(backend, q, k, v, bias, packed, window):
        return backend(q, k, v, packed, causal=causal, window=window, bias=bias)

    compiled = torch.compile(partial(attend, sdpa), backend="aot_eager")
    found, expected = (f(*qkv, bias, layout(lengths), 3) for f in (compiled, partial(attend, eager)))
    everywhere = attend(eager, *qkv, bias, layout(lengths), None)
    assert not torch.allclose(expected, everywhere, atol=1e-2), "a window that hides something"
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    gradients = (torch.autograd.grad(out, inputs, upstream) for out in (found, expected))
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attend", [eager, sdpa])
def test_dropout_keeps_the_mean(attend):
    q, k, v = (x.detach() for x in random_qkv(512, 512, (4, 4), "cpu", torch.float32))
    ones = torch.ones_like(v)
    torch.manual_seed(0)
    out = attend(q, k, ones, layout([256, 256]), causal=False, dropout=0.5)
    assert out.std() > 0.01
    assert abs(float(out.mean()) - 1) < 0.02


def test_a_seed_decides_what_is_dropped_backwards_as_forwards():
    check_drops_weights(sdpa, [5, 12, 9], (False, 3), (4, 2))


def test_flex_masks_what_the_others_mask():
    for q_lengths, k_lengths in CASES:
        if 0 in q_lengths:
            continue
        own_keys = k_lengths or q_lengths
        ragged = layout(q_lengths, k_lengths)
        for causal, window in MASKS:
            blocks = [
                visible(torch.tensor([q]), torch.tensor([k]), q, k, causal, window)[0]
                for q, k in zip(q_lengths, own_keys, strict=True)
            ]
            seen = document_mask(ragged, sum(q_lengths), sum(own_keys), causal, window)
            q, k = torch.arange(sum(q_lengths))[:, None], torch.arange(sum(own_keys))[None, :]
            torch.testing.assert_close(seen(torch.tensor(0), torch.tensor(0), q, k), torch.block_diag(*blocks).bool())


@pytest.mark.parametrize("biased", BIASES)
@pytest.mark.parametrize("causal", [True, False])
def test_flex_adds_to_scores_what_the_others_add(causal, biased):
    """Keys and values of one-hot vectors show scores: eager's softmax is undone by its logarithm, up to a constant."""
    for q_lengths, k_lengths in CASES:
        if 0 in q_lengths:
            continue
        num_q, num_k, ragged = sum(q_lengths), sum(k_lengths or q_lengths), layout(q_lengths, k_lengths)
        bias, terms = random_bias(biased, num_q, num_k, 4, causal=causal)
        nothing, identity = torch.zeros(num_q, 4, 8), torch.eye(num_k)[:, None].expand(-1, 4, -1)
        weights = eager(nothing, torch.zeros(num_k, 4, 8), identity, ragged, causal=False, bias=bias)
        seen = weights > 0
        heads, q, k = torch.arange(4)[None, :, None], torch.arange(num_q)[:, None, None], torch.arange(num_k)
        found = biased_score(ragged, num_q, num_k, bias)(torch.zeros(()), torch.tensor(0), heads, q, k)
        rebuilt = found.masked_fill(~seen, float("-inf")).softmax(-1)
        upstream = torch.randn(weights.shape, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(rebuilt, weights)
        gradients = (torch.autograd.grad(x, terms, upstream) for x in (rebuilt, weights))
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("mask", [*MASKS, (False, 1)])
def test_the_window_of_flash_hides_what_the_others_hide(mask):
    """The kernel lets query i see keys i - left to i + right of as many keys, without a limit where it is -1."""
    (causal, window), length = mask, 9
    left, right = (length if side == -1 else side for side in kernel_window(window, causal))
    for i in range(length):
        ours = [j for j in range(length) if (j <= i or not causal) and (window is None or abs(i - j) < window)]
        assert [j for j in range(length) if i - left <= j <= i + right] == ours


@pytest.mark.parametrize(
    ("config", "dtype", "dropout", "bias", "refusal"),
    [
        (FlashConfig, torch.float32, 0.0, None, "precision=fp32: attention=flash computes in half precision"),
        (FlashConfig, torch.bfloat16, 0.1, None, None),
        (FlashConfig, torch.bfloat16, 0.0, RELATIVE, "model.positions=relative: attention=flash adds no bias"),
        (FlexConfig, torch.float32, 0.1, None, "attention_dropout=0.1: attention=flex has no dropout"),
        (FlashConfig, torch.float16, 0.0, None, None),
        (FlexConfig, torch.float32, 0.0, RELATIVE, None),
        *((config, torch.float32, 0.1, RELATIVE, None) for config in (AutoConfig, EagerConfig, SdpaConfig)),
    ],
)
def test_each_backend_says_what_it_cannot_compute(config, dtype, dropout, bias, refusal):
    expected = pytest.raises(ConfigError, match=refusal) if refusal else nullcontext()
    with expected:
        config().check(dtype=dtype, dropout=dropout, dropout_key="attention_dropout", bias=bias)


def test_flex_refuses_heads_that_no_kernel_is_generated_for():
    use = AttentionUse(heads=4, kv_heads=2, head_width=8, causal=(True,), windows=(None,), biased=False)
    with pytest.raises(ConfigError, match=r"attention=flex: computes heads of 16 and more, .* has heads of 8; .*heads"):
        FlexConfig().start(use, torch.device("cuda"))
    assert FlexConfig().start(replace(use, head_width=16), torch.device("cuda")) == "flex"


@no_cuda
def test_gpu_backends_refuse_a_machine_without_one():
    with pytest.raises(ConfigError, match=r"attention=flash: needs a CUDA device.*attention=sdpa"):
        FlashConfig().build()
    with pytest.raises(ConfigError, match=r"attention=flex: needs a CUDA device.*attention=sdpa"):
        FlexConfig().build()
    assert AutoConfig().build() is sdpa
    assert SdpaConfig().build() is sdpa
    assert EagerConfig().build() is eager


@pytest.mark.parametrize(("make", "name"), [(make_flash, "flash"), (make_flex, "flex")])
def test_gpu_backends_refuse_tensors_elsewhere(make, name):
    q, k, v = random_qkv(4, 4, (4, 4), "cpu", torch.float32)
    with pytest.raises(ConfigError, match=rf"attention={name}.*cpu.*attention=sdpa"):
        make()(q, k, v, layout([4]), causal=True)


class Operators(TorchDispatchMode):
    """Keeps the arguments of calls of torch's flash attention."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator is torch.ops.aten._flash_attention_forward.default:
            self.calls.append((args, kwargs))
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("mask", "asked"),
    [((True, None), (True, -1, 0)), ((True, 3), (False, 2, 0)), ((False, 3), (False, 2, 2))],
)
def test_flash_drops_weights_in_the_kernel_on_the_ragged_stream(mask, asked):
    """The operator beneath `varlen_attn`, on a fake device: with the same arguments, and the probability."""
    causal, window = mask
    with FakeTensorMode(), Operators() as operators:
        q, k, v = (torch.empty((9, heads, 16), dtype=torch.bfloat16, device="cuda") for heads in (4, 2, 2))
        offsets = torch.empty(3, dtype=torch.int32, device="cuda")
        out = make_auto()(q, k, v, Layout.of(offsets, 6), causal=causal, window=window, dropout=0.1, scale=0.3)
    [(args, options)] = operators.calls
    assert out.shape == q.shape and out.dtype == q.dtype
    assert args[5:10] == (6, 6, 0.1, asked[0], False)
    assert (options["scale"], options["window_size_left"], options["window_size_right"]) == (0.3, *asked[1:])
