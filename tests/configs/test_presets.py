"""Every preset composes, builds on the meta device at its published size, and its arithmetic comes out even."""

import re
from pathlib import Path

import pytest
import torch

from launch.slurm.submit import SLURM
from pretrain.compose import PRETRAIN, compose
from pretrain.data.course import micro_batches_per_step
from pretrain.data.lengths import Share
from pretrain.distributed.world import World
from pretrain.hub.family import family_for
from pretrain.models.attention.sdpa import sdpa
from pretrain.registry import plain
from pretrain.run import build_module, passes_of
from pretrain.train.micro_batches import MARGIN, said
from pretrain.train.summary import ModelSize

CONF = Path(__file__).parents[2] / "conf"
DOCS = Path(__file__).parents[2] / "docs"
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))

# Parameters as published: GPT-2's four sizes (Radford et al. 2019, as released), Llama 3.2 1B and Llama 3.1 8B,
# Qwen3-0.6B and SmolLM2 135M,
# BERT, RoBERTa and ModernBERT with their heads for masked tokens, T5 and BART as released.
PUBLISHED = {
    "gpt2_124m": 124_439_808,
    "gpt2_350m": 354_823_168,
    "gpt2_774m": 774_030_080,
    "gpt2_1558m": 1_557_611_200,
    "llama_1b": 1_235_814_400,
    "llama_8b": 8_030_261_248,
    "qwen3_0_6b": 596_049_920,
    "smollm2_135m": 134_515_008,
    "bert_base": 109_514_298,
    "bert_large": 335_174_458,
    "roberta_base": 124_697_433,
    "modernbert_base": 149_655_232,
    "modernbert_large": 395_881_664,
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
    "bart_base": 139_420_416,
}


def test_the_promised_presets_are_there():
    assert {"demo", *PUBLISHED} <= set(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_preset(name):
    cfg = compose([f"experiment={name}"])
    with torch.device("meta"):
        model = cfg.model.build(vocab_size=cfg.tokenizer.vocab_size, attend=sdpa)
        module = cfg.objective.build(model)
    count = sum(parameter.numel() for parameter in module.parameters())
    assert count == PUBLISHED.get(name, count)
    assert all(parameter.is_meta for parameter in module.parameters())
    groups = cfg.optim.build(module).param_groups
    assert sum(parameter.numel() for group in groups for parameter in group["params"]) == count
    factors = [cfg.schedule.build(cfg.train.steps)(step) for step in (0, cfg.train.steps - 1)]
    assert all(0 < factor < 1 for factor in factors), "each warms up and decays"
    for ranks in (1, 8, 64) if name in PUBLISHED else (1, 2):
        size = said(cfg.train, cfg.data.seq_len, ranks)
        micro_batches_per_step(cfg.train.batch_size, size, ranks)
        most = cfg.train.micro_batch_tokens
        assert most is None or size * cfg.data.seq_len <= most
    assert cfg.run.name == name
    family_for(cfg.model)  # every preset can be exported
    row = recipe_row(name, cfg, module)
    assert row in (DOCS / "presets.md").read_text().splitlines(), f"write the row of docs/presets.md again: {row}"


def recipe_row(name, cfg, module):
    """Return what a preset takes of the recipe for stable training, as a row of docs/presets.md."""
    model, objective = plain(cfg.model), plain(cfg.objective)
    assert model.get("mup_base_width") is None, "none is said there to have muP"
    [embedding] = [one for own, one in module.named_parameters() if own.endswith("model.embedding.weight")]
    [decay] = [
        group["weight_decay"] for group in cfg.optim.build(module).param_groups if embedding in set(group["params"])
    ]
    normalised = f"{model['order']}, {model.get('norm', 'layernorm')}"
    shown = [model.get("qk_norm", "none"), objective.get("z_loss", 0), cfg.optim.eps, model["init"], normalised, decay]
    return f"| `{name}` | {' | '.join(f'{each:g}' if isinstance(each, float) else str(each) for each in shown)} |"


FEWEST = {"llama_8b": 8}  # GPUs that a preset is sized for; 1 for all others
BYTES = 79.1 * 2**30  # of an "H100 80GB", as torch counts them
ROW = r"\| `{}` \| ([\d,]+) \| (\w+) \| (\d+) to 64 \| (\d+) \|"  # of the second table in docs/presets.md


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_fits_on_the_fewest_gpus_that_it_is_sized_for(name):
    cfg, ranks = compose([f"experiment={name}"]), FEWEST.get(name, 1)
    world, vocab_size = World(rank=0, size=ranks, device=torch.device("cpu")), cfg.tokenizer.vocab_size
    size = ModelSize.of(build_module(cfg, vocab_size), [Share(cfg.data.seq_len, 1.0)])
    memory = size.memory(cfg.strategy, ranks=ranks, precision=cfg.precision)
    needs = passes_of(cfg, vocab_size, memory, world).needs(said(cfg.train, cfg.data.seq_len, ranks))
    assert needs.total < MARGIN * BYTES, needs
    tokens, recomputed, fewest, gib = re.search(ROW.format(name), (DOCS / "presets.md").read_text()).groups()
    said_there = (int(tokens.replace(",", "")), recomputed, int(fewest))
    assert said_there == (cfg.train.micro_batch_tokens, cfg.strategy.activation_checkpointing.value, ranks)
    assert needs.total / 2**30 == pytest.approx(int(gib), rel=0.15, abs=1), "write the table of docs/presets.md again"


@pytest.mark.parametrize(
    "group", sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "experiment")
)
def test_every_file_of_every_group_composes(group):
    for file in (CONF / group).glob("*.yaml"):
        required = {
            "hub": ["data.sources.hub.path=x"],
            "prepared": ["data.sources.prepared.path=x"],
            "text": ["data.sources.text.paths=[x]"],
            "jsonl": ["data.sources.jsonl.paths=[x]"],
            "parquet": ["data.sources.parquet.paths=[x]"],
        }.get(file.stem, [])
        if group == "model":
            base = re.search(r"^  - (\w+)$", file.read_text(), re.M)[1]
            required = {"encoder": ["objective=masked_lm"], "encoder_decoder": ["objective=denoising"]}.get(base, [])
        compose([f"{group}={file.stem}", *required], root=SLURM if group == "cluster" else PRETRAIN)
