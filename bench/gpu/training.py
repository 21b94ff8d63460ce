"""Training steps of a preset on one device: the product's own objective, strategy, optimizer and loop, beside the peer.

Holds Headwater's side and the order of the contestants; the peer is in `peer`, shapes and batches in `shapes`.
"""

from __future__ import annotations

import functools
import time
import traceback
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from bench.gpu.parts import report
from bench.gpu.shapes import SHAPES, Shape, batch_of, drawn
from bench.gpu.stopwatch import FULL, SMALL, Plan, Stopwatch, clean_device, memory_of
from pretrain.compose import configure
from pretrain.config import PretrainConfig
from pretrain.data.lengths import Share
from pretrain.distributed.world import World, joined
from pretrain.errors import HeadwaterError
from pretrain.models.base import named_tensors
from pretrain.objectives.base import Objective
from pretrain.run import build_module, passes_of
from pretrain.train.loop import TrainConfig, TrainState, train
from pretrain.train.metrics import StepMeter
from pretrain.train.peaks import peak_flops
from pretrain.train.summary import ModelSize

BATCHES = 4  # different ones, in turns
CLIP_NORM = 1.0
PREDICTION = "prediction"


def settings(shape: Shape, *, compiled: bool, precision: str = "bf16") -> list[str]:
    """Return the words that configure a contestant: the preset as it is, less what the peer does not do either."""
    return [
        *(f"experiment={shape.experiment}", f"data.seq_len={shape.seq_len}", f"precision={precision}"),
        *(f"compile={'block' if compiled else 'none'}", "strategy.activation_checkpointing=none", "model.dropout=0"),
        *shape.settings,
        *([f"precision.min_width={shape.fp8_width}"] if precision == "fp8" and shape.fp8_width else []),
    ]


def measure(name: str, *, dry: bool) -> None:
    """Report each contestant in the order of its worth: a limit costs those behind it, a failure itself alone."""
    shape, plan = (SHAPES[name].small, SMALL) if dry else (SHAPES[name], FULL)
    if dry:
        torch.compile = functools.partial(torch.compile, backend="eager")  # graphs are captured, and not generated

    def ours(*, compiled: bool, precision: str = "bf16") -> dict[str, Any]:
        return headwater(shape, plan, settings(shape, compiled=compiled, precision=precision))

    def theirs() -> dict[str, Any]:
        from bench.gpu.peer import transformers

        return transformers(shape, plan, settings(shape, compiled=False))

    contestants: dict[str, Callable[[], dict[str, Any]]] = {
        "headwater compiled": lambda: ours(compiled=True),
        "transformers compiled": theirs,
        PREDICTION: lambda: prediction(shape, settings(shape, compiled=False)),
        "headwater": lambda: ours(compiled=False),
        **({"headwater compiled fp8": lambda: ours(compiled=True, precision="fp8")} if shape.fp8 else {}),
    }
    for who, contestant in contestants.items():
        began = time.perf_counter()
        entry = {
            "kind": PREDICTION if who == PREDICTION else "training",
            "shape": name,
            "who": who,
            "step_tokens": shape.step_tokens,
        }
        with clean_device():
            try:
                found = contestant()
            except HeadwaterError as error:  # what the product refuses, such as a precision that it does not have
                found = {"refused": str(error)}
            except Exception as error:  # e.g. out of memory: the others may have room
                traceback.print_exc()
                found = {"failed": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
        report(**entry, **found, seconds=time.perf_counter() - began)


def headwater(shape: Shape, plan: Plan, words: list[str]) -> dict[str, Any]:
    """Train a preset as `python -m pretrain` does, without a corpus; return its figures."""
    cfg = configure(*words)
    with joined() as world:
        module = build_module(cfg, shape.vocab)
        size = ModelSize.of(module, [Share(shape.seq_len, 1.0)])
        strategy = cfg.strategy.build(world=world, precision=cfg.precision, compilation=cfg.compile)
        model = strategy.setup(module, cfg.optim.build)
        fill(module)
        hooks = Hooks(plan, world.device)
        _train(cfg, model, strategy, hooks, shape, world)
        return {
            **hooks.watch.figures(shape.step_tokens, size.flops_per_token, peak_of(world.device)),
            **memory_of(world.device),
            "parameters": size.parameters,
            "flops_per_token": size.flops_per_token,
            "loss": hooks.losses,
        }


def prediction(shape: Shape, words: list[str]) -> dict[str, Any]:
    """Return the bytes that the product predicts for one rank: of weights, gradients and moments, and of all there is.

    Compiled blocks take less than that, for they recompute what is cheap.
    """
    cfg = configure(*words)
    world = World.alone()
    size = ModelSize.of(build_module(cfg, shape.vocab), [Share(shape.seq_len, 1.0)])
    states = size.memory(cfg.strategy, ranks=world.size, precision=cfg.precision)
    needs = passes_of(cfg, shape.vocab, states, world).needs(shape.sequences)
    return {"states_bytes": sum(states), "most_bytes": needs.total}


class Hooks:
    """What the loop calls: the clock after each step, and nothing else."""

    evaluate_every = 0
    log_every = 1  # the stopwatch knows after which steps it waits for the device

    def __init__(self, plan: Plan, device: torch.device) -> None:
        self.meter, self.watch = StepMeter(device), Stopwatch(plan)
        self.losses: list[float | None] = []  # of the first and of the last step
        self._device = device

    def log(self, state: TrainState) -> None:
        """See the end of a step; the meter is read, which waits too, where the stopwatch has waited."""
        self.watch.end_step(state.step, self._device)
        if state.step in (1, self.watch.plan.total):
            self.losses.append(self.meter.read().loss)

    def evaluate(self, state: TrainState) -> None: ...

    def save(self, state: TrainState, *, required: bool) -> None: ...

    def settle(self) -> None: ...

    def is_due(self, state: TrainState) -> bool:
        return False

    def end_early(self) -> bool:
        return False


def _train(cfg: PretrainConfig, model: nn.Module, strategy: Any, hooks: Hooks, shape: Shape, world: World) -> None:
    batches = [batch_of(*drawn(shape, seed)) for seed in range(BATCHES)]
    if world.device.type == "cuda":
        batches = [batch.pin_memory() for batch in batches]
    total = hooks.watch.plan.total
    train(
        model,
        strategy,
        ([batches[step % BATCHES]] for step in range(total)),
        lambda step: 0.1,
        TrainState(),
        cfg=TrainConfig(steps=total, clip_norm=CLIP_NORM),
        seed=cfg.seed,
        world=world,
        hooks=hooks,
        stop=SimpleNamespace(received=False),  # pyright: ignore[reportArgumentType]
    )


@torch.no_grad()
def fill(module: Objective) -> None:
    """Draw first weights on the device itself: other numbers than a run's, of the same distributions."""
    torch.manual_seed(1)
    for name, tensor in named_tensors(module):
        initial = module.initial(name)
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # pyright: ignore
        local.normal_(initial.mean, initial.std) if initial.std else local.fill_(initial.mean)


def peak_of(device: torch.device) -> float | None:
    """Return the dense peak of a device in bf16, FLOP/s, whatever the contestant computes in."""
    return peak_flops(torch.cuda.get_device_name(device), torch.bfloat16) if device.type == "cuda" else None
