"""`examples/quickstart.ipynb` runs from its first cell to its last, as Jupyter would run it."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.installed import Demo
from tests.paths import REPOSITORY

NOTEBOOK = REPOSITORY / "examples" / "quickstart.ipynb"


@pytest.mark.timeout(900)
def test_it_runs(tmp_path: Path, demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALANCE_CACHE", str(demo.cache))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    first = next(output.data["text/html"] for output in shown[0] if output.output_type == "execute_result")
    assert "distinct neighbours of 60 seeds" in first
    assert first.count("data:audio/mpeg;base64,") == first.count('alt="spectrogram of') == 10
    assert len(first) < 1 << 20
    losses = shown[-1][-1].data["text/plain"]
    assert losses.count(",") == 2


def test_it_is_kept_without_results() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")
