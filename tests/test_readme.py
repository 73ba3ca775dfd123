"""The commands of README.md run in order in a copy of the project. README.zh-CN.md has the same commands."""

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from datamodules import sources
from tests.conftest import DATA_ROOT, PROJECT

README = (PROJECT / "README.md").read_text()
LINES = re.findall(r"^    ((?:python|torchrun|tensorboard) .*)$", README, re.MULTILINE)
LIMITS = ["trainer.max_epochs=1", *(f"trainer.limit_{part}_batches=2" for part in ("train", "val", "test"))]


def _not_copied(folder: str, names: list[str]) -> list[str]:
    """Return the names that are not copied: runs, data, hidden files and virtual environments."""
    top = Path(folder) == PROJECT
    return [
        name for name in names
        if top and (name in ("outputs", "data") or name[0] == "." or Path(folder, name, "pyvenv.cfg").exists())
    ]  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, real_root: Path) -> Path:
    """Copy the project, and add the files that README.md tells to write, some digits and a table."""
    copy = tmp_path_factory.mktemp("readme") / "lit-classics"
    shutil.copytree(PROJECT, copy, ignore=_not_copied)
    for name, text in re.findall(r"<!-- file: (.*?) -->\n```\w+\n(.*?)```", README, re.DOTALL):
        (copy / name).write_text(text)
    for number in range(20):
        for place in (copy / "digits" / str(number % 2), copy / "drawn"):
            place.mkdir(parents=True, exist_ok=True)
            Image.new("L", (28, 28), 40 + 10 * number).save(place / f"{number}.png")
    with open(copy / "rows.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("size", "age", "price"), *((n, 40 - n, 3 * n + 1) for n in range(40))])
    (copy / "series.csv").write_text("0,0.1,0.2,0.3\n0.5,0.4,0.3,0.2\n")
    return copy


def limited_command(command: str) -> list[str]:
    """Return a command limited to two batches of each stage."""
    words = shlex.split(command)
    trains = "train.py" in words and not {"--help", "--cfg", "debug=overfit"} & set(words)
    limits = [word for word in LIMITS if "debug=fast" not in words] if trains else []
    words = [word for word in words if word != "check=true"]  # nothing is compared after two batches
    if "resume=last" in words:
        limits[0] = "trainer.max_epochs=2"
    if "experiment=mnist_forward_forward" in words:  # each layer makes 1,000 steps on 50,000 images
        limits += ["data.batch_size=500", "model.steps_per_batch=1"]
    if "trainer=ddp" in words:
        limits.append("trainer.accelerator=cpu")
    if {"sweep=mnist_lr", "hydra/sweeper=optuna"} & set(words):
        limits.append("hydra.sweeper.n_trials=2")
    program = {"python": [sys.executable]}.get(words[0], [str(Path(sys.executable).with_name(words[0]))])
    return [*program, *words[1:], *limits]


def test_readme_has_commands() -> None:
    assert len(LINES) > 25


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("command", [line for line in LINES if not line.startswith(("tensorboard", "python demo.py"))])
def test_readme_command_runs(command: str, project: Path) -> None:
    if "data=fashion_mnist" in command:  # where Debian's package is not installed and nothing can be downloaded
        try:
            sources.load("fashion_mnist", DATA_ROOT)
        except sources.DataUnavailable as error:
            pytest.skip(str(error))
    environment = {**os.environ, "DATA_ROOT": str(DATA_ROOT)}
    answer = subprocess.run(limited_command(command), cwd=project, env=environment, capture_output=True, text=True)
    if "gpu" in command and not torch.cuda.is_available():
        assert answer.stderr.startswith("error: there is no GPU here that torch can use")
        return
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout
    assert "Traceback" not in answer.stdout + answer.stderr


@pytest.mark.real
@pytest.mark.slow
def test_readme_tensorboard_command_starts(project: Path) -> None:
    (line,) = (line for line in LINES if line.startswith("tensorboard"))
    (project / "outputs").mkdir(exist_ok=True)
    command = [str(Path(sys.executable).with_name("tensorboard")), *shlex.split(line)[1:], "--port=0"]
    process = subprocess.Popen(command, cwd=project, stderr=subprocess.PIPE, text=True)
    try:
        assert any("http://localhost:" in line for line in process.stderr)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("file", re.findall(r"\]\((?!https?:)(.*?)\)", README))
def test_readme_links_exist(file: str) -> None:
    assert (PROJECT / file).exists()


def code_and_figures(text: str) -> tuple[list[str], list[str]]:
    """Return the indented and fenced code, and the numbers in the tables."""
    code = re.findall(r"^    .*$", text, re.MULTILINE) + re.findall(r"```.*?```", text, re.DOTALL)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return code, [number for row in rows for number in re.findall(r"\d[\d.,]*", row)]


def test_chinese_readme_has_the_same_commands_and_figures() -> None:
    ours, theirs = (code_and_figures(text) for text in (README, (PROJECT / "README.zh-CN.md").read_text()))
    assert ours == theirs
