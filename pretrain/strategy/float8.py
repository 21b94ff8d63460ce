"""Products of linear layers in float8, through torchao: which layers are converted, and what a machine must have.

Holds the precision `fp8` and the conversion; the kernels and the scaling are torchao's.

Scales belong to rows: to a token of an input or of a gradient, to an output of a weight. So what a token yields does
not depend on the tokens beside it, and how a batch is cut changes rounding alone. Gradients of weights, whose inner
dimension are the tokens, are computed in bf16: their number may be anything, while float8 wants multiples of 16.
"""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.errors import ConfigError, check
from pretrain.models.base import Model
from pretrain.models.layers import Fused
from pretrain.registry import register
from pretrain.strategy.precision import BF16

RECIPE = "rowwise_with_gw_hp"  # torchao's name
ALIGNED = 16  # what both sides of a weight must be multiples of

log = logging.getLogger(__name__)


@register("precision", "fp8")
@dataclass(kw_only=True)
class FP8(BF16):
    """bf16, and float8 (e4m3) for products of blocks with large enough weights: GPUs from sm89 (L40S, H100) on.

    Weights, moments and all else are as under bf16, and so is the model when it is evaluated: a run may change between
    the two.
    """

    min_width: int = 2048  # narrower layers than about this lose more by the casts than the products gain
    emulate: bool = False  # compute the same numbers in bf16, slowly, on any device; for tests

    def __post_init__(self) -> None:
        check(self.min_width >= 1, "precision.min_width", self.min_width, "at least 1; 2048 suits an H100")

    def check_machine(self, *, device_type: str, compiles: bool) -> None:
        """Raise `ConfigError` without torchao, or on a device that has no float8 products; see `Precision`."""
        if importlib.util.find_spec("torchao") is None:
            raise ConfigError("precision=fp8: needs torchao, which is not installed; pip install 'headwater[fp8]'")
        if self.emulate:
            rule = "emulation runs eagerly; set compile=none, or precision.emulate=false"
            check(not compiles, "precision.emulate", True, rule)
            return
        rule = "needs a GPU of compute capability 8.9 or newer (L40S, H100); set precision=bf16"
        check(device_type == "cuda", "precision", "fp8", rule)
        if torch.cuda.is_available():  # not where a job is submitted
            check(torch.cuda.get_device_capability() >= (8, 9), "precision", "fp8", rule)

    def convert(self, model: Model) -> None:
        """Replace the blocks' large linear layers, in place. Raises `ConfigError` if there are none; see `Precision`.

        Parameters stay the same objects, under the same names.
        """
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training

        linear = [layer for layer in model.blocks.modules() if isinstance(layer, nn.Linear)]
        chosen = {layer for layer in linear if self.gains(layer)}
        rule = (
            f"none of the {len(linear)} linear layers of the blocks is large enough (precision.min_width="
            f"{self.min_width}) or free of adapters, so float8 would not help; set precision=bf16"
        )
        check(bool(chosen), "precision", "fp8", rule)
        recipe = replace(Float8LinearConfig.from_recipe_name(RECIPE), emulate=self.emulate)
        known = set(model.blocks.modules())
        convert_to_float8_training(model.blocks, config=recipe, module_filter_fn=lambda layer, _: layer in chosen)
        for layer in model.blocks.modules():
            if layer not in known:
                layer.__class__ = _while_training()
        log.info("float8: %d of the %d linear layers of the blocks", len(chosen), len(linear))

    def gains(self, layer: nn.Linear) -> bool:
        """Return whether the products of a layer are faster in float8.

        The rule, at its default width of 2048, is the one that torchao measured for row-wise scales on an H100
        (`_auto_filter_for_rowwise`, torchao 0.18). Layers of other kinds, such as those with adapters, compute more
        than a product.
        """
        outputs, inputs = layer.out_features, layer.in_features
        plain = type(layer) in (nn.Linear, Fused)
        aligned = outputs % ALIGNED == 0 and inputs % ALIGNED == 0
        large = outputs > self.min_width and 2 * inputs > self.min_width
        small = outputs <= 2 * self.min_width and inputs <= self.min_width
        return plain and aligned and large and not small


@cache
def _while_training() -> type[nn.Module]:
    """Return torchao's layer, but for evaluation, which sees the weights as an export will have them.

    A class, no function on each layer: compiled blocks would have a graph for each function.
    """
    from torchao.float8.float8_linear import Float8Linear

    class Float8WhileTraining(Float8Linear):
        def forward(self, input: Tensor) -> Tensor:  # the name of torch's layer
            if not self.training:
                return F.linear(input, self.weight, self.bias)
            kind = input.device.type
            if torch.is_autocast_enabled(kind):  # torchao's layer follows it on GPUs alone
                input = input.to(torch.get_autocast_dtype(kind))
            return super().forward(input)

    return Float8WhileTraining
