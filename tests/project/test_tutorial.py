"""docs/tutorial.ipynb runs from its first cell to its last, with two training steps."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers import REPOSITORY

NOTEBOOK = REPOSITORY / "docs" / "tutorial.ipynb"


def test_the_notebook_holds_no_outputs_and_its_links_lead_somewhere() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
        for target in re.findall(r"\]\(([^)#]+)\)", "".join(cell["source"])):
            assert cell["cell_type"] == "code" or (NOTEBOOK.parent / target).is_file(), target


@pytest.mark.timeout(600)
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("TUTORIAL_STEPS", "2")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # The kernel of this very Python, whatever Jupyter knows on this machine.
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "none"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=500,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    done = client.execute()
    text = "".join(
        output.get("text", "") for cell in done.cells for output in cell.get("outputs", [])
    )
    for figure in ("pAcc", "sIoU", "uIoU", "hIoU"):
        assert re.search(rf"^{figure} (\d|None)", text, re.MULTILINE)
    shown = [
        kind
        for cell in done.cells
        for output in cell.get("outputs", [])
        for kind in output.get("data", {})
    ]
    assert shown.count("image/png") == 2 and "text/html" in shown
    evaluation = json.loads(
        (tmp_path / "output/garden/inference/evaluation_garden_val.json").read_text()
    )
    assert f"pAcc {evaluation['metrics']['pAcc']}" in text
