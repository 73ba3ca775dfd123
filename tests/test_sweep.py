"""What a sweep leaves behind: one ranked table of all its jobs."""

import csv
import json
from pathlib import Path

import matplotlib.image
import pytest

from callbacks.sweep import Summary


def job(number: int, overrides: list[str], accuracy: float | None, **more: str) -> None:
    folder = Path("sweep") / str(number)
    folder.mkdir(parents=True)
    metrics = {} if accuracy is None else {"val/acc": accuracy, "test/acc": accuracy - 0.01, "test/acc/cat": 0.5}
    result = {"command": f"python train.py {' '.join(overrides)}", "overrides": overrides, "metrics": metrics}
    (folder / "result.json").write_text(json.dumps(result | {"status": "finished"} | more))


@pytest.fixture
def seeds() -> Summary:
    """Two models and three seeds; the model with the best run is not the one that is better on average."""
    accuracies = {"mlp": (0.90, 0.91, 0.99), "cnn": (0.95, 0.96, 0.97)}
    runs = [(model, seed, accuracies[model][seed - 1]) for model in accuracies for seed in (1, 2, 3)]
    for number, (model, seed, accuracy) in enumerate(runs):
        job(number, ["data=mnist", f"model={model}", f"seed={seed}"], accuracy)
    return Summary(Path("sweep"))


def test_seeds_are_samples_of_the_same_thing(seeds: Summary) -> None:
    assert seeds.keys == ["model"]
    best, second = seeds.means()
    assert (best["model"], best["val/acc"], best["n"]) == ("cnn", "0.96 ± 0.01", "3")
    assert second["val/acc"] == "0.933333 ± 0.049"
    assert seeds.best()["command"] == "python train.py data=mnist model=cnn seed=3"
    assert "0.96 ± 0.01" in str(seeds)
    assert "best: python train.py data=mnist model=cnn seed=3" in str(seeds)


def test_every_job_is_in_the_files(seeds: Summary) -> None:
    seeds.write()
    with open("sweep/summary.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["rank"] for row in rows] == list("123456")
    assert (rows[0]["model"], rows[0]["seed"], rows[0]["val/acc"]) == ("mlp", "3", "0.99")
    assert "test/acc/cat" not in rows[0]
    assert "    python train.py data=mnist model=cnn seed=3" in Path("sweep/summary.md").read_text()


def test_a_failed_job_says_why_and_is_last() -> None:
    job(0, ["optimizer.lr=0.1"], 0.9)
    job(1, ["optimizer.lr=100"], None, status="failed", reason="the training loss is nan")
    job(2, ["optimizer.lr=1"], 0.95)
    summary = Summary(Path("sweep"))
    assert [row["optimizer.lr"] for row in summary.jobs()] == ["1", "0.1", "100"]
    assert summary.jobs()[-1]["reason"] == "the training loss is nan"
    assert "failed: optimizer.lr=100: the training loss is nan" in str(summary)
    assert "3 runs, 1 failed" in str(summary)


@pytest.mark.parametrize(
    "settings",
    [
        [["optimizer.lr=0.001"], ["optimizer.lr=0.01"], ["optimizer.lr=0.1"]],
        [["model=mlp"], ["model=cnn"]],
        [[f"model={model}", f"data.batch_size={size}"] for model in ("mlp", "cnn", "lenet") for size in (32, 64)],
        [["seed=1"], ["seed=2"]],
    ],
)
def test_the_picture_shows_what_was_swept(settings: list[list[str]]) -> None:
    for number, overrides in enumerate(settings):
        job(number, overrides, 0.9 + 0.01 * number)
    Summary(Path("sweep")).draw()
    assert matplotlib.image.imread("sweep/summary.png")[..., :3].std() > 0.05
