"""The vision transformer: ViT and DeiT, on images of any sizes whose patches lie end to end.

Holds the architecture, its dataclass and its classifier; blocks are in `network`, the cutting of images in
`pretrain.data.images`. Letters of shapes, beside those of `models/base.py`: M patches of the micro-batch, S images,
P values of a patch, T special tokens of an image, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.errors import check
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.base import Attend, Layout, ModelKind
from pretrain.models.init import Init, Initial, draw
from pretrain.models.layers import Activation
from pretrain.models.network import NetworkConfig
from pretrain.models.plans import make_plans


class Patches(NamedTuple):
    """The patches of S images, end to end: row by row in each image, nothing padded."""

    values: Tensor  # (M, P) fp32, of each patch channel by channel, row by row
    grids: list[tuple[int, int]]  # (S,) rows and columns of patches of each image

    def to(self, device: torch.device) -> Patches:
        """Return the patches on a device."""
        return self._replace(values=self.values.to(device))


@dataclass(kw_only=True)
class VisionConfig(NetworkConfig):
    """An image as patches behind special tokens; the defaults are those of ViT-Base (Dosovitskiy et al. 2021)."""

    kind = ModelKind.bidirectional

    max_seq_len: int = 1 << 14  # tokens of an image, special ones among them; larger images are refused
    norm_eps: float = 1e-12
    activation: Activation = Activation.gelu
    init: Init = Init.bert
    image_height: int = 224  # pixels, for which the table of positions is made; it is interpolated for other sizes
    image_width: int = 224  # pixels
    patch_size: int = 16  # pixels of a patch, which is square, on either side
    channels: int = 3  # of a pixel
    distilled: bool = False  # whether a distillation token follows the class token (DeiT, Touvron et al. 2021)
    qkv_bias: bool = True  # biases in the projections to queries, keys and values

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("patch_size", "channels"):
            check(getattr(self, key) >= 1, f"model.{key}", getattr(self, key), "must be at least 1")
        for key in ("image_height", "image_width"):
            rule = f"must be at least model.patch_size={self.patch_size}"
            check(getattr(self, key) >= self.patch_size, f"model.{key}", getattr(self, key), rule)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the table of positions."""
        return self.image_height // self.patch_size, self.image_width // self.patch_size

    @property
    def num_special(self) -> int:
        """Tokens before the patches of an image, T: the class token and, of a distilled model, a second one."""
        return 1 + self.distilled

    @property
    def patch_values(self) -> int:
        """Values of a patch, P."""
        return self.channels * self.patch_size**2

    @property
    def has_qkv_bias(self) -> bool:
        return self.qkv_bias


class VisionTransformer(nn.Module):
    """Embedded patches behind special tokens, with positions interpolated to each image's grid; blocks; a norm."""

    def __init__(self, config: VisionConfig, *, attend: Attend = sdpa) -> None:
        super().__init__()
        self.config, self.attend = config, attend
        rows, columns = config.grid
        self.patch_embedding = nn.Linear(config.patch_values, config.width)
        self.special_embedding = nn.Parameter(torch.empty(config.num_special, config.width))
        self.position_embedding = nn.Parameter(torch.empty(config.num_special + rows * columns, config.width))
        self.blocks = nn.ModuleList(config.make_block(layer, attend) for layer in range(config.layers))
        self.final_norm = config.make_norm()

    def forward(self, patches: Patches) -> Tensor:
        """Return the final states of the special tokens, (S, T, D)."""
        count = self.config.num_special
        sizes = torch.tensor([rows * columns for rows, columns in patches.grids])
        images = torch.arange(len(sizes))
        owners = torch.cat([images.repeat_interleave(count), images.repeat_interleave(sizes)])
        order = owners.argsort(stable=True).to(patches.values.device)  # an image's special tokens, then its patches
        special = self.special_embedding + self.position_embedding[:count]
        embedded = self.patch_embedding(patches.values) + self.positions(patches.grids)
        x = torch.cat([special.repeat(len(sizes), 1).to(embedded.dtype), embedded])[order]
        x = F.dropout(x, self.config.dropout, self.training)
        lengths = (sizes + count).tolist()
        offsets = torch.tensor([0, *lengths]).cumsum(0).to(x.device)
        layout = Layout.of(offsets.int(), max(lengths), lengths)
        make_plans(self.blocks, x, layout, None)
        for block in self.blocks:
            x = block(x, layout)
        return self.final_norm(x[offsets[:-1, None] + torch.arange(count, device=x.device)])

    def positions(self, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Return the position vectors of the patches of images with these grids, (M, D).

        The table is interpolated bicubically where an image has another grid (Dosovitskiy et al. 2021, section 3.2).
        """
        rows, columns = self.config.grid
        own = self.position_embedding[self.config.num_special :]
        table = own.T.reshape(1, -1, rows, columns)
        vectors = {(rows, columns): own}
        for grid in set(grids) - vectors.keys():
            vectors[grid] = F.interpolate(table, size=grid, mode="bicubic", align_corners=False)[0].flatten(1).T
        return torch.cat([vectors[grid] for grid in grids])


class ImageClassifier(nn.Module):
    """A vision transformer with a linear head on the class token and, of two heads, one on the distillation token."""

    def __init__(
        self, config: VisionConfig, names: Sequence[str], *, num_heads: int = 1, attend: Attend = sdpa
    ) -> None:
        super().__init__()
        rule = "must be true for a second head, which reads the distillation token"
        check(num_heads <= config.num_special, "model.distilled", config.distilled, rule)
        self.names = list(names)  # of the classes, C
        self.model = VisionTransformer(config, attend=attend)
        self.heads = nn.ModuleList(nn.Linear(config.width, len(names)) for _ in range(num_heads))

    @classmethod
    def drawn(cls, config: VisionConfig, names: Sequence[str], *, num_heads: int = 1, seed: int = 0) -> Self:
        """Return a classifier with initial weights that depend on the seed and their names alone."""
        with torch.device("meta"):
            module = cls(config, names, num_heads=num_heads)
        module = module.to_empty(device="cpu")
        for name, parameter in module.named_parameters():
            total = parameter.numel()
            values = draw(module.initial(name), seed=seed, name=name, start=0, numel=total, total=total)
            parameter.data.copy_(values.view_as(parameter))
        return module

    @torch.no_grad()
    def resized(self, height: int, width: int) -> ImageClassifier:
        """Return a classifier whose table of positions is for images of this size, in pixels, interpolated once.

        It answers such images as this one does, and what loads it need not interpolate.
        """
        config = replace(self.model.config, image_height=height, image_width=width)
        module = ImageClassifier(config, self.names, num_heads=len(self.heads), attend=self.model.attend)
        special = self.model.position_embedding[: config.num_special]
        table = torch.cat([special, self.model.positions([config.grid])])
        module.load_state_dict(self.state_dict() | {"model.position_embedding": table})
        return module.train(self.training)

    def initial(self, name: str) -> Initial:
        """Return the distribution of a parameter's initial values."""
        return self.model.config.initial(name, self.get_parameter(name).ndim)

    def forward(self, patches: Patches) -> Tensor:
        """Return the logits of each head, (S, heads, C); their mean over heads is the answer (as in transformers)."""
        states = self.model(patches)
        return torch.stack([head(states[:, token]) for token, head in enumerate(self.heads)], dim=1).float()
