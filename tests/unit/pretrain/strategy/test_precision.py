"""How products of fp32 matrices are computed, for the process, while a run lasts."""

import torch

from pretrain.strategy.precision import BF16, FP32


class Ampere(FP32):
    """As on a GPU that has TF32."""

    def takes_tf32(self, device):
        return self.tf32


def test_tf32_is_set_for_a_run_alone_and_never_on_a_cpu(recwarn):
    cpu = torch.device("cpu")
    for precision, expected in (
        (Ampere(), "high"),
        (Ampere(tf32=False), "highest"),
        (FP32(), "highest"),
        (BF16(), "highest"),
    ):
        with precision.products(cpu):
            assert torch.get_float32_matmul_precision() == expected  # raises if torch's two ways were mixed
            assert (torch.backends.cuda.matmul.fp32_precision == "tf32") is (expected == "high")
        assert torch.get_float32_matmul_precision() == "highest"
    assert not recwarn.list
