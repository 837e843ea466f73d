"""The examples run: the script in this process, the notebook in a kernel of its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "tour.ipynb"


def test_compress_and_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("compress_and_compare", EXAMPLES / "compress_and_compare.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    small = ["--samples", "4", "--length", "128", "--windows", "2", "--recipes", "rtn, 4 bits", "gptq, 4 bits"]
    script.main(["--output", str(tmp_path), *small])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["recipe", "dense", "rtn, 4 bits", "gptq, 4 bits"]
    assert (tmp_path / "rtn-4bits" / "ledger.json").is_file()
    assert 0 < float(lines[-1].split()[5]) < 0.2, "KL of 4 bits"


def test_notebook_is_stored_without_outputs() -> None:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
    assert "except ImportError" in cells[0].source


def test_notebook_runs(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs)
    assert "top1_agreement" in printed and "gptq 2 bits" in printed
