"""docs/faults.md: every fault has its row, and every test that a row names exists."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAULTS = 58
SECURITY = 9
CODES = {"0", "1", "2", "3", "4", "5", "6", "7", "8", "85"}


def rows(heading: str) -> list[list[str]]:
    """Return the cells of a table's rows, below a heading of the page."""
    text = (ROOT / "docs" / "faults.md").read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


@cache
def functions(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_fault_has_a_row_and_a_code():
    table = rows("Runs")
    assert [cells[0] for cells in table] == [str(number) for number in range(1, FAULTS + 1)]
    for _, fault, answer, codes, tests in table:
        assert fault and answer and tests
        assert {*codes.split(", ")} <= CODES
    assert len(rows("Security")) == SECURITY


@pytest.mark.parametrize("cells", rows("Runs") + rows("Security"), ids=lambda cells: cells[0])
def test_the_tests_of_a_fault_exist(cells):
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", cells[-1])
    assert named and len(named) == len(cells[-1].split(", "))
    for file, name in named:
        assert name in functions(ROOT / file), f"{file} has no {name}"
