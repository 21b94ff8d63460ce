"""ZeRO (Rajbhandari et al. 2020) through DeepSpeed: moments, gradients and parameters sharded over the ranks.

Holds the settings and the dictionary that DeepSpeed is configured with; the verbs are in `zero_engine`.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch

from pretrain.distributed.world import World, ensure_group
from pretrain.errors import check
from pretrain.registry import register
from pretrain.settings.paths import expanded
from pretrain.strategy import zero_nvme
from pretrain.strategy.activation_checkpointing import Recompute
from pretrain.strategy.base import CommonConfig, Memory, Strategy
from pretrain.strategy.compile import CompileConfig
from pretrain.strategy.float8 import FP8
from pretrain.strategy.precision import FP16, Precision

log = logging.getLogger(__name__)


class Offload(StrEnum):
    """Where shards live between their uses."""

    none = "none"  # on the device that computes
    cpu = "cpu"  # in the host's memory
    nvme = "nvme"  # in files on a disk


@register("strategy", "zero")
@dataclass(kw_only=True)
class ZeROConfig(CommonConfig):
    """`strategy=zero0` to `zero3` set the stage: what is sharded over the ranks."""

    stage: int = 2  # 0 nothing, 1 moments and fp32 weights, 2 gradients as well, 3 parameters as well
    overlap: bool = True  # reduce gradients while the backward pass runs
    reduce_bucket: int = 50_000_000  # gradient elements that are reduced at a time
    gather_bucket: int = 50_000_000  # elements that are gathered at a time: after a step, or ahead in stage 3
    live_parameters: int = 1_000_000_000  # stage 3: gathered elements that may stay on a rank; unless they lie on NVMe
    persistent_below: int = 10_000  # stage 3: parameters of fewer elements stay whole on every rank
    offload_optimizer: Offload = Offload.none  # none, cpu, nvme (stage 3): moments and fp32 weights, updated by the CPU
    offload_parameters: Offload = Offload.none  # none, cpu or nvme: stage 3 only
    nvme_path: str = ""  # folder on a local NVMe disk for what is offloaded there; a run needs it to itself
    nvme_threads: int = 1  # that read or write one tensor
    nvme_queue: int = 8  # requests that each of them keeps under way
    sub_group: int = 100_000_000  # stage 3: elements, or a few more, of a shard that are updated or read at a time
    hpz_ranks: int = 1  # ZeRO++, stage 3: ranks of a node that keep a second copy of parameters among them; 1 is off
    quantized_weights: bool = False  # ZeRO++, stage 3 on GPUs: gather parameters in int8
    quantized_gradients: bool = False  # ZeRO++, stage 3 on GPUs: reduce gradients in int4 and int8
    log_dictionary: bool = False  # log the dictionary that DeepSpeed is configured with

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.stage in range(4), "strategy.stage", self.stage, "choose 0, 1, 2 or 3")
        positive = ("reduce_bucket", "gather_bucket", "live_parameters", "sub_group", "nvme_threads", "nvme_queue")
        for key in (*positive, "hpz_ranks"):
            check(getattr(self, key) >= 1, f"strategy.{key}", getattr(self, key), "must be at least 1")
        check(self.persistent_below >= 0, "strategy.persistent_below", self.persistent_below, "0 (none) or more")
        sharded_only = {
            "offload_parameters": self.offload_parameters is not Offload.none,
            "hpz_ranks": self.hpz_ranks > 1,
            "quantized_weights": self.quantized_weights,
            "quantized_gradients": self.quantized_gradients,
        }
        rule = "needs strategy=zero3, because only stage 3 shards parameters"
        for key, wanted in sharded_only.items():
            check(not wanted or self.stage == 3, f"strategy.{key}", getattr(self, key), rule)
        rule = "is for what lies on NVMe; set strategy.offload_optimizer or offload_parameters, or leave this out"
        self._check_unused(("nvme_path", "nvme_threads", "nvme_queue"), bool(self.swapped), rule)
        rule = "is for strategy=zero3, whose ranks gather parameters; choose that, or leave this out"
        self._check_unused(("live_parameters", "persistent_below", "sub_group"), self.stage == 3, rule)
        selective = self.activation_checkpointing is Recompute.selective
        rule = "keeps operators' results while stage 3 frees their weights; set full"
        check(not (selective and self.stage == 3), "strategy.activation_checkpointing", "selective", rule)
        offloads = self.offload_optimizer is not Offload.none
        check(
            not offloads or self.stage > 0,
            "strategy.offload_optimizer",
            self.offload_optimizer,
            "needs a stage of 1 or more",
        )
        for key in self.swapped:
            check(self.stage == 3, key, "nvme", "needs strategy=zero3, whose shards alone DeepSpeed can swap")
            check(bool(self.nvme_path), key, "nvme", "needs strategy.nvme_path, a folder on a local NVMe disk")
        copied = self.hpz_ranks > 1 and self.offload_parameters is Offload.nvme
        check(not copied, "strategy.hpz_ranks", self.hpz_ranks, "must be 1 with offload_parameters=nvme")

    def _check_unused(self, keys: tuple[str, ...], used: bool, rule: str) -> None:
        """Raise `ConfigError` for settings that are given where nothing uses them."""
        defaults = {field.name: field.default for field in fields(self)}
        for key in keys:
            check(used or getattr(self, key) == defaults[key], f"strategy.{key}", getattr(self, key), rule)

    def check_machine(self, *, ranks: int, device_type: str, precision: Precision) -> None:
        """Refuse what DeepSpeed cannot do there; see `StrategyConfig`."""
        on_gpu = device_type == "cuda"
        rule = "float8 is for strategy=ddp and fsdp2; DeepSpeed keeps weights of its own in half precision"
        check(not isinstance(precision, FP8), "precision", "fp8", rule)
        rule = "DeepSpeed has no fp16 on a CPU; use bf16 or fp32, or strategy=ddp"
        check(on_gpu or not isinstance(precision, FP16), "precision", "fp16", rule)
        for key in ("quantized_weights", "quantized_gradients"):
            check(on_gpu or not getattr(self, key), f"strategy.{key}", True, "needs GPUs")
        check(ranks % self.hpz_ranks == 0, "strategy.hpz_ranks", self.hpz_ranks, f"must divide the {ranks} ranks")

    @property
    def title(self) -> str:
        """What a message calls the strategy, by the stage."""
        return f"zero{self.stage}"

    @property
    def nvme_folder(self) -> Path:
        """Return the folder for what is offloaded to NVMe."""
        return Path(expanded(self.nvme_path, "strategy.nvme_path"))

    def build(self, *, world: World, precision: Precision, compilation: CompileConfig) -> Strategy:
        """Return the strategy for this rank."""
        from pretrain.strategy.zero_engine import ReplicatedZeRO, ShardedZeRO, import_deepspeed

        ensure_group(world)
        dictionary = self.dictionary(precision)
        if self.log_dictionary and world.is_first:
            log.info("DeepSpeed's configuration: %s", json.dumps(dictionary))
        if self.swapped:
            zero_nvme.claim(self.nvme_folder, world.rank)
            zero_nvme.load_async_io(import_deepspeed(world), self.swapped[0])
        strategy = ShardedZeRO if self.stage else ReplicatedZeRO
        return strategy(dictionary, self, world, precision, compilation)

    @property
    def compiles(self) -> bool:
        """Whether blocks can be compiled: not with stage 3, whose hooks inside of them gather weights."""
        return self.stage < 3

    @property
    def swaps(self) -> bool:
        """Whether moments lie in files between steps."""
        return bool(self.swapped)

    @property
    def offloads(self) -> bool:
        """Whether a part of what a rank of a GPU holds lies in the memory of its host, or in files."""
        return {self.offload_optimizer, self.offload_parameters} != {Offload.none}

    @property
    def shards_weights(self) -> bool:
        """Whether a rank holds parts of the weights between passes."""
        return self.stage == 3

    @property
    def swapped(self) -> list[str]:
        """The settings that keep something on NVMe."""
        keys = ("offload_optimizer", "offload_parameters")
        return [f"strategy.{key}" for key in keys if getattr(self, key) is Offload.nvme]

    def memory(self, parameters: int, *, ranks: int, precision: Precision) -> Memory:
        """Predict what a rank holds; see `StrategyConfig`. Gradients of sharded stages are added up in fp32."""
        if self.stage == 0:
            return Memory(4 * parameters, 4 * parameters, 8 * parameters)
        computing = precision.dtype.itemsize
        shard = parameters / ranks
        gradients = 4 * shard * (2 if self.offload_optimizer is Offload.cpu else 1)  # there and where they arise
        if self.stage == 1 and computing == 2:
            gradients = (2 + 4) * parameters  # in half precision as they come, and their sum
        held = shard if self.stage == 3 else parameters
        if self.hpz_ranks > 1:
            held += parameters / self.hpz_ranks
        if self.offload_parameters is Offload.nvme:
            held = min(parameters, ranks * self.sub_group)  # DeepSpeed's buffer is larger than what it writes from it
        optimizer = 12 * shard
        if self.offload_optimizer is Offload.nvme:
            optimizer = 16 * min(shard, self.sub_group)  # weights, two moments and gradients of one sub-group
        return Memory(computing * held, gradients, optimizer)

    @property
    def casts_weights(self) -> bool:
        """Whether the weights that compute have the precision of products: those of sharded stages have."""
        return self.stage > 0

    def buffers(self, *, block: int, outside: int, layers: int, ranks: int, precision: Precision) -> float:
        """Predict the bytes of gathered weights, and of gradients on their way; see `StrategyConfig`.

        Two buckets of gradients if they are reduced while others arise, a bucket of weights, and what stage 3 leaves
        gathered, which is at least the block in use with the weights outside of blocks.
        """
        if self.stage == 0:
            return 0.0
        buckets = self.reduce_bucket * (2 if self.overlap else 1) + self.gather_bucket
        gathered = 0
        if self.stage == 3:
            gathered = max(min(layers * block + outside, self._live), block + outside)
        return precision.dtype.itemsize * (buckets + gathered)

    @property
    def _live(self) -> int:
        """Gathered elements that may stay on a rank under stage 3."""
        # A parameter that stays gathered keeps a buffer of those that NVMe is read into, and there are five.
        return 1 if self.offload_parameters is Offload.nvme else self.live_parameters

    def dictionary(self, precision: Precision) -> dict[str, Any]:
        """Return DeepSpeed's configuration; the loop owns the batch sizes, hence ones."""
        zero: dict[str, Any] = {
            "stage": self.stage,
            "overlap_comm": self.overlap,
            "reduce_bucket_size": self.reduce_bucket,
            "allgather_bucket_size": self.gather_bucket,
            "stage3_prefetch_bucket_size": self.gather_bucket,
            "stage3_max_live_parameters": self._live,
            "stage3_max_reuse_distance": self._live,
            "stage3_param_persistence_threshold": self.persistent_below,
            "sub_group_size": self.sub_group,
            "zero_hpz_partition_size": self.hpz_ranks,
            "zero_quantized_weights": self.quantized_weights,
            "zero_quantized_gradients": self.quantized_gradients,
            "memory_efficient_linear": False,  # it would replace torch's linear for the whole process
        }
        for key, where in (("offload_optimizer", self.offload_optimizer), ("offload_param", self.offload_parameters)):
            if where is not Offload.none:
                zero[key] = {"device": where.value, "pin_memory": torch.cuda.is_available()}
            if where is Offload.nvme:
                zero[key]["nvme_path"] = str(self.nvme_folder)
        if self.offload_parameters is Offload.nvme:
            zero["offload_param"]["max_in_cpu"] = 0  # it would fill the host's memory first
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "steps_per_print": None,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW runs on the CPU, too
            "communication_data_type": self.reduce_dtype.value,  # by default it is that of the forward pass
            "zero_optimization": zero,
            "aio": {"intra_op_parallelism": self.nvme_threads, "queue_depth": self.nvme_queue},
            **(_precision(precision) if self.stage else {}),
        }


def _precision(precision: Precision) -> dict[str, Any]:
    """Half-precision weights beside fp32 ones in the optimizer's shards; gradients are added up in fp32."""
    if precision.dtype == torch.float32:
        return {}
    accumulation = {"data_types": {"grad_accum_dtype": "fp32"}}
    if isinstance(precision, FP16):
        scale_power = max(0, round(precision.initial_scale).bit_length() - 1)
        scaling = {"initial_scale_power": scale_power, "loss_scale_window": precision.growth_every, "hysteresis": 1}
        return {"fp16": {"enabled": True, **scaling}, **accumulation}
    return {"bf16": {"enabled": True, "check_grad_overflow": True}, **accumulation}
