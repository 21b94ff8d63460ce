"""Profiled steps: what is in the trace and in the table, what is in neither, and what speed leaves out."""

import gzip
import json
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import profiler as torch_profiler

from pretrain.compose import compose
from pretrain.distributed.world import World
from pretrain.errors import ConfigError
from pretrain.train.loop import TrainState
from pretrain.train.metrics import Throughput
from pretrain.train.profiling.base import ProfileConfig, compressed, drawn
from pretrain.train.profiling.operators import NO_OPERATOR, operator_table, tables_of

X = torch.eye(8)


class Run:
    """Steps of one product each, a sine between them, and a clock that each step moves by 1 s and 10 tokens."""

    def __init__(self, path, *, steps, at=0, rank=0, **settings):
        self.path, self.now = path, 0.0
        self.state = TrainState(step=at, tokens=10 * at)
        self.throughput = Throughput(at, 10 * at, 1.0, None, clock=lambda: self.now)
        world = World(rank=rank, size=2, device=torch.device("cpu"))
        self.profiler = ProfileConfig(steps=steps, **settings).build(path, self.state, world, self.throughput)

    def train(self, until):
        """Train to a step; return the speed after each."""
        speeds = {}
        with drawn(iter(lambda: [X.relu()], None), self.profiler) as steps:
            for [x] in steps:
                x @ x
                self.now += 1
                self.state.step += 1
                self.state.tokens += 10
                if self.profiler:
                    self.profiler.end_step()
                speeds[self.state.step] = self.throughput.lap(self.state.step, self.state.tokens)["tokens_per_s"]
                X.sin()  # as an evaluation would
                if self.state.step == until:
                    break
        return speeds

    def files(self):
        return sorted(str(path.relative_to(self.path)) for path in self.path.rglob("*.*"))


def counts(path):
    """Return how often each event is in a trace."""
    names = [event["name"] for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]]
    return {name: names.count(name) for name in names}


def test_the_steps_of_the_window_are_profiled_and_no_other(tmp_path, caplog):
    run = Run(tmp_path, steps=[2, 5])
    with caplog.at_level("INFO", "pretrain"):
        speeds = run.train(until=7)
    assert run.files() == ["profile/steps-2-5/rank-0.json", "profile/steps-2-5/rank-0.trace.json.gz"]
    traced = counts(tmp_path / "profile/steps-2-5/rank-0.trace.json.gz")
    assert [name for name in traced if name.startswith("ProfilerStep")] == [f"ProfilerStep#{n}" for n in (3, 4, 5)]
    assert (traced["aten::mm"], traced["aten::relu"], traced["aten::sin"]) == (3, 3, 2)
    [(first, last, rank, table)] = tables_of(tmp_path)
    assert (first, last, rank, table["steps"], table["device"]) == (2, 5, 0, 3, "cpu")
    operators = {each["name"]: each for each in table["operators"]}
    assert operators["aten::mm"]["calls"] == 3 and "aten::sin" not in operators
    costs = [each["self_ms"] for each in table["operators"]]
    assert costs == sorted(costs, reverse=True) and sum(costs) <= table["total_ms"] * (1 + 1e-9)
    assert sum(each["share"] for each in table["operators"]) == pytest.approx(sum(costs) / table["total_ms"])
    assert "profiled 3 steps up to step 5, in " in caplog.text and " aten::mm\n" in caplog.text
    assert speeds == {step: None if step in (3, 4, 5) else 10.0 for step in range(1, 8)}


def test_a_resume_amid_the_window_profiles_the_rest(tmp_path, caplog):
    run = Run(tmp_path, steps=[2, 5], at=4)
    with caplog.at_level("INFO", "pretrain"):
        run.train(until=6)
    assert tables_of(tmp_path)[0].table["steps"] == 1
    assert "profiled 1 steps up to step 5, after a resume at step 4, in " in caplog.text


def test_a_resume_behind_the_window_has_nothing_to_profile(tmp_path):
    assert Run(tmp_path, steps=[2, 5], at=5).profiler is None


@pytest.mark.parametrize("until", [2, 4])  # while it gets ready, and amid the window
def test_a_run_that_ends_before_the_window_stops_the_profiler(tmp_path, caplog, until):
    run = Run(tmp_path, steps=[2, 5])
    run.train(until=until)
    assert not torch_profiler._is_profiler_enabled and run.files() == []
    assert f"the run ended at step {until}, within profile.steps: no profile is written" in caplog.text
    run.throughput.restart(0, 0)
    Run(tmp_path, steps=[0, 1]).train(until=1)  # there can be another one
    assert tables_of(tmp_path)[0].table["steps"] == 1


def test_a_rank_that_writes_nothing_leaves_the_steps_out_of_its_speed(tmp_path):
    run = Run(tmp_path, steps=[2, 5], rank=1)
    assert run.train(until=6)[4] is None and run.files() == []


def test_a_profile_that_cannot_be_written_is_told_of_and_the_run_goes_on(tmp_path, caplog):
    (tmp_path / "profile").write_text("a file")
    Run(tmp_path, steps=[0, 1]).train(until=3)
    assert "cannot write" in caplog.text and "the run goes on without a profile" in caplog.text


def event(name, start, end, *, device_us=0.0, device="CUDA", note=False):
    """An event on the host, at times in microseconds; one that was on the device if `device_us` is None."""
    on_host = device_us is not None
    return SimpleNamespace(
        name=name,
        trace_name=name,
        device_type=SimpleNamespace(name="CPU" if on_host else device),
        time_range=SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start),
        self_device_time_total=device_us,
        self_cpu_time_total=end - start,
        is_user_annotation=note,
    )


def test_on_a_gpu_an_operator_costs_the_kernels_that_it_launched():
    events = [
        event("ProfilerStep#1", 0, 100),
        event("aten::mm", 10, 20, device_us=300.0),
        event("evaluation", 150, 160, device_us=50.0),  # between two steps
        event("ProfilerStep#2", 200, 300),
        event("aten::mm", 210, 220, device_us=100.0),
        event("graph", 100, 500, device_us=None),  # kernels: 400 us of products, 50 of the evaluation, 100 of a graph
        event("gemm", 500, 650, device_us=None),
        event("ProfilerStep#1", 100, 650, device_us=None, note=True),  # the device's copy of the span
    ]
    table = operator_table(events, "cuda")
    assert (table["steps"], table["wall_ms"], table["total_ms"]) == (2, 0.2, 0.5)
    assert table["operators"] == [
        {"name": "aten::mm", "calls": 2, "self_ms": 0.4, "share": 0.8},
        {"name": NO_OPERATOR, "calls": 0, "self_ms": 0.1, "share": 0.2},
    ]


def test_a_snapshot_of_memory_is_json():
    snapshot = {"segments": [{"address": 2**46, "segment_pool_id": (0, 1), "blocks": []}], "device_traces": [[]]}
    assert json.loads(gzip.decompress(compressed(snapshot)))["segments"][0]["segment_pool_id"] == [0, 1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["profile.steps=[10]"], r"profile\.steps=\[10\]: two steps such as \[10,13\]"),
        (["profile.steps=[13,10]"], r"profile\.steps=\[13, 10\]: .*below the last"),
        (["profile.steps=[0,11]"], r"profile\.steps=\[0, 11\]: at most 10 steps"),
        (["profile.ranks=[1]"], r"profile\.ranks=\[1\]: nothing is profiled without profile\.steps; set it"),
        (["profile.ranks=[0,0]"], r"profile\.ranks=\[0, 0\]: at least one rank, each"),
        (
            ["profile.steps=[10,13]", "train.steps=12", "schedule.warmup_steps=2"],
            r"profile\.steps=\[10, 13\]: the run has 12 optimizer steps",
        ),
        (["profile.steps=[1,2]", "profile.ranks=[2]"], r"profile\.ranks=\[2\]: the run has ranks 0 to 1"),
    ],
)
def test_what_cannot_be_profiled_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        compose(["experiment=demo", "train.batch_size=32", "train.micro_batch_size=8", *settings]).check_start(
            ranks=2, device_type="cpu"
        )
