"""What is set around a process: only what the user has not, and cores near its GPU."""

import os

import pytest

from pretrain.distributed import environment
from pretrain.distributed.environment import ALLOCATOR, OLD_ALLOCATOR, RECORDER, RECORDER_FILE, cores_of, prepare


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    monkeypatch.setattr(os, "environ", {})


def test_a_gpu_has_segments_that_grow_and_a_cpu_has_none():
    assert ALLOCATOR not in {choice.name for choice in prepare(on_gpu=False)} and ALLOCATOR not in os.environ
    del os.environ[RECORDER]
    chosen = {choice.name: choice for choice in prepare(on_gpu=True, trace="runs/a/hang/trace-")}
    expected = {ALLOCATOR: "expandable_segments:True", RECORDER: "2000", RECORDER_FILE: "runs/a/hang/trace-"}
    assert {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")} == expected
    assert not any(choice.own for choice in chosen.values())
    assert chosen["CUDA_DEVICE_MAX_CONNECTIONS"].value == "unset"
    assert chosen["TORCH_CPP_LOG_LEVEL"].value == "unset", "a command has set it before"


@pytest.mark.parametrize("name", [ALLOCATOR, OLD_ALLOCATOR, RECORDER])
def test_what_the_user_has_set_stays(name):
    os.environ[name] = "mine"
    [choice] = [choice for choice in prepare(on_gpu=True) if choice.own]
    assert (choice.name, choice.value, os.environ[name]) == (name, "mine", "mine")
    assert (ALLOCATOR in os.environ) == (name != OLD_ALLOCATOR), "the old name counts for torch, too"


@pytest.mark.parametrize(
    ("text", "cores"), [("0-3,8\n", {0, 1, 2, 3, 8}), ("5", {5}), ("\n", set()), ("0,2-3", {0, 2, 3})]
)
def test_cores_are_read_as_the_kernel_writes_them(text, cores):
    assert cores_of(text) == cores


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of two nodes of four cores, with a GPU; return how to bind a process that may use some cores."""
    bound = []
    monkeypatch.setattr(environment, "PCI", tmp_path / "pci")
    monkeypatch.setattr(environment, "NODES", tmp_path / "nodes")
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: bound.append(cores))

    def bind(node, allowed):
        gpu = tmp_path / "pci" / "0001:3b:0a.0"
        gpu.mkdir(parents=True, exist_ok=True)
        (gpu / "numa_node").write_text(f"{node}\n")
        for number, cores in enumerate(["0-3", "4-7"]):
            (tmp_path / "nodes" / f"node{number}").mkdir(parents=True, exist_ok=True)
            (tmp_path / "nodes" / f"node{number}" / "cpulist").write_text(f"{cores}\n")
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(allowed))
        return environment.bind_to_node((1, 0x3B, 0xA)), bound

    return bind


@pytest.mark.parametrize(
    ("node", "allowed", "expected"),
    [
        (1, range(8), [{4, 5, 6, 7}]),
        (0, [2, 3, 4], [{2, 3}]),  # what Slurm or a container gave counts
        (0, [1, 2], []),  # near already
        (1, [1, 2], []),  # somebody wanted them elsewhere
        (-1, range(8), []),  # one node, or a virtual machine that does not say
        (7, range(8), []),  # no such node
    ],
)
def test_a_process_stays_on_the_cores_near_its_gpu_among_those_it_may_use(machine, node, allowed, expected):
    choice, bound = machine(node, allowed)
    assert bound == expected
    assert ("all stay" in choice.reason) == (node not in (0, 1) or not set(allowed) & {4 * node + i for i in range(4)})


def test_a_gpu_that_no_bus_knows_binds_nothing(machine):
    machine(0, range(8))
    assert environment.bind_to_node((9, 9, 9)).reason.startswith("all stay")
