"""A step of every preset on fake CUDA tensors: what is where, in which precision, and how many kernels are launched.

Real widths, few layers, uneven documents. No value is computed; `.item()` and whatever else reads one ends the process.
ZeRO is not here: DeepSpeed reads the norm and the overflow from the device in each step, where fakes have nothing.
"""

from collections import Counter
from pathlib import Path

import pytest
from fake_steps import Gradient, Operator, steps
from forks import on_fake_cuda

CONF = Path(__file__).parents[2] / "conf"

FAMILIES = {  # of presets that differ in sizes alone; all but the first of each are slow, and skip hsdp
    "gpt2": ["gpt2_124m", "gpt2_350m", "gpt2_774m", "gpt2_1558m"],
    "llama": ["llama_8b", "llama_1b", "smollm2_135m"],
    "qwen3": ["qwen3_0_6b"],
    "bert": ["bert_base", "bert_large", "roberta_base"],
    "modernbert": ["modernbert_base", "modernbert_large"],
    "bart": ["bart_base"],
    "t5": ["t5_small", "t5_base"],
}

# Kernels that the last block launches under ddp and bf16, eagerly, without recomputation: forward and backward. Upper
# bounds: lower them when there are fewer. On a GPU the RMSNorms of Llama, Qwen and T5 are one operator each; torch's
# CPU build has no such kernel and makes it of several.
LAUNCHES = {
    "gpt2": (20, 34),
    "llama": (35, 74),
    "qwen3": (52, 107),
    "bert": (22, 36),
    "modernbert": (25, 42),
    "bart": (37, 61),  # of the decoder
    "t5": (68, 85),  # of the decoder
}
TENSORS = {"bart": 7, "t5": 7}  # of a batch, those of a source among them; of others 4
COPIES = {"t5": 2}  # to the device in a pass: what plans of attention are made from; of others 0

PRODUCTS = {  # where their factors are in their inputs; what they are added to may be wider
    **dict.fromkeys(("mm", "bmm", "_varlen_attn", "flex_attention", "flex_attention_backward"), slice(0, 2)),
    **dict.fromkeys(("addmm", "baddbmm"), slice(1, 3)),
}
STATISTICS = {"native_layer_norm": slice(1, 3), "_fused_rms_norm": slice(1, 2)}  # where in their results
WIDE = {"rsqrt", "softmax", "_softmax", "log", "logsumexp"}
READS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "item"}


def runs_of(family: str) -> dict[str, list[str]]:
    """Return the overrides of each run. T5's bias is not for flash: auto chooses flex for it."""
    layers = 4 if family == "modernbert" else 2  # without a norm, with a window twice, with neither
    fixed = [f"model.layers={layers}", "compile=none"]
    alone = [*fixed, "strategy=ddp", "strategy.activation_checkpointing=none"]
    flash = "auto" if family == "t5" else "flash"
    return {
        "ddp": [*alone, f"attention={flash}"],
        "ddp, flex": [*alone, "attention=flex"],
        "fsdp2": [*fixed, "strategy=fsdp2"],
        "hsdp": [*fixed, "strategy=fsdp2", "strategy.shard_ranks=8"],
    }


def test_every_preset_is_here():
    presets = {path.stem for path in (CONF / "experiment").glob("*.yaml") if not path.stem.startswith("demo")}
    assert presets == {name for names in FAMILIES.values() for name in names}


@pytest.mark.parametrize("family", FAMILIES)
def test_presets(family):
    check_runs(family, [(FAMILIES[family][0], run) for run in runs_of(family)])


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family, names in FAMILIES.items() if len(names) > 1])
def test_presets_of_other_sizes(family):
    check_runs(family, [(name, run) for name in FAMILIES[family][1:] for run in runs_of(family) if run != "hsdp"])


def check_runs(family: str, tried: list[tuple[str, str]]) -> None:
    runs = runs_of(family)
    for (name, run), result in zip(tried, on_fake_cuda(steps, [(name, runs[run]) for name, run in tried]), strict=True):
        where, operators = f"{name}, {run}", [Operator(*row) for row in result["operators"]]
        check_gradients(where, result, "distance_embedding" if family == "t5" and run.startswith("ddp") else None)
        check_device(where, operators, TENSORS.get(family, 4), COPIES.get(family, 0))
        check_precision(where, operators, sharded=not run.startswith("ddp"))
        if run == "ddp":
            check_launches(where, operators, LAUNCHES[family])


def test_vectors_of_distances_learn():
    """Without Dynamo flex_attention does not see what its bias closes over; with it, these have gradients, too."""
    overrides = ["model.layers=1", "compile=none", "strategy=ddp"]
    [result] = on_fake_cuda(steps, [("t5_small", overrides)], dynamo=True)
    check_gradients("t5_small", result)


def check_gradients(where: str, result: dict, unseen: str | None = None) -> None:
    """All gradients but those of `unseen` parameters are there, on the device, in the parameter's dtype."""
    assert result["loss"] == ["cuda:0", "torch.float32"], where
    gradients = [Gradient(*row) for row in result["gradients"]]
    wrong = [each for each in gradients if (each.device, each.dtype) != ("cuda:0", each.expected)]
    assert not [each for each in wrong if unseen is None or unseen not in each.name], f"{where}: gradients"


def check_device(where: str, operators: list[Operator], tensors: int, copies: int) -> None:
    """Nothing is read from the device; what goes there does not wait, and is no more than a batch and its plans."""
    assert not [each for each in operators if each.base in READS], f"{where}: reads from the device"
    down = [each for each in operators if "cuda" in each.sources and "cpu" in each.targets]
    assert not down, f"{where}: copies from the device"
    up = [each for each in operators if "cpu" in each.sources and "cuda" in each.targets and each.copies]
    assert not [each for each in up if each.waits], f"{where}: copies to the device that wait"
    assert sum(each.phase == "batch" for each in up) == tensors, f"{where}: tensors of a batch"
    assert sum(each.phase != "batch" for each in up) == copies, f"{where}: copies to the device in the step"
    mixed = [each for each in operators if "cuda" in each.sources | each.targets and not each.copies]
    mixed = [each for each in mixed if any(map(is_tensor_on_cpu, each.inputs))]
    assert not mixed, f"{where}: kernels that are given a tensor on the CPU, such as an index"
    if not copies:
        host = [
            each for each in operators if each.phase != "batch" and any(is_tensor_on_cpu(one) for one in each.outputs)
        ]
        assert not host, f"{where}: operators on the CPU"


def is_tensor_on_cpu(described: tuple[str, str, int, int]) -> bool:
    """Whether it is on the CPU and more than one number, which kernels take as an argument; empty ones are for show."""
    device, _, dimensions, elements = described
    return device == "cpu" and dimensions > 0 and elements > 0


def check_precision(where: str, operators: list[Operator], *, sharded: bool) -> None:
    """Products run in bf16; statistics of norms, softmax, the loss and what is added up over ranks are wider."""
    passes = [each for each in operators if each.phase in ("forward", "backward")]
    narrow = [each for each in passes if each.base in PRODUCTS]
    assert len(narrow) > 20, f"{where}: there are products"
    factors = {one[1] for each in narrow for one in each.inputs[PRODUCTS[each.base]]}
    assert factors == {"bfloat16"}, f"{where}: products"
    wide = [one for each in passes if each.base in WIDE for one in each.inputs]
    wide += [one for each in passes if each.base in STATISTICS for one in each.outputs[STATISTICS[each.base]]]
    assert {one[1] for one in wide} == {"float32"}, f"{where}: statistics, softmax and loss"
    reduced = {one[1] for each in passes if "reduce" in each.base for one in each.inputs}
    assert reduced == ({"float32"} if sharded else set()), f"{where}: gradients are reduced in strategy.reduce_dtype"


def check_launches(where: str, operators: list[Operator], bounds: tuple[int, int]) -> None:
    last = max((each.place for each in operators), key=lambda place: int(place.removeprefix("block ") or -1))
    launched = Counter(each.phase for each in operators if each.place == last and each.launches)
    found = launched["forward"], launched["backward"]
    assert all(map(int.__le__, found, bounds)), f"{where}: {last} launches {found} kernels, and may {bounds}"
