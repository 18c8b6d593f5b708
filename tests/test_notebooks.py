"""Every notebook runs from the first to the last cell, with a few steps of a small model, and holds small outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
FEW = {"steps": "steps = 4", "steps, seeds": "steps, seeds = 2, 2"}
"""For the names on the left of the cell tagged `parameters`: what to run instead."""
SMALL = """
import functools, lit_lm
small = {"model.net.d_model": 32, "model.net.num_layers": 1}
lit_lm.train = functools.partial(lit_lm.train, **small, **{"trainer.limit_val_batches": 1})
"""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = FEW[parameters.source.partition(" = ")[0]] + SMALL
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_its_outputs_and_is_small(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert any(cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    assert path.stat().st_size < 250_000
