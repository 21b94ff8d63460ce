"""Runs of a tracker without training: records of known numbers."""

import json

SECRET = "f00d" * 10


def records(first, last):
    for step in range(first, last + 1):
        yield {"step": step, "split": "train", "loss": 10 / 3 / step, "tokens": step * 64, "lr": 1e-3, "mfu": None}
        if step % 2 == 0:
            yield {"step": step, "split": "validation", "loss": 7 / step, "perplexity": 2.0, "tokens": step * 64}


def build(config, folder, start, last):
    """Return the tracker of a run that resumes at `start`."""
    return config.build(
        run_dir=folder,
        run_name="my run",
        total_steps=last,
        config={"optim": {"lr": 1e-3}, "hub": {"token": SECRET}},
        start_step=start,
    )


def run(config, folder, start, last, exit_code=0):
    """Log records as a run that resumes at `start` would."""
    tracker = build(config, folder, start, last)
    for record in records(start + 1, last):
        tracker.log(record)
    tracker.close(exit_code)


def truth(folder):
    """Return {(split, step): loss} of metrics.jsonl."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {(line["split"], line["step"]): line["loss"] for line in lines}
