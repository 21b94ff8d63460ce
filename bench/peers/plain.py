"""A hand-written loop around a hand-written GPT-2: what a person types who wants no framework.

Holds nothing that a framework adds: no checkpoints, no evaluation, no resume, no metrics beside the loss.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from workload import Clock, arguments, blocks


class Block(nn.Module):
    def __init__(self, width, heads, approximate):
        super().__init__()
        self.heads, self.approximate = heads, approximate
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x)), approximate=self.approximate))


class GPT(nn.Module):
    def __init__(self, args):
        super().__init__()
        approximate = {"gelu": "none", "gelu_new": "tanh"}[args.activation]
        self.tokens, self.positions = nn.Embedding(args.vocab, args.width), nn.Embedding(args.seq_len, args.width)
        self.blocks = nn.ModuleList(Block(args.width, args.heads, approximate) for _ in range(args.layers))
        self.norm = nn.LayerNorm(args.width)
        for weight in self.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)

    def forward(self, ids):
        x = self.tokens(ids) + self.positions.weight
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.tokens.weight.T


def main():
    args = arguments()
    torch.manual_seed(1)
    model = GPT(args)
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    vectors = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=True)
    forward = torch.compile(model) if args.compile else model
    clock = Clock()
    for step, ids in enumerate(torch.from_numpy(blocks(args)).split(args.batch)):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        loss = F.cross_entropy(forward(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.tick(loss.item())


main()
