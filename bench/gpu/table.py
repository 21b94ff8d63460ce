"""The results of a run as Markdown: what a note or `bench/README.md` quotes.

Holds tables only; what is in them was measured by the parts. Free of torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

GIB = 2**30
NOTE = (
    "Tokens/s are medians over rounds of steps. MFU counts the model's FLOPs of both sides alike, against the dense "
    "peak in bf16, for fp8 too. Memory: what is predicted for weights, gradients and moments; what tensors hold "
    "between two steps, without gradients; the most that they held. First: seconds of the first step, with compiling."
)


def as_markdown(found: Mapping[str, Any]) -> str:
    """Return everything that a run found, part by part."""
    parts = found["parts"]
    results = [result for part in parts for result in part["results"]]
    dry = "Dry run on small shapes: figures mean nothing. " if found["dry_run"] else ""
    seconds = sum(part["seconds"] for part in parts)
    lines = ["# The day of a GPU", "", f"{dry}Begun {found['began']}; {seconds:.0f} s of {found['budget_s']:.0f}.", ""]
    lines += table(
        ["part", "", "s", ""],
        [[each["name"], each["state"], f"{each['seconds']:.0f}", each["reason"]] for each in parts],
    )
    for section in (_machine, _tests, _training, _constants, _products, _attention):
        lines += section(results)
    for part in parts:
        if part["tail"]:
            lines += ["", f"The last lines of {part['name']}:", "", "```text", *part["tail"], "```"]
    return "\n".join(lines) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    return [
        "| " + " | ".join(cell.replace("|", "/") for cell in row) + " |"
        for row in (header, ["---"] * len(header), *rows)
    ]


def _of(results: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [result for result in results if result["kind"] == kind]


def _machine(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    for each in _of(results, "device"):
        size = f", {each['memory_bytes'] / GIB:.0f} GiB, CUDA {each['cuda']}" if "memory_bytes" in each else ""
        yield from ("", f"Device: {each['name']}{size}, torch {each['torch']}.")
    for each in _of(results, "driver"):
        yield from ("", f"Driver: {'; '.join(each['gpus']) or each['reason']}.")
    for each in _of(results, "versions"):
        found = ", ".join(f"{name} {number}" for name, number in each["found"].items())
        yield from ("", f"Python {each['python']}, {found}. Missing: {', '.join(each['missing']) or 'nothing'}.")


def _tests(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    tests = _of(results, "test")
    if tests:
        counts = Counter(each["outcome"] for each in tests)
        yield from (
            "",
            "## Tests",
            "",
            ", ".join(f"{number} {outcome}" for outcome, number in counts.items()) + ".",
            "",
        )
        yield from (
            f"- {each['outcome']}: `{each['test']}`" for each in tests if each["outcome"] in ("failed", "error")
        )


def _training(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    training = _of(results, "training")
    if not training:
        return
    yield from ("", "## Training", "")
    peer = {each["shape"]: each.get("tokens_per_s") for each in training if each["who"].startswith("transformers")}
    header = [
        "shape",
        "who",
        "tokens/s",
        "of the peer",
        "MFU",
        "ms a step",
        "predicted, held, at most, GiB",
        "first, s",
    ]
    yield from table(header, [_row(each, peer.get(each["shape"])) for each in training])
    yield from ("", NOTE)


def _row(each: dict[str, Any], peer: float | None) -> list[str]:
    if "tokens_per_s" not in each:
        return [each["shape"], each["who"], each.get("refused") or each["failed"], *[""] * 5]
    memory = [each.get(key) for key in ("predicted_bytes", "held_bytes", "peak_bytes")]
    return [
        each["shape"],
        each["who"],
        f"{each['tokens_per_s']:,.0f}",
        f"{each['tokens_per_s'] / peer:.2f}" if peer else "",
        f"{each['mfu']:.1%}" if each["mfu"] else "",
        f"{each['step_ms']:,.1f}",
        ", ".join("–" if size is None else f"{size / GIB:.2f}" for size in memory),
        f"{each['first_step_s']:.1f}",
    ]


def _constants(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    for each in _of(results, "constants"):
        memory, host = each["memory_bytes_per_s"] / 1e9, each["host_s"] * 1e6
        device = f", {each['device_s'] * 1e6:.1f} of the device" if "device_s" in each else ""
        yield from ("", "## Passes over memory, and launches", "")
        yield f"Adding two tensors: {memory:,.0f} GB/s. A small kernel: {host:.1f} µs of the host{device}."


def _products(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    products = _of(results, "product")
    if products:
        yield from ("", "## Products in bf16, TFLOP/s", "")
        columns = ("forward", "input_gradient", "weight_gradient")
        rows = [
            [
                f"{each['tokens']} x {each['inputs']} x {each['outputs']}",
                *(f"{each[f'{one}_tflops']:.1f}" for one in columns),
            ]
            for each in products
        ]
        yield from table(["tokens x inputs x outputs", "forward", "gradient of the input", "of the weight"], rows)
        yield from _cuts(results, "products")


def _attention(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    measured = _of(results, "attention")
    if measured:
        yield from ("", "## Attention in bf16, TFLOP/s", "")
        rows = []
        for each in measured:
            mask = "causal" if each["causal"] else "both sides"
            mask += "" if each["window"] is None else f", window {each['window']}"
            heads = f"{each['heads']}/{each['kv_heads']} x {each['head_dim']}"
            speeds = (
                [f"{each[f'{one}_tflops']:.1f}" for one in ("forward", "both")]
                if "both_ms" in each
                else [each["failed"], ""]
            )
            rows.append([each["version"], heads, str(each["seq_len"]), mask, *speeds])
        yield from table(["version", "heads", "sequence", "mask", "forward", "forward and backward"], rows)
        yield from _cuts(results, "attention")


def _cuts(results: Sequence[dict[str, Any]], what: str) -> Iterator[str]:
    for each in _of(results, "cut"):
        if each["what"] == what:
            yield from ("", f"The rest was left out {each['reason']}.")
