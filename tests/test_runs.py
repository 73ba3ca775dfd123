"""A finished run: its directory, its metrics, and that the same command gives the same bits."""

import csv
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from runs import result

BLOBS = ("model=blobs_mlp", "data=blobs", "model.steps_per_batch=50", "trainer.max_epochs=3", "trainer.accelerator=cpu")


def read_rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory):
    """Run the same command twice at the same time. Return ``outputs/`` and what each run printed."""
    import sys

    from tests.conftest import PROJECT

    folder = tmp_path_factory.mktemp("runs")
    same_name = "hydra.run.dir=${new_or_resumed_run_dir:null,outputs/same_name}"
    command = [sys.executable, str(PROJECT / "train.py"), *BLOBS, same_name]
    together = [subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate()[0] for process in together]
    assert [process.returncode for process in together] == [0, 0], printed
    assert sorted(os.listdir(folder / "outputs")) == ["blobs_mlp_on_blobs", "last", "same_name", "same_name-2"]
    return folder / "outputs", printed


def test_run_directory_holds_the_documented_files(two_runs) -> None:
    run = two_runs[0] / "same_name"
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert {"config.yaml", "metrics.csv", "result.json", "train.log"} <= names
    assert {"checkpoints/best.ckpt", "checkpoints/last.ckpt"} <= names
    assert not [name for name in names if name.endswith(".tmp")]
    assert {"pictures/boundary.png", "pictures/loss.png"} <= names


def test_outputs_last_points_to_one_of_the_runs(two_runs) -> None:
    assert (two_runs[0] / "last").resolve().name in ("same_name", "same_name-2")


def test_same_command_gives_identical_metrics_and_weights(two_runs) -> None:
    ours, theirs = read_rows(two_runs[0] / "same_name"), read_rows(two_runs[0] / "same_name-2")
    assert [row | {"seconds": ""} for row in ours] == [row | {"seconds": ""} for row in theirs]
    weights = [
        torch.load(two_runs[0] / name / "checkpoints/last.ckpt")["state_dict"] for name in ("same_name", "same_name-2")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_metrics_csv_has_one_row_per_epoch(two_runs) -> None:
    table = read_rows(two_runs[0] / "same_name")
    assert list(table[0]) == ["epoch", "step", "train/loss", "train/acc", "seconds"]
    assert [(row["epoch"], row["step"]) for row in table] == [("1", "50"), ("2", "100"), ("3", "150")]
    assert float(table[-1]["train/loss"]) < float(table[0]["train/loss"])


def test_result_json_describes_the_run(two_runs) -> None:
    result = json.loads((two_runs[0] / "same_name" / "result.json").read_text())
    assert result["experiment"] is None
    assert (result["model"], result["data"], result["seed"]) == ("blobs_mlp", "blobs", 1)
    assert (result["status"], result["params"], result["epochs"], result["steps"]) == ("finished", 57, 3, 150)
    assert set(result["seconds"]) == {"fit", "test", "total"}
    assert result["command"].startswith("python train.py model=blobs_mlp")
    assert {"git", "versions", "device", "data_md5"} <= set(result)
    assert 0.5 < result["metrics"]["test/acc"] <= 1


def test_config_yaml_is_resolved(two_runs) -> None:
    text = (two_runs[0] / "same_name" / "config.yaml").read_text()
    assert "${" not in text
    assert yaml.safe_load(text)["model"]["net"]["hidden_sizes"] == [5, 5]


def test_checkpoints_hold_plain_values_and_the_config(two_runs) -> None:
    for name in ("best", "last"):
        checkpoint = torch.load(two_runs[0] / "same_name" / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert checkpoint["config"]["model"]["_target_"] == "lit_models.Classifier"
        assert checkpoint["global_step"] == 150


def test_event_files_hold_the_curves(two_runs) -> None:
    titles = [(two_runs[0] / name / "dashboard.txt").read_text().strip() for name in ("same_name", "same_name-2")]
    title = "outputs/blobs_mlp_on_blobs/steps_per_batch=50 max_epochs=3 seed=1"
    assert sorted(titles) == [title, f"{title} (2)"]
    events = EventAccumulator(str(two_runs[0].parent / titles[0])).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [50, 100, 150]
    assert [event.step for event in events.Scalars("test/acc")] == [150]


def test_final_table_is_printed(two_runs) -> None:
    for printed in two_runs[1]:
        for part in ("test accuracy", "test loss", "57 parameters", "same_name", "tensorboard --logdir outputs"):
            assert part in printed
        assert printed.count("\n") < 20  # stdout is a pipe, so there is no progress bar


def test_run_reaches_its_test_accuracy(two_runs) -> None:
    result = json.loads((two_runs[0] / "same_name" / "result.json").read_text())
    assert result["metrics"]["test/acc"] >= 0.95


def test_cnn_learns_and_best_ckpt_holds_the_best_epoch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An image of class k has a bright column band k."""
    import datamodules
    import train
    from cli.compose import compose

    def load(self):
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(10).repeat(60)
        images = torch.randint(60, (600, 1, 28, 28), dtype=torch.uint8, generator=generator)
        for label in range(10):
            images[labels == label, :, :, 2 + 2 * label : 6 + 2 * label] += 150
        return (images[:500], labels[:500]), (images[500:], labels[500:])

    monkeypatch.setattr(datamodules.MNIST, "load", load)
    cfg = compose("data.val_size=100", "data.batch_size=20", "trainer.accelerator=cpu", "logger=none")
    result = train.train_config(cfg, tmp_path)
    assert result["metrics"]["test/acc"] >= 0.95
    table = read_rows(tmp_path)
    best = max(range(5), key=lambda epoch: float(table[epoch]["val/acc"]))
    assert torch.load(tmp_path / "checkpoints/best.ckpt")["epoch"] == best
    assert torch.load(tmp_path / "checkpoints/last.ckpt")["epoch"] == 4


def test_metrics_are_means_over_examples(tmp_path: Path) -> None:
    """500 points give batches of 300 and 200. A mean of batch means would give the last batch too much weight."""
    import datamodules
    import train
    from cli.compose import compose

    cfg = compose(*BLOBS, "data.size=500", "data.eval_batch_size=300", "logger=none")
    result = train.train_config(cfg, tmp_path)
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(2, 5), torch.nn.Sigmoid(), torch.nn.Linear(5, 5), torch.nn.Sigmoid(),
        torch.nn.Linear(5, 2),
    )  # fmt: skip
    weights = torch.load(tmp_path / "checkpoints/last.ckpt")["state_dict"]
    net.load_state_dict({name.removeprefix("net."): weight for name, weight in weights.items()})
    _, (points, labels) = datamodules.Blobs(size=500, data_seed=2).load()
    logits = net(points)
    assert result["metrics"]["test/loss"] == pytest.approx(
        torch.nn.functional.cross_entropy(logits, labels).item(), 1e-5
    )
    assert result["metrics"]["test/acc"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())


def test_revision_is_read_without_a_lock_of_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command of git that the user types at the same time would fail."""

    def git(*arguments: str) -> None:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (file := tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "one")
    monkeypatch.setattr(result, "__file__", str(file))
    os.utime(file, (1, 1))
    before = (tmp_path / ".git/index").read_bytes()
    assert re.fullmatch("[0-9a-f]{7,12}", revision := result.git_revision.__wrapped__())
    assert (tmp_path / ".git/index").read_bytes() == before
    file.write_text("2")
    assert result.git_revision.__wrapped__() == f"{revision}-dirty"
