"""TensorBoard, really run, and its event files read back against metrics.jsonl."""

import pytest
from tracked import run, truth

from pretrain.tracking.base import Sample
from pretrain.tracking.tensorboard_sink import TensorBoardConfig, TensorBoardSink


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


def test_samples_are_texts_in_which_no_markdown_is_read(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, steps in ((0, (4, 8)), (4, (8, 12))):  # killed after step 8, with a checkpoint at step 4
        sink = TensorBoardSink(tmp_path, start)
        for step in steps:
            sink.sampled(step, [Sample("# Title\n", f"*a*\n\nb {start}"), Sample("", "c")])
        sink.close(0)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    [tag] = events.Tags()["tensors"]
    found = {event.step: event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)}
    text = "    # Title\n    *a*\n    \n    b {}\n\n---\n\n    c"
    assert found == {4: text.format(0), 8: text.format(4), 12: text.format(4)}
