"""Images: read from folders by Pillow, made into numbers, and cut into patches that lie end to end.

Holds no network; what becomes of patches is in `pretrain.models.vision`. Needs the extra `vision` to read files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pretrain.errors import ConfigError, DataError, check
from pretrain.models.vision import Patches, VisionConfig

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
MODES = {1: "L", 3: "RGB"}  # what Pillow calls images of so many channels


@dataclass(frozen=True, kw_only=True)
class PixelScale:
    """What maps a byte of a pixel to a number: (byte / 255 - mean) / std; the defaults are ViT's, to [-1, 1]."""

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # of each channel
    std: tuple[float, ...] = (0.5, 0.5, 0.5)  # of each channel

    def __post_init__(self) -> None:
        check(len(self.mean) == len(self.std), "image_std", self.std, f"needs {len(self.mean)} values, as image_mean")
        check(min(self.std) > 0, "image_std", self.std, "must be positive")


class LabelledImage(NamedTuple):
    """A file with its class."""

    path: Path
    label: str


def images_in(folder: Path) -> list[LabelledImage]:
    """Return the images of a folder that has one folder a class, sorted by their paths.

    Raises `ConfigError` for a folder that is not there and `DataError` for one without such images.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; name one that has a folder of images for each class")
    found = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in ENDINGS)
    if not found:
        raise DataError(f"{folder}: no images in FOLDER/CLASS/NAME; they end in {', '.join(ENDINGS)}")
    return [LabelledImage(path, path.parent.name) for path in found]


def read_image(path: Path, *, channels: int = 3) -> np.ndarray:
    """Return the pixels of a file, (H, W, channels) uint8. Raises `DataError` for one that is no readable image."""
    from PIL import Image

    check(channels in MODES, "model.channels", channels, f"images of files have {' or '.join(map(str, MODES))}")
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert(MODES[channels]))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: no image that Pillow reads ({error}); mend it or take it away") from None
    return pixels.reshape(*pixels.shape[:2], channels)


def cut(images: Iterable[np.ndarray], config: VisionConfig, scale: PixelScale) -> Patches:
    """Return the patches of images (H, W, channels) uint8 of any sizes, in their order.

    What is left at the right and below of whole patches is cut off, as the strided convolution of ViT does. Raises
    `DataError` for an image without a whole patch, with other channels, or with more tokens than the model may see.
    """
    cuts, grids = [], []
    for number, image in enumerate(images):
        grids.append(_grid(image.shape, number, config))
        cuts.append(_cut(image, grids[-1], config.patch_size, scale))
    if not cuts:
        raise DataError("no images: a batch needs one at least")
    return Patches(torch.from_numpy(np.concatenate(cuts)), grids)


def _grid(shape: Sequence[int], number: int, config: VisionConfig) -> tuple[int, int]:
    if len(shape) != 3 or shape[2] != config.channels:
        rule = f"must be (height, width, {config.channels}), as model.channels says"
        raise DataError(f"image {number}: shape {tuple(shape)} {rule}")
    rows, columns = shape[0] // config.patch_size, shape[1] // config.patch_size
    if not rows * columns:
        rule = f"has no whole patch of model.patch_size={config.patch_size}; enlarge it"
        raise DataError(f"image {number}: {shape[0]} x {shape[1]} pixels {rule}")
    if (tokens := rows * columns + config.num_special) > config.max_seq_len:
        rule = f"tokens are more than model.max_seq_len={config.max_seq_len}; make the image smaller"
        raise DataError(f"image {number}: {tokens:,} {rule}")
    return rows, columns


def _cut(image: np.ndarray, grid: tuple[int, int], size: int, scale: PixelScale) -> np.ndarray:
    """Return the patches of an image, (rows * columns, channels * size * size) fp32."""
    rows, columns = grid
    whole = image[: rows * size, : columns * size].astype(np.float32) / 255
    scaled = (whole - np.array(scale.mean, np.float32)) / np.array(scale.std, np.float32)
    apart = scaled.reshape(rows, size, columns, size, -1).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(apart).reshape(rows * columns, -1)
