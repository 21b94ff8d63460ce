"""A vision transformer learns to read handwritten digits, from nothing, in a minute on two cores.

Trains on scikit-learn's digits (8 x 8 pixels, 1,797 of them) and writes the classifier as a directory that
`transformers` loads: `python -m examples.digits DIRECTORY`.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from pretrain.data.images import PixelScale, cut
from pretrain.hub.vit import Classifier, save_vit
from pretrain.models.vision import ImageClassifier, VisionConfig

CONFIG = VisionConfig(
    width=64, layers=4, heads=4, patch_size=2, channels=1, image_height=8, image_width=8, init_std=0.1
)
SCALE = PixelScale(mean=(0.5,), std=(0.5,))
BATCH_SIZE = 64  # images a step
LR = 2e-3  # the highest learning rate


class Digits(NamedTuple):
    """Images with their labels."""

    images: np.ndarray  # (E, 8, 8, 1) uint8
    labels: np.ndarray  # (E,) int64


def digits() -> tuple[Digits, Digits]:
    """Return the digits to learn from, and a quarter of all to measure."""
    found: Any = load_digits()
    pixels = (found.data.reshape(-1, 8, 8, 1) / 16 * 255).astype(np.uint8)
    places = np.arange(len(pixels))
    train, test = train_test_split(places, test_size=0.25, random_state=0, stratify=found.target)
    return Digits(pixels[train], found.target[train]), Digits(pixels[test], found.target[test])


def train(data: Digits, *, epochs: int, seed: int) -> ImageClassifier:
    """Return a classifier trained with AdamW and a cosine schedule (Loshchilov and Hutter 2017, 2019)."""
    module = ImageClassifier.drawn(CONFIG, [str(digit) for digit in range(10)], seed=seed).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=LR, weight_decay=0.05)
    draw, steps = np.random.default_rng(seed), epochs * -(-len(data.images) // BATCH_SIZE)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.1 * steps), 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    for _ in range(epochs):
        shuffled = draw.permutation(len(data.images))
        for first in range(0, len(data.images), BATCH_SIZE):
            chosen = shuffled[first : first + BATCH_SIZE]
            logits = module(cut(data.images[chosen], CONFIG, SCALE)).mean(1)
            F.cross_entropy(logits, torch.from_numpy(data.labels[chosen])).backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            rate.step()
    return module.eval()


@torch.no_grad()
def accuracy(module: ImageClassifier, data: Digits) -> float:
    """Return the share of images whose class has the highest logit."""
    answers = module(cut(data.images, CONFIG, SCALE)).mean(1).argmax(1)
    return float((answers.numpy() == data.labels).mean())


def main(arguments: list[str] | None = None) -> None:
    """Train, measure, and write the classifier."""
    parser = argparse.ArgumentParser(description="Train a small vision transformer on scikit-learn's digits.")
    parser.add_argument("directory", type=Path, help="where to write the classifier, for transformers")
    parser.add_argument("--epochs", type=int, default=30, help="passes over the training set (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and of order (default %(default)s)")
    options = parser.parse_args(arguments)
    known, unseen = digits()
    module = train(known, epochs=options.epochs, seed=options.seed)
    print(f"accuracy on {len(unseen.images)} digits: {accuracy(module, unseen):.3f}")
    print(save_vit(options.directory, Classifier(module, SCALE)))


if __name__ == "__main__":
    main()
