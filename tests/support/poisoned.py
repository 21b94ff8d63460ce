"""Programs that pretrain on data, or on hardware, with a fault in it."""

# The targets of the data steps POISONED=FIRST:END, of 8 slots each, are no language: the loss of these steps is high.
POISONED = """
import os, runpy
import numpy as np
from pretrain.data.stream import TrainStream

locate, read = TrainStream.locate, TrainStream.read
first, end = map(int, os.environ["POISONED"].split(":"))
MARK = 1000  # added to the epoch of a slot

def marked(stream, numbers):
    keys = locate(stream, numbers).copy()
    keys[(numbers // 8 >= first) & (numbers // 8 < end), 1] += MARK
    return keys

def poisoned(stream, keys):
    bad = keys[:, 1] >= MARK
    slots = read(stream, keys - np.outer(bad, [0, MARK, 0]))
    for number in np.flatnonzero(bad):
        here = slice(*slots.slots[number : number + 2])
        ids = slots.following[here]
        slots.following[here] = np.where(ids >= 0, 299 - ids % 300, ids)
    return slots

TrainStream.locate, TrainStream.read = marked, poisoned
runpy.run_module("pretrain", run_name="__main__")
"""

# A hook that flips one bit of one weight at a step.
FLIPPED = """
import runpy
from dataclasses import dataclass
import torch
from pretrain.registry import register
from pretrain.train.own_hooks import Hook, HookConfig

@register("hook", "flipping")
@dataclass(kw_only=True)
class FlippingConfig(HookConfig):
    step: int
    weight: str  # its name ends so
    bit: int
    rank: int = 0

    def build(self):
        return Flipping(self)

class Flipping(Hook):
    def __init__(self, cfg):
        self.cfg = cfg
    def begin(self, run):
        self.run = run
    def logged(self, record):
        if record["step"] == self.cfg.step and self.run.world.rank == self.cfg.rank:
            [weight] = [each for name, each in self.run.module.named_parameters() if name.endswith(self.cfg.weight)]
            weight.data.view(-1).view(torch.int32)[5] ^= 1 << self.cfg.bit

runpy.run_module("pretrain", run_name="__main__")
"""
