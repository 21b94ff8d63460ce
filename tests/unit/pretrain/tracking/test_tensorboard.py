"""TensorBoard, really run, and its event files read back against metrics.jsonl."""

import pytest
from tracked import run, truth

from pretrain.tracking.tensorboard_sink import TensorBoardConfig


def test_tensorboard_events_equal_metrics_jsonl_after_a_kill(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(TensorBoardConfig(), tmp_path, 0, 7)  # killed after step 7, with a checkpoint at step 4
    run(TensorBoardConfig(), tmp_path, 4, 9)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == sorted(
        ["train/loss", "train/tokens", "train/lr", "eval/loss", "eval/perplexity", "eval/tokens"]
    )
    read = {("train", event.step): event.value for event in events.Scalars("train/loss")}
    read |= {("validation", event.step): event.value for event in events.Scalars("eval/loss")}
    assert read == pytest.approx(truth(tmp_path), rel=1e-7)  # event files hold float32
    assert len(events.Scalars("train/loss")) == 9
