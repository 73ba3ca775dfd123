"""docs/notebook.ipynb is what its script makes. Its cells and the Python of README.md run."""

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROJECT

nbformat = pytest.importorskip("nbformat")
SCRIPT = runpy.run_path(str(PROJECT / "docs" / "notebook.py"))
NOTEBOOK = PROJECT / "docs" / "notebook.ipynb"


def test_notebook_is_what_the_script_makes_and_has_no_place_of_a_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    made, written = SCRIPT["build"](), nbformat.reads(text, as_version=4)
    assert [(cell.cell_type, cell.source) for cell in written.cells] == [
        (cell.cell_type, cell.source) for cell in made.cells
    ]
    assert len(text) < 300_000
    assert not any(place in text for place in ("/home/", "/root/", "/work/", "/tmp/", "Traceback"))
    assert "epoch 6/6" in text and "image/png" in text and "image/jpeg" not in text


@pytest.mark.slow
def test_code_cells_of_the_notebook_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process, without the pictures, which conftest turns off."""
    Path("train.py").touch()
    monkeypatch.setattr(sys, "path", [*sys.path])
    names: dict[str, Any] = {}
    for kind, source in SCRIPT["CELLS"]:
        if kind == "code" and "figures" not in source.splitlines()[-1]:
            exec(source, names)
        elif kind == "code":
            exec(source.rpartition("\n")[0], names)
    assert names["run"].directory == Path("outputs/notebook").resolve()
    assert capsys.readouterr().out.endswith("has lr, betas, weight_decay, fused\n")
    assert len(names["run"].metrics) == 6


def test_python_of_the_readme_runs(
    random_images: Callable[[int, int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    random_images(200, 50)
    (source,) = re.findall(r"```python\n(from cli.compose .*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(source, names)
    assert names["cfg"].trainer.max_epochs == 1
    assert [row["epoch"] for row in names["run"].metrics] == [1, 2]
    assert names["metrics"]["test/loss"] == names["run"].result["metrics"]["test/loss"]
    assert len(names["rows"]) == 6 and type(names["rows"][0]["label"]) is str


@pytest.mark.slow
def test_notebook_runs_in_a_kernel_and_shows_the_live_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    Path("train.py").symlink_to(PROJECT / "train.py")
    notebook = SCRIPT["build"]()
    SCRIPT["run"](notebook, tmp_path)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert [output.data["text/plain"] for output in outputs if output.output_type == "display_data"] == ["", ""]
    assert (tmp_path / "outputs" / "notebook" / "result.json").is_file()
