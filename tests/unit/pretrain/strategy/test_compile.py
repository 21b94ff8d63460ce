"""Which parts of a model are given to torch.compile, and how. That it compiles them is `test_ddp`'s."""

import pytest
import torch
from toys import ToyModel

from pretrain.errors import ConfigError
from pretrain.strategy.compile import CompileBlock, CompileConfig, CompileModel, CompileNone


@pytest.mark.parametrize(("cfg", "scope"), [(CompileNone, "none"), (CompileBlock, "block"), (CompileModel, "model")])
@pytest.mark.parametrize("mode", ["default", "max-autotune"])
def test_each_choice_compiles_its_parts_in_its_mode(monkeypatch, cfg, scope, mode):
    model, asked = ToyModel(), []
    parts = {"none": [], "block": [block.forward for block in model.blocks], "model": [model.forward]}
    monkeypatch.setattr(torch, "compile", lambda forward, **options: asked.append((forward, options)) or forward)
    cfg(mode=mode).apply(model)
    assert asked == [(part, {"mode": mode}) for part in parts[scope]]


def test_a_mode_that_torch_does_not_have_is_refused():
    with pytest.raises(ConfigError, match=r"compile\.mode=fast: choose one of default, reduce-overhead"):
        CompileConfig(mode="fast")
