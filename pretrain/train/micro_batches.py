"""How many sequences a micro-batch has: as many as are said, as hold so many tokens, or as fit into memory.

Holds the rule and the search. What a micro-batch takes up is predicted by `strategy/activations`; that a step means the
same however it is divided is the loop's and the loader's.
"""

from __future__ import annotations

import gc
import logging
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from pretrain.data.batch import Batch
from pretrain.data.course import micro_batches_per_step
from pretrain.distributed.world import World
from pretrain.errors import ResourceError, check
from pretrain.models.base import Attend, AttentionConfig
from pretrain.objectives.base import Objective
from pretrain.registry import choices, plain
from pretrain.strategy.activation_checkpointing import RecomputationConfig
from pretrain.strategy.activations import Activations, activations
from pretrain.strategy.base import Memory, StrategyConfig
from pretrain.strategy.compile import CompileConfig, Scope
from pretrain.strategy.precision import Precision
from pretrain.train.batch_growth import GrowthConfig
from pretrain.train.loop import AUTO, TrainConfig

DEFAULT = 8  # sequences, where nothing says how many
CPU_TOKENS = 8192  # of a micro-batch that is found on a CPU: a larger one is not faster there, and no error tells
MARGIN = 0.9  # share of a device's memory that is planned for; the rest is for fragments and libraries

log = logging.getLogger(__name__)


def shares_of(train: GrowthConfig, ranks: int) -> list[int]:
    """Return the sequences of a step on each rank, for each size of batches, the largest last.

    Raises `ConfigError` for a batch that ranks cannot share.
    """
    for key, size in _sizes(train).items():
        lower = max(size // ranks, 1) * ranks
        rule = f"must be a multiple of the {ranks} ranks; the nearest are {lower} and {lower + ranks}"
        check(size % ranks == 0, key, size, rule)
    return [size // ranks for size in _sizes(train).values()]


def _sizes(train: GrowthConfig) -> dict[str, int]:
    """Return the sizes of batches by the settings that say them, the largest last."""
    smaller = {f"train.batch_growth[{number}].size": size.slots for number, size in enumerate(train.sizes[:-1])}
    return {**smaller, "train.batch_size": train.batch_size}


def divisors(share: int, most: int) -> list[int]:
    """Return the sizes of micro-batches, at most `most`, that a rank's share can be cut into, the largest first."""
    return [size for size in range(min(share, max(most, 1)), 0, -1) if share % size == 0]


def said(train: GrowthConfig, seq_len: int, ranks: int) -> int | None:
    """Return the sequences of a micro-batch, None where they are to be found.

    Of `train.micro_batch_tokens` they are the most that hold no more tokens and divide a rank's share, but at least
    one; where batches grow, its share of each of them. Raises `ConfigError` for a batch that cannot be divided.
    """
    size, tokens = train.micro_batch_size, train.micro_batch_tokens
    if tokens is None and size != AUTO:
        size = DEFAULT if size is None else size
        assert isinstance(size, int), "settings are checked"
        for key, batch_size in _sizes(train).items():
            micro_batches_per_step(batch_size, size, ranks, key)
        return size
    share = math.gcd(*shares_of(train, ranks))
    return None if tokens is None else divisors(share, tokens // seq_len)[0]


def measured_slots(train: TrainConfig, seq_len: int, otherwise: int) -> int:
    """Return the sequences that are evaluated together outside of a run, `otherwise` where a run would find them."""
    if train.micro_batch_tokens is not None:
        return max(train.micro_batch_tokens // seq_len, 1)
    size = DEFAULT if train.micro_batch_size is None else train.micro_batch_size
    return size if isinstance(size, int) else otherwise


class Needs(NamedTuple):
    """Bytes that a rank needs at most."""

    held: Memory
    added: Activations  # by a micro-batch
    buffers: float  # gathered weights, and gradients on their way

    @property
    def total(self) -> float:
        """All of them."""
        return sum(self.held) + self.added.saved + self.added.workspace + self.buffers


@dataclass(frozen=True, kw_only=True)
class Passes:
    """What decides the memory of a forward and backward pass."""

    build: Callable[[Attend | None], Objective]  # the module on the meta device; None: with the backend of the run
    densest: Callable[[int], Batch]  # a micro-batch of so many sequences, as long as they can be
    memory: Memory  # without a micro-batch
    strategy: StrategyConfig
    precision: Precision
    compilation: CompileConfig
    attention: AttentionConfig
    make_optimizer: Callable[[nn.Module], Optimizer]
    world: World

    def needs(self, sequences: int) -> Needs:
        """Predict the memory of a rank of a GPU with micro-batches of so many sequences."""
        module = self.build(None)
        sizes = [sum(each.numel() for each in block.parameters()) for block in module.model.blocks]
        outside = sum(each.numel() for each in module.parameters()) - sum(sizes)
        assert isinstance(self.strategy, RecomputationConfig), "every strategy has these settings"
        added = activations(
            self.build,
            self.densest(sequences),
            precision=self.precision,
            casts_weights=self.strategy.casts_weights,
            recomputation=self.strategy,
        )
        counts = {"block": max(sizes), "outside": outside, "layers": len(sizes)}
        buffers = self.strategy.buffers(**counts, ranks=self.world.size, precision=self.precision)
        return Needs(self.memory, added, buffers)

    def fit(self, sequences: int, *, passes: int) -> bool:
        """Whether forward and backward passes of so many sequences fit into the memory of every rank's device.

        They are run with weights that nobody filled, by a strategy that goes afterwards, so that no trace is left of
        them. Moments, which come with the first step, have a stand-in; a second pass finds the gradients of the first.
        A collective. Raises `ResourceError` if they fit on some ranks alone: these may wait for the others for ever.
        """
        device = self.world.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            fits = self.world.gather(self._fit(sequences, passes))
        if any(fits) and not all(fits):
            raise ResourceError(
                f"train.micro_batch_size=auto: {sequences} sequences do not fit into the memory of rank "
                f"{fits.index(False)}, and they do on rank {fits.index(True)}, which waits for it; name a size below it"
            )
        gc.collect()  # engines refer to themselves
        if self.compilation.scope is not Scope.none:
            torch.compiler.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return all(fits)

    def _fit(self, sequences: int, passes: int) -> bool:
        """Run passes on this rank. Waits for nothing on the device: where memory runs out is known before."""
        strategy = self.strategy.build(world=self.world, precision=self.precision, compilation=self.compilation)
        fits = True
        try:
            model = strategy.setup(self.build(None), self.make_optimizer)
            moments = self._moments()
            for last in [False, True][-passes:]:
                with strategy.micro_step(last=last):
                    strategy.backward(model(self.densest(sequences).to(self.world.device)).total)
            del moments
        except torch.OutOfMemoryError:
            fits = False
        strategy.close()
        return fits

    def _moments(self) -> torch.Tensor | None:
        """Return a tensor as large as what the first step will add to the tensors that there are, gradients apart."""
        device = self.world.device
        if device.type != "cuda":
            return None
        missing = self.memory.weights + self.memory.optimizer - torch.cuda.memory_allocated(device)
        return torch.empty(max(int(missing), 0), dtype=torch.uint8, device=device)

    def largest(self, sizes: Sequence[int], share: int) -> int:
        """Return the first size that fits, of several in descending order that divide the same `share` of sequences.

        The plan is made for the device with the least memory, and tried. A collective. Raises `ResourceError` if none
        fits.
        """
        free = min(self.world.gather(free_bytes(self.world.device)))
        planned = _first(sizes, lambda size: self.needs(size).total <= MARGIN * free)
        said = f"{_gib(MARGIN * free)} of {_gib(free)} GiB on the fullest device"
        if planned == len(sizes):
            planned = len(sizes) - 1
            needed = self.needs(sizes[planned]).total
            log.warning(
                "train.micro_batch_size=auto: %s needs %s GiB by prediction, more than %s; it is tried all the same",
                _sequences(sizes[planned]),
                _gib(needed),
                said,
            )
        for size in sizes[planned:]:
            if self.fit(size, passes=min(share // size, 2)):
                log.info("train.micro_batch_size=auto: %s, planned for %s and tried", _sequences(size), said)
                return size
            log.warning("train.micro_batch_size=auto: %s do not fit into the device's memory", _sequences(size))
        raise ResourceError(
            f"train.micro_batch_size=auto: not even {_sequences(sizes[-1])} fits into {_gib(free)} GiB; set "
            "strategy.activation_checkpointing=full, lower data.seq_len, or take more ranks with strategy=fsdp2"
        )


def free_bytes(device: torch.device) -> int:
    """Return the bytes of a GPU that tensors may take, those that torch keeps for them among these."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _first(sizes: Sequence[int], fits: Callable[[int], bool]) -> int:
    """Return the place of the first size that fits, where all behind it do as well; their number if none does."""
    return bisect_left(sizes, True, key=fits)


def _sequences(size: int) -> str:
    return f"{size} sequence{'' if size == 1 else 's'} a micro-batch"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f}"


def found(train: GrowthConfig, seq_len: int, passes: Passes, known: dict[str, Any] | None) -> dict[str, Any]:
    """Return what run.json says of a micro-batch that is found: its `size` in sequences, and for what it was found.

    On a CPU it has `CPU_TOKENS` tokens at most. `known` is what the record of the run says, on rank 0: it is taken if
    ranks, devices and what else decides on memory are the same. A collective.
    """
    world = passes.world
    circumstances = {
        "ranks": world.size,
        "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu",
        "train.batch_size": list(_sizes(train).values()) if train.batch_growth else train.batch_size,
        "strategy": _told(passes.strategy),
        "precision": _told(passes.precision),
        "compile": _told(passes.compilation),
        "attention": _told(passes.attention),
    }
    [known, *_] = world.gather(known)
    if known is not None:
        changes = [key for key, value in circumstances.items() if known["for"].get(key) != value]
        if not changes:
            log.info("train.micro_batch_size=auto: %s, as at the run's last start", _sequences(known["size"]))
            return known
        log.info("train.micro_batch_size=auto: looked for again, as %s changed", " and ".join(changes))
    shares = shares_of(train, world.size)
    share = math.gcd(*shares)
    if world.device.type == "cuda":
        size = passes.largest(divisors(share, share), max(shares))
    else:
        size = divisors(share, CPU_TOKENS // seq_len)[0]
        log.info("train.micro_batch_size=auto: %s, %s tokens at most on a CPU", _sequences(size), f"{CPU_TOKENS:,}")
    return {"size": size, "for": circumstances}


def _told(choice: Any) -> dict[str, Any]:
    """Return a registered configuration as run.json holds it."""
    return {"choice": choices()[type(choice)][1], **plain(choice)}
