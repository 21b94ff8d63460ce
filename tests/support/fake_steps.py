"""Steps of presets on fake CUDA tensors, and what is told of them as JSON; runs in processes of `fake_cuda`.

Holds no assertion: what must be is in tests/fakes.
"""

from __future__ import annotations

from fake_cuda import CUDA, counted_graphs, preset, pretend_h100, ragged_batch


def forward_and_backward(experiment: str, *overrides: str) -> dict[str, list[str]]:
    """Return the device and the dtype of the loss and of every gradient, by name."""
    with pretend_h100() as mode, counted_graphs():
        cfg, module = preset(experiment, *overrides)
        batch = ragged_batch(cfg, mode)
        with mode:
            module.to_empty(device=CUDA)
            loss = cfg.precision.autocast(CUDA)(module.forward)(batch.to(CUDA))
            loss.total.backward()
            found = {"loss": loss.total, **{name: tensor.grad for name, tensor in module.named_parameters()}}
            return {name: [str(tensor.device), str(tensor.dtype)] for name, tensor in found.items()}
