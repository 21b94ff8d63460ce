"""Profiled steps of whole runs: on the ranks that are asked for, and in fine-tuning."""

import gzip
import json

from ranks import run, tiny


def test_every_rank_that_is_asked_for_writes_its_steps(place):
    more = ["profile.steps=[3,5]", "profile.ranks=[0,1]", "train.micro_batch_size=4"]
    done = run(*tiny("profiled", *more), ranks=2, cwd=place)
    assert "profiled 2 steps up to step 5, in runs/profiled/profile/steps-3-5" in done.stderr
    for rank in (0, 1):
        path = place / "runs" / "profiled" / "profile" / "steps-3-5" / f"rank-{rank}.trace.json.gz"
        names = {event["name"] for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]}
        assert {"ProfilerStep#4", "ProfilerStep#5", "aten::mm", "gloo:all_reduce"} <= names
        assert not {"ProfilerStep#3", "ProfilerStep#6"} & names


def test_fine_tuning_is_profiled_as_well(place, one_process):
    rows = [f"the fox {number},{'odd' if number % 2 else 'even'}\n" for number in range(24)]
    (place / "rows.csv").write_text("text,label\n" + "".join(rows))
    task = ["task=classification", "task.train=rows.csv", "task.validation=rows.csv", "task.max_tokens=16"]
    sizes = [f"init_from={one_process}", "train.epochs=1", "train.batch_size=8", "run.name=tuned"]
    run(*task, *sizes, "profile.steps=[1,3]", cwd=place, program="finetune")
    assert json.loads((place / "runs/tuned/profile/steps-1-3/rank-0.json").read_text())["steps"] == 2
    refused = run(*task, *sizes, "run.name=short", "profile.steps=[1,4]", cwd=place, program="finetune", code=2)
    assert "profile.steps=[1, 4]: the run has 3 optimizer steps" in refused.stderr
