"""Which FlashAttention computes: torch's own, the second version, or the third or fourth where they are installed.

Holds the choice, its activation for the process, and the proof that it computes what torch's own does. The backend that
calls whichever is active is in `flash`; torch's registry (`torch.nn.attention`, torch 2.11 and later) does the swap.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from enum import StrEnum
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as release
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import attention

from pretrain.errors import ConfigError
from pretrain.models.base import Attend, AttentionUse, Layout

_TRIED_LENGTHS = [1, 130, 61]  # tokens: shorter than a block of the kernels, longer than the largest, between
_ALIKE = 0.999  # cosine of results in half precision; another mask or scale is far below

log = logging.getLogger(__name__)


class Implementation(StrEnum):
    """A version of FlashAttention."""

    auto = "auto"  # 3 on compute capability 9.0 (H100), 4 on 10.0 (B200), where installed and found right; else 2
    fa2 = "fa2"  # torch's own
    fa3 = "fa3"
    fa4 = "fa4"


class _Version(NamedTuple):
    number: int
    module: str  # that torch imports
    packages: tuple[str, ...]  # that it may come from
    majors: tuple[int, ...]  # of the compute capabilities that it has kernels for
    install: str

    @property
    def key(self) -> str:
        """Its name in torch's registry."""
        return f"FA{self.number}"

    def __str__(self) -> str:
        return f"FlashAttention-{self.number}"


_TORCH = "FlashAttention-2 (torch)"
_VERSIONS = {
    Implementation.fa3: _Version(
        number=3,
        module="flash_attn_interface",
        packages=("flash_attn_3", "flashattn-hopper"),
        majors=(9,),
        install="build the folder hopper of github.com/Dao-AILab/flash-attention",
    ),
    Implementation.fa4: _Version(
        number=4,
        module="flash_attn.cute.interface",
        packages=("flash-attn-4",),
        majors=(9, 10),
        install="pip install flash-attn-4",
    ),
}
_FASTEST = {9: Implementation.fa3, 10: Implementation.fa4}  # by the major number of the compute capability


def newer(implementation: Implementation) -> bool:
    """Whether a version is asked for by name that does not come with torch."""
    return implementation in _VERSIONS


def activate(
    wanted: Implementation, use: AttentionUse, device: torch.device, flash: Attend, capability: tuple[int, int]
) -> str:
    """Have `flash` compute in the version that is wanted, and return what the plan of a run says of it.

    `capability` is the device's. Raises `ConfigError` if a version that is named cannot be used; `auto` then goes on
    with torch's own and says why, as a warning if the other is installed.
    """
    deactivate()
    version = _VERSIONS.get(_FASTEST.get(capability[0], wanted) if wanted is Implementation.auto else wanted)
    if version is None:
        return _TORCH
    reason, level = obstacle(version, capability, use.dropout), logging.INFO
    if reason is None:
        reason, level = _tried(version, use, device, flash), logging.WARNING
    if reason is None:
        return f"{version} ({_release(version)})"
    if wanted is not Implementation.auto:
        raise ConfigError(f"attention.implementation={wanted.value}: {reason}; or set fa2, or auto")
    log.log(level, "%s, the fastest for this device, is not used: %s", version, reason)
    return _TORCH


def deactivate() -> None:
    """Go back to torch's own version, in the whole process."""
    if _registered() and attention.current_flash_attention_impl() is not None:
        attention.restore_flash_attention_impl()


def obstacle(version: _Version, capability: tuple[int, int], dropout: float) -> str | None:
    """Return why a version cannot be activated, None if nothing is known that speaks against it."""
    major, minor = capability
    if torch.version.hip is not None:  # AMD's devices have numbers of their own
        return "made for NVIDIA's devices"
    if major not in version.majors:
        made_for = " and ".join(f"{each}.x" for each in version.majors)
        return f"made for compute capability {made_for}, and this device has {major}.{minor}"
    if version.key not in _registered():
        return f"torch {torch.__version__} cannot activate it"
    if dropout:
        return f"it cannot drop attention weights, and attention_dropout={dropout} needs a kernel that can"
    try:
        installed = find_spec(version.module) is not None
    except ImportError as error:  # of the packages around it
        return f"{version.module} is not installed ({error}): {version.install}"
    return None if installed else f"{version.module} is not installed: {version.install}"


def _registered() -> list[str]:
    names = getattr(attention, "list_flash_attention_impls", None)
    return [] if names is None else names()


def _tried(version: _Version, use: AttentionUse, device: torch.device, flash: Attend) -> str | None:
    """Activate a version; return why it was given up again, None if it stays.

    An installed package may fit another torch or have no backward pass, which shows only when it is called.
    """
    expected = list(_results(use, device, flash))
    try:
        attention.activate_flash_attention_impl(version.key)
        found = list(_results(use, device, flash))
    except Exception as error:  # whatever an extension raises: this is its trial
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
    else:
        cosines = [
            torch.nn.functional.cosine_similarity(a.flatten().float(), b.flatten().float(), dim=0)
            for a, b in zip(expected, found, strict=True)
        ]
        worst = float(torch.stack(cosines).min())
        if worst >= _ALIKE:
            return None
        reason = f"its results differ from those of {_TORCH} (cosine {worst:.3f}, allowed {_ALIKE})"
    deactivate()
    return reason


def _results(use: AttentionUse, device: torch.device, flash: Attend) -> Iterator[Tensor]:
    """Yield outputs and gradients of ragged random sequences, for each mask that the model asks for."""
    tokens = sum(_TRIED_LENGTHS)
    generator = torch.Generator(device).manual_seed(0)
    shapes = [(tokens, heads, use.head_width) for heads in (use.heads, use.kv_heads, use.kv_heads, use.heads)]
    q, k, v, upstream = (torch.randn(shape, generator=generator, device=device).to(use.dtype) for shape in shapes)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    offsets = torch.tensor([0, *_TRIED_LENGTHS], device=device).cumsum(0, dtype=torch.int32)
    for causal in use.causal:
        for window in use.windows:
            out = flash(q, k, v, Layout.of(offsets, max(_TRIED_LENGTHS)), causal=causal, window=window)
            yield from (out.detach(), *torch.autograd.grad(out, inputs, upstream))


def _release(version: _Version) -> str:
    """Return the package that a version comes from, with its number; the module where none is registered."""
    for name in version.packages:
        with suppress(PackageNotFoundError):
            return f"{name} {release(name)}"
    return version.module
