"""Write and run the notebook ``docs/notebook.ipynb``, which shows how to train from Python.

python docs/notebook.py
"""

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).with_suffix(".ipynb")
# Cells of text and of code.
CELLS = (
    (
        "markdown",
        """# From Python

The commands are functions: `train`, `evaluate` and `predict` take the overrides of the command line as texts, print
the same lines, and write the same files. This notebook needs no network and runs in a few seconds.
`python docs/notebook.py` made it.""",
    ),
    (
        "code",
        """import os

if not os.path.exists("train.py"):
    os.chdir("..")  # the directory of the project: train is imported from there, and outputs/ goes there

from evaluate import evaluate
from predict import predict
from train import train""",
    ),
    (
        "markdown",
        """## Train

`hydra.run.dir=` names the directory; without it there is a new one in `outputs/`.""",
    ),
    (
        "code",
        """points = ("model=blobs_mlp", "data=blobs", "data.val_size=40")
run = train(*points, "trainer.max_epochs=3", "hydra.run.dir=outputs/notebook")""",
    ),
    (
        "markdown",
        """`run.result` is the content of `result.json`, `run.metrics` the rows of `metrics.csv`, and `run.figures` the
pictures. With pandas, `pandas.DataFrame(run.metrics)` is a table of numbers.""",
    ),
    (
        "code",
        "run.metrics",
    ),
    (
        "code",
        """run.result["metrics"]["test/acc"]""",
    ),
    (
        "code",
        """run.figures["boundary"]""",
    ),
    (
        "markdown",
        """## Resume

To train for longer, resume the run. It continues in its directory. To interrupt a training, interrupt the cell: the
checkpoint is saved, and the error says how to resume.""",
    ),
    (
        "code",
        """run = train("resume=outputs/notebook", "trainer.max_epochs=6")
run.figures["accuracy"]""",
    ),
    (
        "markdown",
        "## Evaluate and predict",
    ),
    (
        "code",
        """evaluate("run=outputs/notebook", "split=test")""",
    ),
    (
        "code",
        """predict("run=outputs/notebook", "split=test", "limit=4").rows""",
    ),
    (
        "markdown",
        """## Errors

An error is an exception with the line of the command line.""",
    ),
    (
        "code",
        """from cli.session import CommandError

try:
    train(*points, "optimizer.learning_rate=0.1")
except CommandError as error:
    print(error)""",
    ),
)


def build() -> Any:
    """Return the notebook without outputs."""
    notebook = nbformat.v4.new_notebook()
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for number, (kind, source) in enumerate(CELLS):
        new = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}[kind]
        notebook.cells.append(new(source, id=f"cell-{number}"))
    return notebook


def run(notebook: Any, folder: Path) -> None:
    """Run the cells of a notebook in a directory, without places and times that differ from run to run."""
    NotebookClient(
        notebook, timeout=600, coalesce_streams=True, resources={"metadata": {"path": str(folder)}}
    ).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop("image/jpeg", None)  # a second copy of the picture
    notebook.metadata.pop("language_info", None)


def main() -> None:
    """Write the notebook."""
    project = NOTEBOOK.parent.parent
    notebook = build()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PYTHONPATH"] = str(project)
        Path(folder, "train.py").symlink_to(project / "train.py")  # outputs/ goes beside it, and not into the project
        run(notebook, Path(folder))
    text = nbformat.writes(notebook)
    if found := re.search(re.escape(str(project)), text):
        raise ValueError(f"{found[0]} is a place on this machine")
    NOTEBOOK.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
