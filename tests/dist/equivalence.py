"""One small training run in plain torch, and the same run under any strategy: what every strategy must reproduce."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.checkpoint.base import Reader
from pretrain.checkpoint.fragments import FragmentReader
from pretrain.checkpoint.load import load_manifest, shapes_of
from pretrain.checkpoint.save import CheckpointConfig, Checkpoints
from pretrain.data.batch import IGNORED, Batch
from pretrain.distributed.world import World
from pretrain.init_from import InitialWeights
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.base import Attend, Stream
from pretrain.models.decoder import DecoderConfig
from pretrain.models.encoder import EncoderConfig
from pretrain.models.encoder_decoder import EncoderDecoderConfig
from pretrain.models.init import Init
from pretrain.models.layers import Activation, Norm, Order, Positions
from pretrain.objectives.base import Objective
from pretrain.objectives.causal_lm import CausalLMConfig
from pretrain.objectives.masked_lm import MaskedLMConfig
from pretrain.objectives.sentence_pairs import Sentences
from pretrain.objectives.sequence_to_sequence import SequenceToSequenceConfig
from pretrain.optim.adamw import AdamWConfig
from pretrain.optim.base import OptimConfig
from pretrain.optim.muon import MuonConfig, MuonWithAdamW
from pretrain.strategy.activation_checkpointing import Recompute
from pretrain.strategy.base import Strategy
from pretrain.strategy.compile import CompileConfig
from pretrain.strategy.ddp import DDPConfig
from pretrain.strategy.fsdp2 import FSDP2Config
from pretrain.strategy.precision import FP32, Precision
from pretrain.strategy.zero import Offload, ZeROConfig

VOCABULARY, SEED, CLIP = 53, 7, 0.5
SEQUENCES = 12  # in a global batch: 1, 2, 3 and 4 ranks divide it
OPTIM = AdamWConfig(lr=3e-3)


class MuonInFp32(MuonConfig):
    """Muon that iterates in fp32: bf16 would round gradients that were summed in another order to other values."""

    def build(self, module: nn.Module) -> MuonWithAdamW:
        optimizer = super().build(module)
        optimizer.dtype = torch.float32
        return optimizer


MUON = MuonInFp32(lr=1e-3)


def build(attend: Attend = sdpa) -> Objective:
    """Return a module on the meta device: tied, grouped heads; 11,221 parameters, which 2, 3 and 4 ranks leave 1 of."""
    config = DecoderConfig(max_seq_len=13, width=20, layers=3, heads=4, kv_heads=2, mlp_width=47)
    with torch.device("meta"):
        return CausalLMConfig().build(config.build(vocab_size=VOCABULARY, attend=attend))


def build_wide() -> Objective:
    """Return a module with an embedding so large, 520,068 elements, that adding squares in fp32 shows."""
    config = DecoderConfig(max_seq_len=13, width=76, layers=1, heads=4)
    with torch.device("meta"):
        return CausalLMConfig().build(config.build(vocab_size=6_843, attend=sdpa))


DEBERTA = {"positions": Positions.disentangled, "buckets": 6, "max_distance": 9, "token_types": 0}


def build_masked(sentences: Sentences = Sentences.nsp, **fields: Any) -> Objective:
    """Return an encoder like BERT on the meta device: tied, with a bias on the logits, perhaps telling pairs apart."""
    config = EncoderConfig(max_seq_len=13, width=20, layers=3, heads=4, mlp_width=47, **fields)
    with torch.device("meta"):
        return MaskedLMConfig(sentences=sentences).build(config.build(vocab_size=VOCABULARY, attend=sdpa))


SMALL_PAIRS = {
    "max_seq_len": 13,
    "width": 20,
    "layers": 2,
    "heads": 4,
    "mlp_width": 47,
    "activation": Activation.geglu,  # smooth: rounding may carry a sum over the bend of a ReLU
}
BART = {
    "positions": Positions.learned,
    "embedding_norm": True,
    "embedding_scale": False,
    "head_bias": True,
    "bias": False,  # those of keys have no gradient: under Adam rounding alone moves them
}
T5 = {
    "positions": Positions.relative,
    "buckets": 8,
    "max_distance": 9,
    "order": Order.pre,
    "norm": Norm.rmsnorm,
    "bias": False,
    "attention_scale": False,
    "embedding_scale": False,
    "head_scale": True,
    "init": Init.t5,
}


def build_pairs(kind: dict[str, Any] = T5) -> Objective:
    """Return an encoder-decoder on the meta device, whose table of tokens both sides and the head share."""
    config = EncoderDecoderConfig(**SMALL_PAIRS, **kind)
    with torch.device("meta"):
        model = config.build(vocab_size=VOCABULARY, attend=sdpa)
        return SequenceToSequenceConfig(label_smoothing=0.1, z_loss=1e-4).build(model)


def sequences(step: int) -> list[Tensor]:
    """Return the documents of a global batch, 1 to 13 tokens each."""
    draw = torch.Generator().manual_seed(1000 + step)
    lengths = torch.randint(1, 14, (SEQUENCES,), generator=draw).tolist()
    return [torch.randint(VOCABULARY, (length,), generator=draw) for length in lengths]


def pack(documents: list[Tensor]) -> Batch:
    """Join documents into a batch in which each token but a document's last predicts its follower."""
    lengths = [len(document) for document in documents]
    end = torch.tensor([IGNORED])
    targets = torch.cat([torch.cat([document[1:], end]) for document in documents])
    return Batch(
        tokens=torch.cat(documents),
        positions=torch.cat([torch.arange(length) for length in lengths]),
        offsets=torch.tensor([0, *lengths]).cumsum(0).int(),
        max_len=max(lengths),
        targets=targets,
        num_targets=int((targets != IGNORED).sum()),
        lengths=lengths,
    )


def pack_masked(documents: list[Tensor]) -> Batch:
    """Join documents, of which a few tokens are targets; some have none, some no label: the text alone decides."""
    batch = pack(documents)
    targets = torch.where(batch.tokens % 6 == 1, batch.tokens, IGNORED)
    labels = torch.tensor([(int(document.sum()) % 3) for document in documents])
    return replace(
        batch,
        targets=targets,
        num_targets=int((targets != IGNORED).sum()),
        segments=(batch.positions > 4).long(),
        labels=labels.where(labels < 2, IGNORED),
    )


def pack_pairs(documents: list[Tensor]) -> Batch:
    """Join documents with shorter targets, a few of their last tokens backwards; the text alone says how many."""
    source = pack(documents)
    targets = [document.flip(0)[: 1 + int(document.sum()) % 7] for document in documents]
    batch, start = pack(targets), torch.zeros(1, dtype=torch.int64)
    return replace(
        batch,
        tokens=torch.cat([torch.cat([start, target[:-1]]) for target in targets]),
        targets=torch.cat(targets),
        num_targets=len(batch.tokens),
        source=Stream(source.tokens, source.positions, source.offsets, source.max_len, source.lengths),
    )


def schedule(step: int) -> float:
    return 1.0 / (1 + step)


@dataclass
class Course:
    """What a run did: a loss in nats a target and a gradient norm for every step, and whether it was skipped."""

    losses: list[float]
    norms: list[float]
    skipped: list[bool] = field(default_factory=list)


def reference(
    steps: int,
    make: Callable[[], Objective] = build,
    join: Callable[[list[Tensor]], Batch] = pack,
    dtype: torch.dtype = torch.float32,
    optim: OptimConfig = OPTIM,
) -> tuple[Course, dict[str, Tensor]]:
    """Train in one process with nothing but torch, whole batches at a time; return the course and the weights."""
    module = make().to_empty(device="cpu").to(dtype)
    initial = InitialWeights(module, SEED)
    for name, parameter in module.named_parameters():
        parameter.data.copy_(initial(name, "weight", 0, parameter.numel()).reshape(parameter.shape))
    optimizer = optim.build(module)
    course = Course([], [])
    for step in range(steps):
        batch = join(sequences(step))
        loss = module(batch)
        (loss.total / batch.num_targets).backward()
        course.losses.append(loss.nll.item() / batch.num_targets)
        course.norms.append(torch.nn.utils.clip_grad_norm_(module.parameters(), CLIP).item())
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * schedule(step)
        optimizer.step()
        optimizer.zero_grad()
    return course, {name: parameter.detach() for name, parameter in module.named_parameters()}


def start(
    world: World,
    cfg,
    precision: Precision | None = None,
    make=build,
    compilation: CompileConfig | None = None,
    initial: Reader | None = None,
    optim: OptimConfig = OPTIM,
) -> tuple[Objective, torch.nn.Module, Strategy]:
    """Return a module under a strategy with its initial weights, drawn if none are given, and what the loop calls."""
    module = make()
    initial = initial or InitialWeights(module, SEED)
    strategy = cfg.build(world=world, precision=precision or FP32(), compilation=compilation or CompileConfig())
    wrapped = strategy.setup(module, optim.build)
    strategy.load_fragments(initial)
    return module, wrapped, strategy


def train(
    world: World, wrapped, strategy: Strategy, steps: range, micro: int, factor: float = 1.0, join=pack
) -> Course:
    """Take this rank's share of the global batches in micro-batches of `micro` sequences."""
    course = Course([], [])
    share = SEQUENCES // world.size
    for step in steps:
        documents = sequences(step)
        own = documents[world.rank * share : (world.rank + 1) * share]
        batches = [join(own[at : at + micro]) for at in range(0, share, micro)]
        [targets] = world.sum_ints(sum(batch.num_targets for batch in batches))
        nll = torch.zeros((), dtype=torch.float64, device=world.device)
        for number, batch in enumerate(batches, start=1):
            with strategy.micro_step(last=number == len(batches)):
                loss = wrapped(batch.to(world.device))
                strategy.backward(loss.total * (factor * world.size / targets))
            nll += loss.nll
        update = strategy.step(schedule(step), CLIP)
        course.norms.append(update.norm.item())
        course.skipped.append(bool(update.skipped))
        course.losses.append(world.sum_tensor(nll).item() / targets)
    return course


def save(world: World, strategy: Strategy, directory: Path, step: int) -> Path:
    """Commit a checkpoint and return its directory."""
    Checkpoints(directory, CheckpointConfig(), world).save(step, strategy, {}, required=True)
    return directory / f"step-{step:08d}"


SHAPES = shapes_of(build())
SMALL = {"reduce_bucket": 1000, "gather_bucket": 700}  # several buckets
SMALL_3 = {**SMALL, "persistent_below": 50}  # some parameters whole
OFFLOAD = {"offload_optimizer": Offload.cpu, "offload_parameters": Offload.cpu}


def strategies(ranks: int) -> dict[str, Any]:
    """Return every strategy that the equivalence laws hold for, by a name to report."""
    return {
        "ddp": DDPConfig(),
        "zero0": ZeROConfig(stage=0, **SMALL),
        "zero1": ZeROConfig(stage=1, **SMALL),
        "zero2": ZeROConfig(stage=2, **SMALL),
        "zero2+offload": ZeROConfig(stage=2, offload_optimizer=Offload.cpu, **SMALL),
        "zero3": ZeROConfig(stage=3, **SMALL_3),
        "zero3+offload": ZeROConfig(stage=3, **OFFLOAD, **SMALL_3),
        "fsdp2": FSDP2Config(),
        "fsdp2+recompute": FSDP2Config(activation_checkpointing=Recompute.selective),
        "zero3+recompute": ZeROConfig(stage=3, activation_checkpointing=Recompute.full, **SMALL_3),
        "zero3+hpz": ZeROConfig(stage=3, hpz_ranks=2 if ranks % 2 == 0 else 1, **SMALL_3),
        "hsdp": FSDP2Config(shard_ranks=2 if ranks % 2 == 0 else 1),
    }


def stored(step: Path) -> dict[str, Tensor]:
    """Return every tensor of a checkpoint, whole, by kind and name."""
    tensors = load_manifest(step)["tensors"]
    read = FragmentReader(step, tensors)
    return {
        f"{kind} {name}": read(name, kind, 0, shape.numel()).reshape(shape)
        for name in tensors
        for kind, shape in read.kinds(name).items()
    }
