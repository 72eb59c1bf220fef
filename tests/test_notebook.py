"""The notebook runs from top to bottom, and is kept without what it printed."""

import base64
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "quickstart.ipynb"


def test_it_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) > 3
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


def test_it_runs(toy_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KORQUAD_E5_MODEL", str(toy_model_dir))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert f"{toy_model_dir.resolve()} 32\n" in printed
    assert "of 6 questions find their passage first" in printed
    figures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert [base64.b64decode(figure)[:4] for figure in figures] == [b"\x89PNG"] * 2
    said = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stderr")
    assert "Glyph" not in said  # of the figures: every Hangul syllable was in the font
