"""litgpt's GPT and loss under Lightning Fabric, step for step as litgpt's own pretraining does it.

litgpt 0.5 and transformers 5 want different versions of huggingface-hub, so this peer needs an environment of its own.
Its model has rotary positions and a head that is not tied to the embedding; the rest of the shape is GPT-2's.
"""

import math

import torch
from lightning.fabric import Fabric
from litgpt import GPT, Config
from litgpt.utils import chunked_cross_entropy
from workload import Clock, arguments, blocks


def main():
    args = arguments()
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    fabric.seed_everything(1, verbose=False)
    config = Config(
        block_size=args.seq_len,
        n_layer=args.layers,
        n_embd=args.width,
        n_head=args.heads,
        vocab_size=args.vocab,
        padded_vocab_size=args.vocab,
        attn_bias=True,
        parallel_residual=False,
        rotary_percentage=1.0,
        gelu_approximate={"gelu": "none", "gelu_new": "tanh"}[args.activation],
    )
    model = GPT(config)
    model.apply(lambda part: part.reset_parameters() if hasattr(part, "reset_parameters") else None)
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.02)
    model = fabric.setup(torch.compile(model) if args.compile else model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    optimizer = fabric.setup_optimizers(optimizer)
    clock = Clock()
    for step, ids in enumerate(torch.from_numpy(blocks(args)).split(args.batch)):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        loss = chunked_cross_entropy(model(ids[:, :-1].contiguous()), ids[:, 1:].contiguous())
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.tick(loss.item())


main()
