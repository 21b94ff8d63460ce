"""Tokens a second of batched greedy decoding, beside transformers' `generate` with its cache on the same weights.

Holds the measurement only. Prompts have uneven lengths: theirs are padded on the left, ours are not. Both continue the
same prompts in turns within one process, by as many tokens each, and whether they choose the same is checked first.

    python -m bench.generation
    python -m bench.generation --family gpt2 --sequences 1 64 --rounds 20

Needs transformers (`pip install transformers`).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.rounds import machine, medians, paired_ratio
from pretrain.hub.family import family_for
from pretrain.models.decoder import DecoderConfig
from pretrain.models.generation.generate import generate
from pretrain.models.generation.sampling import Sampler
from pretrain.models.layers import Activation, Norm, Positions
from pretrain.trained.model import load

VOCABULARY = 16_384
PAD = 0  # no prompt holds it
SHORTEST, LONGEST = 10, 60  # tokens of a prompt
WARM_UP = 2  # rounds that do not count
SPREAD = 5.0  # logits are this much wider than those of initial weights, so that rounding decides between few tokens
FAMILIES = {
    "llama": {
        "norm": Norm.rmsnorm,
        "activation": Activation.swiglu,
        "positions": Positions.rotary,
        "bias": False,
        "mlp_width": 1024,
    },
    "gpt2": {},
}

Contestant = Callable[[list[Tensor], int], list[list[int]]]


def main() -> None:
    """Run the command line."""
    args = _parser().parse_args()
    torch.set_num_threads(args.threads)
    shape = {"max_seq_len": 1024, "width": args.width, "layers": args.layers, "heads": args.heads}
    with tempfile.TemporaryDirectory() as folder:
        contestants = _contestants(DecoderConfig(**shape, **FAMILIES[args.family]), Path(folder) / "model")
    print(f"{args.family} {args.layers} x {args.width}, prompts of {SHORTEST} to {LONGEST} tokens, {args.tokens} more")
    print(f"{args.threads} threads; {machine('torch', 'transformers')}", flush=True)
    print(f"{'sequences':<11}{'tokens/s':>12}{'transformers':>14}{'ratio':>8}   same choices")
    for count in args.sequences:
        prompts = _prompts(count)
        chosen = [contestant(prompts, args.tokens) for contestant in contestants.values()]
        same = sum(a == b for ours, theirs in zip(*chosen, strict=True) for a, b in zip(ours, theirs, strict=True))
        seconds = _interleaved(contestants, prompts, args.tokens, args.rounds)
        speed = {name: count * args.tokens / median for name, median in medians(seconds).items()}
        ratio = paired_ratio(seconds["transformers"], seconds["headwater"])
        share = f"{100 * same / (count * args.tokens):.1f} %"
        print(
            f"{count:<11}{speed['headwater']:>12,.0f}{speed['transformers']:>14,.0f}{ratio:>8.2f}   {share}", flush=True
        )


def _contestants(config: DecoderConfig, folder: Path) -> dict[str, Contestant]:
    """Return both, with the same random weights, which pass through a file."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    described = family_for(config).to_hf(config, VOCABULARY) | {"eos_token_id": None, "pad_token_id": PAD}
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**described)).eval()
    theirs.get_input_embeddings().weight.data.mul_(SPREAD)
    theirs.save_pretrained(folder)
    model: Any = load(folder, device="cpu").module.model

    @torch.inference_mode()  # as commands and the library do
    def headwater(prompts: list[Tensor], tokens: int) -> list[list[int]]:
        return generate(model, prompts, Sampler(temperature=0), max_tokens=tokens)

    def transformers(prompts: list[Tensor], tokens: int) -> list[list[int]]:
        longest = max(map(len, prompts))
        ids = torch.stack([torch.cat([torch.full((longest - len(ids),), PAD), ids]) for ids in prompts])
        settings: dict[str, Any] = {"max_new_tokens": tokens, "do_sample": False, "use_cache": True}
        return theirs.generate(ids, attention_mask=(ids != PAD).long(), **settings)[:, longest:].tolist()

    return {"headwater": headwater, "transformers": transformers}


def _prompts(count: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(count)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (count,), generator=draw).tolist()
    return [torch.randint(PAD + 1, VOCABULARY, (length,), generator=draw) for length in lengths]


def _interleaved(
    contestants: dict[str, Contestant], prompts: list[Tensor], tokens: int, rounds: int
) -> dict[str, list[float]]:
    """Take turns; return the seconds of each contestant, one a round, after the warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(WARM_UP + rounds):
        for name, contestant in contestants.items():
            start = time.perf_counter()
            contestant(prompts, tokens)
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, default="llama")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8, 32], help="in a batch (default 1 8 32)")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of each sequence (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="rounds that count (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    return parser


if __name__ == "__main__":
    main()
