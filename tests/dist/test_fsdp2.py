"""The fsdp2 strategy over real gloo ranks, against plain torch in one process; each spawn checks several things."""

import pytest
import torch
import torch.distributed as dist
from ranks import SAMPLED, on_ranks, run, tiny
from small_models import LLAMA, T5_GATED, VOCAB_SIZE, ragged_batch, ragged_pairs
from test_pretrain import assert_close_runs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toys import ToyObjective, take_step

from pretrain.checkpoint.base import WEIGHT
from pretrain.checkpoint.fragments import FragmentReader
from pretrain.checkpoint.load import load_manifest, newest_step, restore, shapes_of
from pretrain.checkpoint.save import CheckpointConfig, Checkpoints
from pretrain.distributed.world import World
from pretrain.errors import ConfigError
from pretrain.init_from import InitialWeights
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.base import named_tensors
from pretrain.models.decoder import DecoderConfig
from pretrain.models.encoder_decoder import EncoderDecoderConfig
from pretrain.models.layers import Positions
from pretrain.objectives.causal_lm import CausalLMConfig
from pretrain.objectives.sequence_to_sequence import SequenceToSequenceConfig
from pretrain.optim.adamw import AdamWConfig
from pretrain.strategy.activation_checkpointing import Recompute
from pretrain.strategy.compile import CompileBlock, CompileConfig
from pretrain.strategy.ddp import DDPConfig
from pretrain.strategy.fsdp2 import FSDP2Config
from pretrain.strategy.precision import BF16, FP16, FP32

# Widths of 6 over 4 ranks leave the last one without a row; no number of ranks divides a vocabulary of 61.
TIED_GPT = {"width": 6, "heads": 2}
GROUPED_LLAMA = {"width": 12, "heads": 6, "kv_heads": 2, "tie_embeddings": False, **LLAMA}
STEPS, PER_STEP, CLIP = 3, 8, 0.5  # optimizer steps, micro-batches in each over all ranks, norm of the gradient
LR_FACTORS = [0.5, 1.0, 0.75]
ADAMW = AdamWConfig(lr=2e-3)

pytestmark = pytest.mark.timeout(900)  # s; many processes on few cores, and others may use them too


def objective(fields):
    with torch.device("meta"):
        model = DecoderConfig(max_seq_len=32, layers=2, **fields).build(vocab_size=VOCAB_SIZE, attend=sdpa)
        return CausalLMConfig().build(model)


def micro_batches(step):
    """Return the ragged micro-batches of a step, each with other documents."""
    return [ragged_batch([1 + number, 9, 2 + step], seed=100 * step + number) for number in range(PER_STEP)]


def reference(fields, optim=ADAMW):
    """Take the steps in one process with nothing but torch; return the norms and the module."""
    module = objective(fields)
    initial = InitialWeights(module, 1)
    module.to_empty(device="cpu")
    for name, parameter in module.named_parameters():
        parameter.data.copy_(initial(name, WEIGHT, 0, parameter.numel()).view_as(parameter))
    optimizer, norms = optim.build(module), []
    for step in range(STEPS):
        batches = micro_batches(step)
        loss = sum(module(batch).total for batch in batches) / sum(batch.num_targets for batch in batches)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(module.parameters(), CLIP).item())
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * LR_FACTORS[step]
        optimizer.step()
        optimizer.zero_grad()
    return norms, module


def built(world, cfg, fields, precision=None, optim=ADAMW, compilation=None):
    """Return a strategy with initial weights, and the module that it wrapped."""
    strategy = cfg.build(world=world, precision=precision or FP32(), compilation=compilation or CompileConfig())
    module = objective(fields)
    initial = InitialWeights(module, 1)
    wrapped = strategy.setup(module, optim.build)
    strategy.load_fragments(initial)
    return strategy, wrapped


def take(strategy, wrapped, world, step, factor=1.0):
    """Take one step as the loop does; return the gradient norm."""
    batches = micro_batches(step)
    targets = sum(batch.num_targets for batch in batches)
    own = batches[world.rank :: world.size]
    for number, batch in enumerate(own, start=1):
        with strategy.micro_step(last=number == len(own)):
            strategy.backward(wrapped(batch).total * (factor * world.size / targets))
    return strategy.step(LR_FACTORS[step % STEPS], CLIP).norm.item()


def state_of(strategy, world):
    """Return every whole tensor by name and kind, put together from the fragments of all ranks."""
    gathered = [None] * world.size
    own = [fragment._replace(data=fragment.data.clone()) for fragment in strategy.fragments()]
    dist.all_gather_object(gathered, own)
    whole, times = {}, {}
    for name, kind, shape, start, data in (fragment for part in gathered for fragment in part):
        assert data.dtype == torch.float32
        value = whole.setdefault((name, kind), torch.empty(shape))
        count = times.setdefault((name, kind), torch.zeros(shape))
        value.view(-1)[start : start + data.numel()] = data
        count.view(-1)[start : start + data.numel()] += 1
    assert all((count == 1).all() for count in times.values()), "each element comes once"
    return whole


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def check_steps(world, cfg, fields, expected, optim=ADAMW, tolerance=1e-6, **more):
    """Norms and weights of three steps are the reference's, and every rank wrote what it holds and nothing else."""
    norms, module = expected
    strategy, wrapped = built(world, cfg, fields, optim=optim, **more)
    assert [take(strategy, wrapped, world, step) for step in range(STEPS)] == pytest.approx(norms, rel=1e-5)
    state = state_of(strategy, world)
    weights = {name: value for (name, kind), value in state.items() if kind == WEIGHT}
    parameters = dict(module.named_parameters())
    assert weights.keys() == parameters.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, parameters[name].detach(), rtol=0, atol=tolerance)
    return strategy


def check_one_rank(world):
    for fields in (TIED_GPT, GROUPED_LLAMA):
        check_steps(world, FSDP2Config(), fields, reference(fields))
    check_compiled_blocks(world)


def check_two_ranks(world):
    expected = reference(GROUPED_LLAMA)
    for cfg in (
        FSDP2Config(),
        FSDP2Config(reshard_after_forward=False, accumulate_whole_gradients=True),
        FSDP2Config(reshard_after_forward=False),
        FSDP2Config(cpu_offload=True),
        FSDP2Config(activation_checkpointing=Recompute.full),
        FSDP2Config(activation_checkpointing=Recompute.selective, activation_checkpointing_every=2),
    ):
        check_steps(world, cfg, GROUPED_LLAMA, expected)
    check_groups(world)
    check_loaded_after_an_evaluation(world)
    check_broken_gradients(world)
    check_half_precision(world)


class Wire(TorchDispatchMode):
    """Notes the elements of a rank's shard in each collective, gathers and reductions apart, in order."""

    def __init__(self):
        super().__init__()
        self.order = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kind = operator.__name__
        if operator.namespace == "c10d" and ("allgather" in kind or "reduce_scatter" in kind):
            shard = min(leaf.numel() for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor))
            self.order.append(("gather" if "allgather" in kind else "reduce", shard))
        return operator(*args, **(kwargs or {}))


def check_groups(world):
    """Head and embedding are groups of their own, and a gradient travels as soon as it is complete."""
    strategy, wrapped = built(world, FSDP2Config(), GROUPED_LLAMA)
    shards = {"root": 0, "ends": 0, "block": 0}  # elements of a rank, padded; embedding and head are alike
    for name, tensor in strategy.tensors:
        if not name.startswith("model.blocks.1") and name != "model.head.weight":
            group = "block" if "blocks" in name else "ends" if "embedding" in name else "root"
            shards[group] += -(-tensor.shape[0] // world.size) * tensor.shape[1:].numel()
    with Wire() as wire:
        take(strategy, wrapped, world, 0)
    names = {size: group for group, size in shards.items()}
    found = [(kind, names[size]) for kind, size in wire.order]
    forward = ["root", "ends", "block", "block", "ends"]
    expected = [("gather", group) for group in forward]
    expected += [("gather", "block"), ("reduce", "ends"), ("gather", "block"), ("reduce", "block")]
    expected += [("reduce", "block"), ("reduce", "root"), ("reduce", "ends")]
    assert found == expected * (PER_STEP // world.size)


def check_loaded_after_an_evaluation(world):
    """Weights that are loaded are used, though an encoder-decoder of two tables leaves groups gathered behind it."""
    with torch.device("meta"):
        config = EncoderDecoderConfig(max_seq_len=32, width=24, layers=2, heads=4, **T5_GATED)
        module = SequenceToSequenceConfig().build(config.build(vocab_size=VOCAB_SIZE, attend=sdpa))
    strategy = FSDP2Config().build(world=world, precision=FP32(), compilation=CompileConfig())
    initial = {seed: InitialWeights(module, seed) for seed in (1, 2)}
    strategy.setup(module, ADAMW.build)
    found = []
    with torch.no_grad():
        for seed in (1, 2, 2):
            strategy.load_fragments(initial[seed])
            found.append(module(ragged_pairs([5, 9], [3, 4])).nll.item())
    assert found[1] == found[2] != found[0]


def check_broken_gradients(world):
    """A gradient that is not finite on one rank changes nothing on any, in any precision."""
    for precision in (FP32(), BF16(), FP16(initial_scale=1024.0)):
        strategy, wrapped = built(world, FSDP2Config(), TIED_GPT, precision)
        take(strategy, wrapped, world, 0)
        before, scale = state_of(strategy, world), strategy.state().get("scale")
        assert not torch.tensor(take(strategy, wrapped, world, 1, float("nan") if world.rank else 1.0)).isfinite()
        assert_same(before, state_of(strategy, world))
        assert strategy.state().get("scale") == (scale / 2 if scale else None)
        assert torch.tensor(take(strategy, wrapped, world, 2)).isfinite()
        assert not torch.equal(
            before["model.embedding.weight", WEIGHT], state_of(strategy, world)["model.embedding.weight", WEIGHT]
        )


def check_half_precision(world):
    """Blocks compute in half precision, whatever the positions, and gradients are those of fp32 up to rounding."""
    half = FP16(initial_scale=1024.0)
    for positions, precision in (
        (Positions.learned, BF16()),
        (Positions.rotary, half),
        (Positions.sinusoidal, BF16()),
    ):
        fields = {**GROUPED_LLAMA, "positions": positions}
        norms, _ = reference(fields)
        strategy, wrapped = built(world, FSDP2Config(), fields, precision)
        seen = []
        wrapped.model.blocks[-1].register_forward_hook(lambda _, inputs, output, seen=seen: seen.append(output))
        assert [take(strategy, wrapped, world, step) for step in range(STEPS)] == pytest.approx(norms, rel=0.05)
        assert {output.dtype for output in seen} == {precision.dtype}


def check_four_ranks(world):
    for fields in (TIED_GPT, GROUPED_LLAMA):
        expected = reference(fields)
        strategy = check_steps(world, FSDP2Config(), fields, expected)
        held = sum(tensor.to_local().numel() for _, tensor in strategy.tensors)
        assert held < 0.4 * sum(tensor.numel() for _, tensor in strategy.tensors), "no rank holds the whole"
        check_steps(world, FSDP2Config(shard_ranks=2), fields, expected)


@pytest.mark.parametrize(
    ("ranks", "check"),
    [(1, check_one_rank), (2, check_two_ranks), (4, check_four_ranks)],
)
def test_steps_equal_those_of_torch_in_one_process(ranks, check):
    on_ranks(ranks, check)


def stored(step):
    """Return every tensor of a checkpoint by name and kind."""
    tensors = load_manifest(step)["tensors"]
    read = FragmentReader(step, tensors)
    return {
        (name, kind): read(name, kind, 0, shape.numel()).view(shape)
        for name in tensors
        for kind, shape in read.kinds(name).items()
    }


def check_ddp_saves(world, folder):
    strategy, wrapped = built(world, DDPConfig(), TIED_GPT)
    take(strategy, wrapped, world, 0)
    Checkpoints(folder, CheckpointConfig(), world).save(1, strategy, {}, required=True)


def check_fsdp2_goes_on(world, folder):
    checkpoints = Checkpoints(folder, CheckpointConfig(), world)
    strategy, wrapped = built(world, FSDP2Config(reshard_after_forward=False), TIED_GPT)
    evaluate(wrapped)
    restore(newest_step(folder, world), shapes_of(objective(TIED_GPT)), strategy)
    assert_same(stored(folder / "step-00000001"), state_of(strategy, world))
    take(strategy, wrapped, world, 1)
    evaluate(wrapped)
    checkpoints.save(2, strategy, {}, required=True)

    resumed, module = built(world, FSDP2Config(), TIED_GPT)
    take(resumed, module, world, 1)  # moments of another run, which must go
    restore(newest_step(folder, world), shapes_of(objective(TIED_GPT)), resumed)
    assert take(strategy, wrapped, world, 2) == take(resumed, module, world, 2)
    assert_same(state_of(strategy, world), state_of(resumed, world))

    again = InitialWeights(objective(TIED_GPT), 1)
    resumed.load_fragments(again)
    assert {kind for _, kind in state_of(resumed, world)} == {WEIGHT}, "initial weights have no moments"
    check_tied_weights_and_buffers(world)


@torch.no_grad()
def evaluate(wrapped):
    """Leave the module gathered, as an evaluation does."""
    wrapped(micro_batches(0)[0])


def toy(world, compilation):
    """Return a strategy around the toy, and the toy's values before it was cut."""
    torch.manual_seed(3)
    module = ToyObjective()
    values = {name: value.detach().clone() for name, value in named_tensors(module)}
    strategy = FSDP2Config().build(world=world, precision=FP32(), compilation=compilation)
    strategy.setup(module, ADAMW.build)
    strategy.load_fragments(Values(values))
    return strategy, values


def check_tied_weights_and_buffers(world):
    """A weight that two modules share comes once, and a buffer comes along."""
    strategy, values = toy(world, CompileConfig())
    assert_same({(name, WEIGHT): value for name, value in values.items()}, state_of(strategy, world))
    assert strategy.module.model.head.weight is strategy.module.model.embedding.weight


def check_compiled_blocks(world):
    """Compiled blocks really are compiled, keep their names and give the gradients of others."""
    from torch._dynamo.utils import counters

    norms = []
    for compilation in (CompileConfig(), CompileBlock()):
        assert not counters["stats"]["unique_graphs"]
        strategy, values = toy(world, compilation)
        norms.append(take_step(strategy.module, strategy, 1).norm.item())
        assert {name for name, kind in state_of(strategy, world) if kind == WEIGHT} == values.keys()
    assert counters["stats"]["unique_graphs"] > 0
    assert norms[1] == pytest.approx(norms[0], rel=1e-6)


class Values:
    """Whole tensors in memory as a `Reader`."""

    def __init__(self, values):
        self.values = values

    def kinds(self, name):
        return {WEIGHT: self.values[name].shape}

    def __call__(self, name, kind, start, numel):
        return self.values[name].flatten()[start : start + numel]


def test_a_run_moves_from_ddp_to_fsdp2_and_back(tmp_path):
    on_ranks(2, check_ddp_saves, tmp_path)
    on_ranks(4, check_fsdp2_goes_on, tmp_path)
    strategy, wrapped = built(World.alone(), DDPConfig(), TIED_GPT)
    restore(tmp_path / "step-00000002", shapes_of(objective(TIED_GPT)), strategy)
    moved = {(f.name, f.kind): f.data.view(f.shape).clone() for f in strategy.fragments()}
    assert_same(stored(tmp_path / "step-00000002"), moved)
    norms, module = reference(TIED_GPT)
    assert take(strategy, wrapped, World.alone(), 2) == pytest.approx(norms[2], rel=1e-5)
    for one, other in zip(strategy.module.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_a_whole_run_learns_what_one_process_learns(place, one_process):
    more = ["strategy=hsdp", "strategy.activation_checkpointing=full", "train.micro_batch_size=2", *SAMPLED]
    run(*tiny("fsdp2", *more), ranks=2, cwd=place)
    assert_close_runs(one_process, place / "runs" / "fsdp2")


def test_ranks_that_do_not_fall_into_replicas_are_refused():
    with pytest.raises(ConfigError, match=r"strategy.shard_ranks=3: must divide the number of ranks, 4"):
        FSDP2Config(shard_ranks=3).check_machine(ranks=4, device_type="cpu", precision=FP32())
    with pytest.raises(ConfigError, match=r"strategy.shard_ranks=0: at least 1"):
        FSDP2Config(shard_ranks=0)
