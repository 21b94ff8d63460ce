"""Every preset takes a step on fake CUDA tensors."""

from fake_steps import forward_and_backward
from forks import on_fake_cuda


def test_gradients():
    for attention in ("flash", "flex"):
        found = on_fake_cuda(forward_and_backward, "gpt2_124m", f"attention={attention}", "model.layers=2")
        assert set(map(tuple, found.values())) == {("cuda:0", "torch.float32")}
