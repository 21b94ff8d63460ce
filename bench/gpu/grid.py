"""Matrix products and attention over a grid of the presets' sizes, forward and backward: what a planner counts with.

Holds the grid and its clock. Needs torch alone: the planner's ground is measured also where the product cannot run.
"""

from __future__ import annotations

import inspect
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.parts import missing, report
from bench.gpu.stopwatch import seconds_of

TOKENS = (2048, 8192, 32768)  # of a micro-batch
PRODUCTS = {  # inputs x outputs of the linear layers of the presets; heads padded to a multiple of 64, and as they are
    "gpt2_124m, bert_base": (
        (768, 2304),
        (768, 768),
        (768, 3072),
        (3072, 768),
        (768, 50304),
        (768, 50257),
        (768, 30528),
        (768, 30522),
    ),
    "modernbert_base": ((768, 2304), (768, 2304), (1152, 768), (768, 50368)),
    "llama_1b": ((2048, 3072), (2048, 2048), (2048, 16384), (8192, 2048), (2048, 128256)),
    "llama_8b": ((4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096), (4096, 128256)),
}
LARGEST = 2**31  # elements of a matrix: logits of more are computed in chunks
TIME_S = 0.02  # that a measurement is to take, more or less
LIMIT_S = 18.0  # of each half of the grid
LAUNCHES = 1000  # of a small kernel, one after the other


class Attention(NamedTuple):
    """A batch of whole sequences through one layer's attention."""

    heads: int
    kv_heads: int
    head_dim: int
    seq_len: int
    causal: bool
    window: int | None = None  # keys that a query sees, its own among them

    def flops(self, tokens: int) -> float:
        """Floating-point operations forward: two products of 2 x D for each pair of a query and a key that it sees."""
        seen = (self.seq_len + 1) / 2 if self.causal else self.seq_len
        if self.window is not None:
            seen = min(seen, self.window if self.causal else 2 * self.window - 1)
        return 4.0 * tokens * seen * self.heads * self.head_dim


ATTENTION = (
    *(Attention(12, 12, 64, length, causal=True) for length in (512, 1024, 2048)),  # gpt2_124m
    *(Attention(12, 12, 64, length, causal=False) for length in (128, 512, 1024)),  # bert_base, modernbert_base
    Attention(12, 12, 64, 1024, causal=False, window=65),  # modernbert_base, local
    *(Attention(32, 8, 64, length, causal=True) for length in (1024, 4096)),  # llama_1b
    *(Attention(32, 8, 128, length, causal=True) for length in (1024, 4096, 8192)),  # llama_8b
)
ATTENTION_TOKENS = 16384
NEWER = {"FA3": "flash_attn_interface", "FA4": "flash_attn.cute.interface"}  # what torch imports to activate them


def measure(*, dry: bool) -> None:
    """Report every product, then every attention, with each version of flash attention that can be had."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report(kind="constants", **constants(2**16 if dry else 2**28, device))
    began = time.perf_counter()
    for tokens, inputs, outputs in sizes(dry=dry):
        if time.perf_counter() - began > LIMIT_S:
            report(kind="cut", what="products", reason=f"after {LIMIT_S:.0f} s")
            break
        report(
            kind="product", tokens=tokens, inputs=inputs, outputs=outputs, **product(tokens, inputs, outputs, device)
        )
    began = time.perf_counter()
    attend = _sdpa if device.type == "cpu" else _varlen
    for version, activate in activations(device).items():
        for shape in [each._replace(seq_len=64) for each in ATTENTION[:2]] if dry else ATTENTION:
            if time.perf_counter() - began > LIMIT_S:
                report(kind="cut", what="attention", reason=f"after {LIMIT_S:.0f} s")
                return
            entry = {"kind": "attention", "version": version, **shape._asdict()}
            try:
                activate()
                report(**entry, **attention(attend, shape, 128 if dry else ATTENTION_TOKENS, device))
            except Exception as error:  # a kernel that lacks something; others may have it
                traceback.print_exc()
                report(**entry, failed=f"{type(error).__name__}: {error}")


def constants(elements: int, device: torch.device) -> dict[str, float]:
    """Return what the smallest kernels cost, seconds, and how fast a pass over memory is, bytes/s.

    `host_s` is the time in which the host launches an operator from Python, `device_s` that in which the device takes
    one of those that were captured in a graph.
    """
    x, y, out = (torch.ones(elements, device=device, dtype=torch.bfloat16) for _ in range(3))
    passed = seconds_of(lambda: torch.add(x, y, out=out), device, repeats=5, calls=5)
    small = torch.ones(64, device=device)

    def launches() -> None:
        for _ in range(LAUNCHES):
            small.add_(1.0)

    found = {
        "memory_bytes_per_s": 3 * x.nbytes / passed,
        "host_s": seconds_of(launches, device, repeats=3, calls=1) / LAUNCHES,
    }
    if device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            launches()
        found["device_s"] = seconds_of(graph.replay, device, repeats=3, calls=1) / LAUNCHES
    return found


def sizes(*, dry: bool) -> Iterator[tuple[int, int, int]]:
    """Yield tokens, inputs and outputs of the products, each once; the most used number of tokens first."""
    pairs = dict.fromkeys(pair for group in PRODUCTS.values() for pair in group)
    if dry:
        pairs = dict.fromkeys([(64, 96), (96, 64)])
    for tokens in sorted(TOKENS, key=lambda count: count != 8192) if not dry else (32,):
        for inputs, outputs in pairs:
            if max(tokens * outputs, tokens * inputs, inputs * outputs) <= LARGEST:
                yield tokens, inputs, outputs


def product(tokens: int, inputs: int, outputs: int, device: torch.device) -> dict[str, float]:
    """Return milliseconds and TFLOP/s of a linear layer in bf16: its outcome, its input's gradient, its weight's."""
    x = torch.randn(tokens, inputs, device=device, dtype=torch.bfloat16)
    weight = torch.randn(outputs, inputs, device=device, dtype=torch.bfloat16)
    y = F.linear(x, weight)
    calls: dict[str, Callable[[], Tensor]] = {
        "forward": lambda: F.linear(x, weight),
        "input_gradient": lambda: y @ weight,
        "weight_gradient": lambda: y.T @ x,
    }
    found, flops = {}, 2.0 * tokens * inputs * outputs
    for name, call in calls.items():
        seconds = _seconds(call, flops, device)
        found |= {f"{name}_ms": 1e3 * seconds, f"{name}_tflops": flops / seconds / 1e12}
    return found


def activations(device: torch.device) -> dict[str, Callable[[], None]]:
    """Return how to have attention computed by each version that there is: torch's own first, then FA3 and FA4."""
    if device.type == "cpu":
        return {"sdpa": lambda: None}
    from torch.nn.attention import activate_flash_attention_impl

    installed = {version: module for version, module in NEWER.items() if not missing([module])}
    return {"FA2": lambda: None, **{each: partial(activate_flash_attention_impl, each) for each in installed}}


def attention(attend: Callable[..., Tensor], shape: Attention, tokens: int, device: torch.device) -> dict[str, float]:
    """Return milliseconds and TFLOP/s of a forward pass, and of one with its backward pass."""

    def drawn(heads: int) -> Tensor:
        return torch.randn(tokens, heads, shape.head_dim, device=device, dtype=torch.bfloat16, requires_grad=True)

    q, k, v = drawn(shape.heads), drawn(shape.kv_heads), drawn(shape.kv_heads)
    offsets = torch.arange(0, tokens + 1, shape.seq_len, device=device, dtype=torch.int32)

    def forward() -> Tensor:
        return attend(q, k, v, offsets, shape)

    upstream = torch.randn_like(forward())

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(forward(), (q, k, v), upstream)

    flops = shape.flops(tokens)
    one = _seconds(forward, flops, device)
    two = _seconds(both, 3.5 * flops, device)  # backward: 5 products for the 2 of forward
    return {
        "tokens": tokens,
        "forward_ms": 1e3 * one,
        "forward_tflops": flops / one / 1e12,
        "both_ms": 1e3 * two,
        "both_tflops": 3.5 * flops / two / 1e12,
    }


def _varlen(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, shape: Attention) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # torch 2.11 takes grouped heads as they are, later versions need the option.
    grouped: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
    beside = -1 if shape.window is None else shape.window - 1
    out = varlen_attn(
        *(q, k, v, offsets, offsets, shape.seq_len, shape.seq_len),
        window_size=(beside, 0 if shape.causal else beside),
        **(grouped if shape.heads != shape.kv_heads else {}),
    )
    assert isinstance(out, Tensor)
    return out


def _sdpa(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, shape: Attention) -> Tensor:
    rows = [each.unflatten(0, (len(offsets) - 1, shape.seq_len)).transpose(1, 2) for each in (q, k, v)]
    grouped = shape.heads != shape.kv_heads
    return F.scaled_dot_product_attention(rows[0], rows[1], rows[2], is_causal=shape.causal, enable_gqa=grouped)


def _seconds(call: Callable[[], Any], flops: float, device: torch.device) -> float:
    """Return the seconds of a call, of as many calls as take about `TIME_S` at half of what an H100 does."""
    calls = max(3, min(200, int(TIME_S * 4e14 / flops / 5))) if device.type == "cuda" else 2
    return seconds_of(call, device, repeats=5 if device.type == "cuda" else 2, calls=calls)
