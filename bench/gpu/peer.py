"""The peer of a training part: the same shape in plain transformers: SDPA, torch.compile, bf16 autocast, fused AdamW.

Holds no loop of a framework: forward, backward, clip, step, as a person types them. Its model is made from the
`config.json` that Headwater would export, so that both have the same layers.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

from bench.gpu.shapes import Shape, drawn
from bench.gpu.stopwatch import Plan, Stopwatch, memory_of
from bench.gpu.training import BATCHES, CLIP_NORM, peak_of
from pretrain.compose import configure
from pretrain.config import PretrainConfig
from pretrain.data.lengths import Share
from pretrain.hub.export_dir import family_for
from pretrain.run import build_module
from pretrain.train.summary import ModelSize


def transformers(shape: Shape, plan: Plan, words: list[str]) -> dict[str, Any]:
    """Train the shape that words configure; return the same figures as Headwater's, by the same count of FLOPs."""
    cfg = configure(*words)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with device:
        model = model_of(cfg, shape.vocab)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=0.1 * cfg.optim.lr, weight_decay=cfg.optim.weight_decay, fused=True
    )
    forward: Any = torch.compile(model)
    batches = [tuple(each.to(device) for each in drawn(shape, seed)) for seed in range(BATCHES)]
    if not shape.masked:
        batches = [(ids, ids) for ids, _ in batches]  # decoders of transformers shift their labels by themselves
    options = {} if shape.masked else {"use_cache": False}
    watch, losses = Stopwatch(plan), []
    for step, (ids, targets) in enumerate(itertools.islice(itertools.cycle(batches), plan.total), start=1):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = forward(input_ids=ids, labels=targets, **options).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        watch.end_step(step, device)
        if step in (1, plan.total):
            losses.append(loss.item())
    size = ModelSize.of(build_module(cfg, shape.vocab), [Share(shape.seq_len, 1.0)])
    figures = watch.figures(shape.step_tokens, size.flops_per_token, peak_of(device))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {**figures, **memory_of(device), "parameters": parameters, "loss": losses}


def model_of(cfg: PretrainConfig, vocab: int) -> nn.Module:
    """Return the model of transformers with a configuration's layers and random weights, in fp32."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    family = family_for(cfg.model)
    theirs = {key: value for key, value in family.to_hf(cfg.model, vocab).items() if key != "architectures"}
    unset = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id"))
    config = AutoConfig.for_model(theirs.pop("model_type"), **(unset | theirs))
    auto = AutoModelForMaskedLM if family.config_type.kind == "bidirectional" else AutoModelForCausalLM
    torch.manual_seed(1)
    return auto.from_config(config, attn_implementation="sdpa").train()
