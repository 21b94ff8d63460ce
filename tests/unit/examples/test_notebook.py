"""The notebook that users copy runs from its first cell to its last, and what it shows is readable."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[3]
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"


def test_the_notebook_is_committed_without_outputs():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    for name, value in {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=250, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    lines = [line for line in printed.splitlines() if line.startswith("step ")]
    assert len(lines) > 7 and not [line for line in printed.splitlines() if "\r" in line or "\x1b" in line]
    shown = [output.data for output in outputs if output.output_type in ("execute_result", "display_data")]
    assert [data for data in shown if "image/png" in data], "the curves"
    assert [data for data in shown if "accuracy" in data["text/plain"]], "the metrics"
    assert (tmp_path / "runs" / "lines" / "export" / "model.safetensors").is_file()
