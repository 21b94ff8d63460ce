"""torch.compile: how much of the model is compiled, and what happens where torch cannot compile it.

Holds the choice and its application; strategies call it before they wrap the module. Which attention leaves the graph
is said where it is computed, in `models/attention`.

Blocks of one kind share their graphs, because dynamo keeps graphs by the code that it traced and treats weights as
inputs. Sizes are variables in them, so that ragged batches have one graph a kind of block and mode (training or not).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import torch
from torch import Tensor

from pretrain.errors import ConfigError, check
from pretrain.models.base import Model
from pretrain.models.generation.cache import KeyValueCache, SourceCache
from pretrain.models.layers import SeenSource
from pretrain.objectives.base import Objective
from pretrain.objectives.cross_entropy import ChunkLoss
from pretrain.registry import register
from pretrain.strategy.activation_checkpointing import Recompute, is_recomputed

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")  # of torch.compile
CUDA_GRAPHS = ("reduce-overhead", "max-autotune")  # those that replay recorded kernels at recorded addresses
GRAPHS = 32  # of one kind of block; torch's own limit of 8 is below three kinds of layers, twice each, and their plans

log = logging.getLogger(__name__)


class Scope(StrEnum):
    """What one compiled graph spans."""

    auto = "auto"
    none = "none"
    block = "block"
    model = "model"


class Engine(Protocol):
    """What is asked of a strategy's settings here."""

    activation_checkpointing: Recompute

    @property
    def title(self) -> str:
        """What a message calls it."""
        ...

    @property
    def compiles(self) -> bool:
        """Whether blocks can be compiled under it."""
        ...

    @property
    def shards_weights(self) -> bool:
        """Whether a rank holds parts of the weights between passes."""
        ...


@dataclass(kw_only=True)
class CompileConfig:
    """Compiles in place, so parameter names stay as they are."""

    scope: Scope = Scope.none  # none, each block by itself (fast to compile, any depth), or the whole model
    mode: str = "default"  # torch.compile's: default, reduce-overhead, max-autotune, max-autotune-no-cudagraphs

    def __post_init__(self) -> None:
        check(self.mode in MODES, "compile.mode", self.mode, f"choose one of {', '.join(MODES)}")
        rule = "nothing is compiled with compile=none; set compile=auto, block or model, or leave this out"
        check(self.scope is not Scope.none or self.mode == "default", "compile.mode", self.mode, rule)

    def on(self, device_type: str, strategy: Engine) -> Scope:
        """Return what is compiled on devices of a type ("cpu", "cuda"): of `auto`, blocks on GPUs where they can be."""
        if self.scope is not Scope.auto:
            return self.scope
        return Scope.block if device_type == "cuda" and strategy.compiles else Scope.none

    def check_start(self, *, device_type: str, strategy: Engine, ragged: str | None) -> None:
        """Raise `ConfigError` where blocks cannot be compiled, and for CUDA graphs of what changes size or moves.

        `ragged` is what makes batches of uneven sizes, None if all are alike.
        """
        scope = self.on(device_type, strategy)
        if scope is Scope.none:
            return
        rule = f"strategy={strategy.title} gathers weights inside of blocks, by code that torch cannot compile"
        check(strategy.compiles, "compile", scope.value, f"{rule}; set compile=none, or strategy=fsdp2")
        chosen = strategy.activation_checkpointing
        rule = "needs whole blocks compiled, and attention on a CPU is not if sequences are ragged; set it to none"
        whole = chosen is Recompute.none or device_type == "cuda" or ragged is None
        check(whole, "strategy.activation_checkpointing", chosen.value, f"{rule}, or compile=none")
        if self.mode not in CUDA_GRAPHS:
            return
        fix = "set compile.mode=default or max-autotune-no-cudagraphs"
        rule = f"records CUDA graphs, one for each size of a batch, and sizes differ with {ragged}; {fix}"
        check(ragged is None, "compile.mode", self.mode, rule)
        rule = f"records CUDA graphs, which read weights at fixed addresses, and strategy={strategy.title}"
        check(not strategy.shards_weights, "compile.mode", self.mode, f"{rule} moves them; {fix}, or strategy=ddp")

    def described(self, device_type: str, strategy: Engine) -> str:
        """Say what is compiled, for the plan of a run."""
        scope = self.on(device_type, strategy)
        if scope is Scope.none:
            why = f" (compile=auto, {device_type}, strategy={strategy.title})"
            return f"nothing{why if self.scope is Scope.auto else ''}"
        mode = "" if self.mode == "default" else f", {self.mode}"
        part = "each block by itself" if scope is Scope.block else "the model as a whole"
        return f"{part}, in the first steps{mode}"

    def advise(self, device_type: str) -> None:
        """Warn where compilation is asked for on devices of a type that have little from it."""
        if device_type == "cpu" and self.scope in (Scope.block, Scope.model):
            log.warning(
                "compile=%s: on a CPU the first steps wait for the compiler, and a run may never win that back; "
                "compile=auto compiles on GPUs alone, compile=none nowhere",
                self.scope,
            )

    def apply(self, model: Model, scope: Scope) -> None:
        """Compile so much of the model at its first calls, with whatever was wrapped around its forward passes."""
        if scope is Scope.none:
            return
        parts = {f"block {number}": block for number, block in enumerate(model.blocks)}
        chosen: list[tuple[str, Any]] = list(parts.items()) if scope is Scope.block else [("model", model)]
        for name, part in chosen:
            options = {"mode": self.mode, "fullgraph": is_recomputed(part)}  # else a break would leave all of it eager
            part.forward = _Part(f"compile={scope}: {name}", part.forward, options)
        model.whole_tables = True
        model.forward = _watched(model.forward)

    def apply_to_loss(self, objective: Objective, scope: Scope, device: torch.device) -> None:
        """Fuse the passes over the logits, on a GPU; on a CPU torch's own softmax is 4 times as fast (torch 2.13)."""
        if scope is not Scope.none and device.type != "cpu":
            objective.chunk_loss = fused(objective.chunk_loss)


@register("compile", "auto")
@dataclass(kw_only=True)
class CompileAuto(CompileConfig):
    """Compile each block by itself on GPUs, nothing on CPUs."""

    scope: Scope = Scope.auto


@register("compile", "none")
@dataclass(kw_only=True)
class CompileNone(CompileConfig):
    """Run eagerly."""


@register("compile", "block")
@dataclass(kw_only=True)
class CompileBlock(CompileConfig):
    """Compile each block by itself."""

    scope: Scope = Scope.block


@register("compile", "model")
@dataclass(kw_only=True)
class CompileModel(CompileConfig):
    """Compile the whole model as one graph."""

    scope: Scope = Scope.model


def fused(arithmetic: ChunkLoss) -> ChunkLoss:
    """Compile the loss's arithmetic: one graph for chunks of all numbers of rows but 1, another without gradients."""
    compiled = torch.compile(arithmetic)

    def call(logits: Tensor, targets: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
        for rows in (logits, targets):
            torch._dynamo.maybe_mark_dynamic(rows, 0)  # pyright: ignore[reportPrivateImportUsage]
        return compiled(logits, targets, *options)

    return call


class _Part:
    """The forward pass of a part of the model, compiled."""

    def __init__(self, name: str, forward: Callable[..., Tensor], options: dict[str, Any]) -> None:
        def compiled(*args: Any, **kwargs: Any) -> Tensor:  # one code for all parts: they share its graphs
            return forward(*args, **kwargs)

        self.name, self.forward = name, forward
        self.compiled: Callable[..., Tensor] | None = torch.compile(compiled, dynamic=True, **options)
        self.ran: set[bool] = set()  # modes in which it ran compiled: with gradients, without

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the outcome; raise `ConfigError` for what cannot be compiled from the start, warn of it later."""
        compiled = self.compiled
        if compiled is None or _is_eager(x, *args, *kwargs.values()):
            return self.forward(x, *args, **kwargs)
        from torch._dynamo.exc import TorchDynamoException

        mode = torch.is_grad_enabled()
        try:
            found = compiled(x, *args, **kwargs)
        except TorchDynamoException as error:
            reason = _reason(error, lambda: compiled(x, *args, **kwargs))
            if mode not in self.ran:
                raise ConfigError(
                    f"{self.name} cannot be compiled: {reason}\nset compile=none to run without"
                ) from error
            log.warning("%s runs eagerly from here on, at %d tokens: %s", self.name, len(x), reason)
            self.compiled = None
            return self.forward(x, *args, **kwargs)
        self.ran.add(mode)
        return found


def _is_eager(*inputs: Any) -> bool:
    """Return whether a pass is not worth a graph: with a cache, which grows by the token, or of less than two tokens.

    For sizes of 0 and 1 torch makes graphs of their own.
    """
    seen = (one.states if isinstance(one, SeenSource) else one for one in inputs)
    return any(
        len(one) < 2 if isinstance(one, Tensor) else isinstance(one, (KeyValueCache, SourceCache)) for one in seen
    )


def _reason(error: Exception, again: Callable[[], Any]) -> str:
    """Return why a part cannot be compiled; of one with too many graphs, what it would need another one for."""
    if type(error).__name__ != "FailOnRecompileLimitHit":
        return str(error)
    try:
        with torch.compiler.set_stance("fail_on_recompile"):
            again()
    except RuntimeError as found:
        return f"it has {GRAPHS} graphs already. {found}"
    return str(error)


def _watched(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the model's forward pass under the settings of compilation; graphs made after the first pass are said."""
    from torch._dynamo.utils import counters

    ran: set[bool] = set()  # with gradients, without

    def run(tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        mode, before = torch.is_grad_enabled(), counters["stats"]["unique_graphs"]
        with _settings():
            found = forward(tokens, *args, **kwargs)
        made = counters["stats"]["unique_graphs"] - before
        if made and mode in ran:
            log.warning(
                "compile: %d more graphs, for a batch of %d tokens; TORCH_LOGS=recompiles says why", made, len(tokens)
            )
        ran.add(mode)
        return found

    return run


@contextmanager
def _settings() -> Iterator[None]:
    """Set what torch has as settings of the process alone, while the model runs, and set it back.

    A graph break or a limit that is reached is an error, rather than a part that runs eagerly. Sizes that are equal at
    first may differ later (a batch of as many tokens as the model is wide). And blocks are compiled whole, not cut by
    the buckets of DistributedDataParallel, whose hooks run between blocks as they are.
    """
    import torch._dynamo as dynamo
    from torch.fx.experimental import _config

    shapes: Any = _config

    settings = {"optimize_ddp": False, "recompile_limit": GRAPHS, "fail_on_recompile_limit_hit": True}
    with dynamo.config.patch(settings), shapes.patch(use_duck_shape=False), dynamo.error_on_graph_break(True):
        yield
