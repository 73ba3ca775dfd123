"""Sweeps: the ranked summary of all jobs, resume after a kill, parallel jobs, and searches."""

import csv
import errno
import importlib
import io
import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import filelock
import matplotlib.image
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError
from optuna.distributions import CategoricalDistribution, FloatDistribution
from PIL import Image

import datamodules
from callbacks.metrics_history import MetricsHistory
from callbacks.pruning import OptunaPruning, Pruned
from cli import job_dir, process
from cli.errors import format_error
from cli.exit_codes import resume_command
from hydra_plugins.optuna_sweeper import OptunaSweeper, _distribution
from plots.figure import to_pixels
from runs.monitor import Monitor, Monitors
from sweeps import parallel
from sweeps.callback import SweepSummary, _print_once
from sweeps.figures import study_figure, summary_figure
from sweeps.study import open_study, open_trial, read_trial
from sweeps.summary import Summary
from tests.conftest import PROJECT

Shell = Callable[..., subprocess.CompletedProcess[str]]


def write_job(number: int, overrides: list[str], accuracy: float | None, **more: Any) -> None:
    folder = Path("sweep") / str(number)
    folder.mkdir(parents=True)
    metrics = {} if accuracy is None else {"val/acc": accuracy, "test/acc": accuracy - 0.01, "test/acc/cat": 0.5}
    result = {"command": f"python train.py {' '.join(overrides)}", "overrides": overrides, "metrics": metrics}
    (folder / "result.json").write_text(json.dumps(result | {"status": "finished"} | more))


@pytest.fixture
def seed_sweep() -> Summary:
    """Return the summary of two models with three seeds. The model of the best run is not the best on average."""
    accuracies = {"mlp": (0.90, 0.91, 0.99), "cnn": (0.95, 0.96, 0.97)}
    runs = [(model, seed, accuracies[model][seed - 1]) for model in accuracies for seed in (1, 2, 3)]
    for number, (model, seed, accuracy) in enumerate(runs):
        write_job(number, ["data=mnist", f"model={model}", f"seed={seed}"], accuracy)
    return Summary(Path("sweep"))


def test_summary_averages_over_seeds(seed_sweep: Summary) -> None:
    assert seed_sweep.keys == ["model"]
    best, second = seed_sweep.mean_rows()
    assert (best["model"], best["val/acc"], best["n"]) == ("cnn", "0.96 ± 0.01", "3")
    assert second["val/acc"] == "0.933333 ± 0.049"
    assert seed_sweep.best().command == "python train.py data=mnist model=cnn seed=3"
    assert "96.00 ± 1.00 %" in str(seed_sweep)
    assert "best: python train.py data=mnist model=cnn seed=3" in str(seed_sweep)


def test_summary_files_list_every_job(seed_sweep: Summary) -> None:
    seed_sweep.write()
    with open("sweep/summary.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["rank"] for row in rows] == list("123456")
    assert (rows[0]["model"], rows[0]["seed"], rows[0]["val/acc"]) == ("mlp", "3", "0.99")
    assert "test/acc/cat" not in rows[0]
    assert "    python train.py data=mnist model=cnn seed=3" in Path("sweep/summary.md").read_text()


def test_no_text_of_a_job_is_an_image_a_link_or_html_in_the_summary() -> None:
    """A viewer of Markdown would fetch what the result.json of anyone names."""
    for number, text in enumerate(["![x](http://there/x.png)", "<img src=http://there>", r"\<b>", r"\![x](y)", "a|b"]):
        write_job(number, [f"name={text}"], 0.9)
    summary = Summary(Path("sweep"))
    summary.write()
    table = "\n".join(line for line in Path("sweep/summary.md").read_text().splitlines() if line.startswith("|"))
    assert not re.search(r"(?<!\\)(\\\\)*(<|\]\()", table)
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table.splitlines()} == {
        table.splitlines()[0].count("|")
    }


def test_summary_computes_each_cell_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell for each job and each of its metrics, or a long sweep takes longer for its summary than for its jobs."""
    computed = []
    monkeypatch.setattr("sweeps.summary._cell", lambda name, *_: computed.append(name) or "")
    for number in range(20):
        write_job(number, [f"optimizer.lr={number}"], 0.9, published={"test/acc": 0.9})
    summary = Summary(Path("sweep"))
    columns = [name for name in summary.job_rows()[0] if "/" in name]
    assert len(computed) == 20 * len(columns)


def test_failed_job_is_ranked_last_with_its_reason() -> None:
    write_job(0, ["optimizer.lr=0.1"], 0.9)
    write_job(1, ["optimizer.lr=100"], None, status="failed", reason="the training loss is nan")
    write_job(2, ["optimizer.lr=1"], 0.95)
    summary = Summary(Path("sweep"))
    assert [row["optimizer.lr"] for row in summary.job_rows()] == ["1", "0.1", "100"]
    assert summary.job_rows()[-1]["reason"] == "the training loss is nan"
    assert "failed: optimizer.lr=100: the training loss is nan" in str(summary)
    assert "3 runs, 1 failed" in str(summary)
    write_job(3, ["optimizer.lr=-1"], None, status="failed", reason="optimizer.lr=-1 is below zero")
    assert "  failed: optimizer.lr=-1 is below zero" in str(Summary(Path("sweep"))).splitlines()


def test_published_figures_stand_beside_the_results() -> None:
    write_job(0, ["optimizer=adam"], 0.9, published={"test/acc": 0.8946})
    write_job(1, ["optimizer=sgd"], 0.8)
    rows = Summary(Path("sweep")).job_rows(percent=True)
    assert [row["published test/acc"] for row in rows] == ["89.46 %", ""]
    write_job(2, ["optimizer=sgd", "seed=2"], 0.8)
    write_job(3, ["optimizer=adam", "seed=2"], 0.92, published={"test/acc": 0.8946})
    assert [row["published test/acc"] for row in Summary(Path("sweep")).mean_rows()] == ["0.8946", ""]


def test_first_of_equal_jobs_is_best() -> None:
    for number in range(12):
        write_job(number, [f"optimizer.lr={12 - number}"], 0.5 if number < 2 else 1.0)
    assert Summary(Path("sweep")).best().settings == {"optimizer.lr": "10"}


def test_interrupted_job_is_never_best() -> None:
    write_job(0, ["optimizer.lr=0.1"], 0.9)
    write_job(1, ["optimizer.lr=1"], 0.95, status="interrupted")
    summary = Summary(Path("sweep"))
    assert summary.best().settings == {"optimizer.lr": "0.1"}
    assert [row["optimizer.lr"] for row in summary.job_rows()] == ["0.1", "1"]


@pytest.mark.parametrize(
    "settings",
    [
        [["optimizer.lr=0.001"], ["optimizer.lr=0.01"], ["optimizer.lr=0.1"]],
        [["model=mlp"], ["model=cnn"]],
        [[f"model={model}", f"data.batch_size={size}"] for model in ("mlp", "cnn", "lenet") for size in (32, 64)],
        [["seed=1"], ["seed=2"]],
    ],
)
def test_summary_figure_is_drawn_for_every_kind_of_setting(settings: list[list[str]]) -> None:
    for number, overrides in enumerate(settings):
        write_job(number, overrides, 0.9 + 0.01 * number)
    assert to_pixels(summary_figure(Summary(Path("sweep")))).std() > 0.05 * 255


# matplotlib reads text between two dollar signs as a formula, and fails on this one.
FORMULA = r"$\frac{$"


@pytest.mark.parametrize(
    "settings",
    [
        [[f"+data.{FORMULA}={value}"] for value in (1, 2, 3)],
        [[f"data.root={FORMULA}/{value}"] for value in (1, 2, 3)],
        [[f"data.root={FORMULA}/{value}", f"+data.{FORMULA}={other}"] for value in (1, 2) for other in "ab"],
    ],
)
def test_settings_with_dollar_signs_are_drawn_literally(settings: list[list[str]]) -> None:
    for number, overrides in enumerate(settings):
        write_job(number, overrides, 0.9 + 0.01 * number)
    assert to_pixels(summary_figure(Summary(Path("sweep")))).std() > 5


def test_study_figure_draws_choices_with_dollar_signs_literally() -> None:
    choices = [FORMULA, f"{FORMULA}/2", "plain"]
    study = open_study(Path())
    for number in range(6):
        trial = study.ask({"data.root": CategoricalDistribution(choices), FORMULA: FloatDistribution(0, 1)})
        study.tell(trial, number / 10)
    assert to_pixels(study_figure(open_study(Path()), FORMULA)).std() > 5


def test_summary_averages_over_folds() -> None:
    for fold in range(3):
        write_job(fold, ["data.folds=3", f"data.fold={fold}"], 0.9 + 0.01 * fold)
    summary = Summary(Path("sweep"))
    (row,) = summary.mean_rows()
    assert (row["val/acc"], row["n"]) == ("0.91 ± 0.01", "3")


def test_folds_partition_the_training_set() -> None:
    sets = [datamodules.Blobs(200, folds=3, fold=fold) for fold in range(3)]
    for data in sets:
        data.setup()
        assert sorted([*data.val_indices.tolist(), *data.train_indices.tolist()]) == list(range(200))
    assert sorted(torch.cat([data.val_indices for data in sets]).tolist()) == list(range(200))


# --- damaged files -----------------------------------------------------------------------------------------------

BROKEN = {
    "empty": b"",
    "torn": b'{"status": "fini',
    "not UTF-8": b"\xff\xfe{}",
    "a list": b"[]",
    "a number": b"7",
    "nothing in it": b"{}",
    "too deep": b"[" * 100_000,
    "a strange status": b'{"status": "fine", "command": "", "overrides": [], "metrics": {}}',
    "metrics as text": b'{"status": "finished", "command": "", "overrides": [], "metrics": {"val/acc": "high"}}',
    "metrics as a list": b'{"status": "finished", "command": "", "overrides": [], "metrics": ["val/acc"]}',
    "a huge number": b'{"status": "finished", "command": "", "overrides": [], "metrics": {"val/acc": 1%b}}'
    % (b"0" * 400),
    "overrides as numbers": b'{"status": "finished", "command": "", "overrides": [1, 2], "metrics": {}}',
    "a reason that is none": b'{"status": "failed", "reason": [1], "command": "", "overrides": [], "metrics": {}}',
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_damaged_result_is_one_unreadable_job(content: bytes) -> None:
    write_job(0, ["optimizer.lr=0.1"], 0.9)
    write_job(1, ["optimizer.lr=1"], 0.8)
    Path("sweep/2").mkdir()
    Path("sweep/2/result.json").write_bytes(content)
    summary = Summary(Path("sweep"))
    assert [row["status"] for row in summary.job_rows()] == ["finished", "finished", "unreadable"]
    assert summary.keys == ["optimizer.lr"]
    (line,) = [line for line in str(summary).splitlines() if "failed:" in line]
    assert line.startswith(f"  failed: {Path('sweep/2/result.json')}: not the result of a run: ")
    assert "3 runs, 1 failed" in str(summary)
    assert "best: python train.py optimizer.lr=0.1" in str(summary)
    summary.write()
    assert to_pixels(summary_figure(summary)).std() > 5


def test_job_directory_without_a_result_counts_as_killed() -> None:
    write_job(0, ["optimizer.lr=0.1"], 0.9)
    for name in ("1-0123abcd", "2-4567ef01", "notes", ".cache"):
        Path("sweep", name).mkdir()
    summary = Summary(Path("sweep"))
    assert [job.status for job in summary.jobs] == ["finished", "killed", "killed"]
    assert f"  failed: {Path('sweep/1-0123abcd/result.json')} and 1 more: no result.json" in str(summary).splitlines()
    with filelock.FileLock("sweep/2-4567ef01/.lock"):  # as if another process trained there
        assert [job.status for job in Summary(Path("sweep")).jobs] == ["finished", "killed"]


def test_nonfinite_metrics_are_ranked_last() -> None:
    write_job(0, ["optimizer.lr=0.1"], math.nan)
    write_job(1, ["optimizer.lr=1"], math.inf)
    write_job(2, ["optimizer.lr=2"], 0.7)
    write_job(3, ["optimizer.lr=3"], 0.8)
    assert [row["optimizer.lr"] for row in Summary(Path("sweep")).job_rows()] == ["3", "2", "0.1", "1"]


def test_control_characters_and_pipes_are_escaped_in_tables() -> None:
    write_job(0, ["data.root=a\nb|c\x1b[2J\ud800", "seed=1"], 0.9)
    write_job(1, ["data.root=plain", "seed=1"], 0.8)
    summary = Summary(Path("sweep"))
    summary.write()
    assert r"a\nb|c\x1b[2J\ud800" in str(summary)
    table = [line for line in Path("sweep/summary.md").read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    assert len(table) == 4
    assert r"| a\\nb\|c\\x1b[2J\\ud800 |" in table[2]  # Markdown shows one of two backslashes


def test_sweep_that_cannot_be_looked_at_has_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SweepSummary, "sweep_dir", Path("a" * 300))  # a name that no file system has
    assert not SweepSummary.has_begun()


def test_nothing_that_a_job_or_a_study_names_is_fetched_by_a_viewer_of_the_summary() -> None:
    image = "![x](http://a.example/x.png) <img src=http://a.example/y.png>"
    write_job(0, [f"tags={image}", "seed=1"], 0.9)
    write_job(1, ["tags=plain", "seed=1"], 0.8)
    summary = Summary(Path("sweep"))
    summary.monitor, summary.importance = image, f"importance: {image} 0.9"
    text = "\n".join(summary._markdown(summary.job_rows(True)).splitlines())
    outside_of_code = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    assert outside_of_code.count("a.example") == 6
    assert "](" not in outside_of_code.replace(r"]\(", "")
    assert "<img" not in outside_of_code.replace(r"\<img", "")


@pytest.fixture
def sweep_config(monkeypatch: pytest.MonkeyPatch) -> DictConfig:
    """Return a config for the hooks of SweepSummary, and reset what earlier hooks recorded."""
    monkeypatch.setattr(SweepSummary, "failed", 0)
    monkeypatch.setattr(SweepSummary, "complete", True)
    _print_once.cache_clear()
    return OmegaConf.create({"hydra": {"sweep": {"dir": "sweep"}, "mode": RunMode.MULTIRUN, "job": {"num": 0}}})


@pytest.mark.parametrize("broken", ["write", "job_rows", "__init__", "__str__"])
def test_exception_in_the_summary_gives_one_line(broken: str, sweep_config, monkeypatch, capsys) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("two\nlines")

    write_job(0, ["optimizer.lr=0.1"], 0.9)
    assert SweepSummary.exit_code() == 0
    monkeypatch.setattr(Summary, broken, fail)
    for _ in range(2):
        SweepSummary().on_job_end(sweep_config, None)
    SweepSummary().on_multirun_end(sweep_config)
    assert SweepSummary.exit_code() == 1
    assert capsys.readouterr().err == "error: the summary of the sweep: two lines\n"


def test_summaries_after_jobs_take_a_twentieth_of_the_time_of_a_long_sweep(sweep_config, monkeypatch) -> None:
    clock, spent, jobs = [0.0], [0.0], 2000
    write_job(0, ["optimizer.lr=0.1"], 0.9)

    def write(_: Summary) -> None:  # takes as long as there are results to read
        seconds = 0.01 * (sweep_config.hydra.job.num + 1)
        clock[0], spent[0] = clock[0] + seconds, spent[0] + seconds

    monkeypatch.setattr("sweeps.callback.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(SweepSummary, "_next_write", 0.0)
    monkeypatch.setattr(Summary, "write", write)
    for number in range(jobs):
        sweep_config.hydra.job.num = number
        clock[0] += 1
        SweepSummary().on_job_end(sweep_config, None)
    of_the_first_jobs, last = 0.01 * 50 * 51 / 2, 0.01 * jobs
    assert of_the_first_jobs < spent[0] < of_the_first_jobs + clock[0] / 20 + last


def test_figure_that_cannot_be_written_gives_one_line(sweep_config, monkeypatch, capsys) -> None:
    write_job(0, ["optimizer.lr=0.1"], 0.9)
    Path("sweep/summary.png").mkdir()
    SweepSummary().on_multirun_end(sweep_config)
    printed = capsys.readouterr()
    assert printed.err.startswith("error: summary.png: ")
    assert "best: python train.py optimizer.lr=0.1" in printed.out
    assert SweepSummary.exit_code() == 1


def test_damaged_study_gives_one_line_each_for_importances_and_figure(sweep_config, capsys) -> None:
    write_job(0, ["optimizer.lr=0.1"], 0.9)
    Path("sweep/study.db").write_bytes(b"not a database" * 1000)
    SweepSummary().on_multirun_end(sweep_config)
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 2  # one for the importances, one for the figure
    assert all("file is not a database" in line for line in printed.err.splitlines())
    assert "best: python train.py optimizer.lr=0.1" in printed.out
    assert SweepSummary.exit_code() == 1


def test_directory_as_last_sweep_gives_one_warning(sweep_config, capsys) -> None:
    write_job(0, ["optimizer.lr=0.1"], 0.9)
    Path("outputs/last_sweep").mkdir(parents=True)
    for _ in range(3):
        SweepSummary().on_job_end(sweep_config, None)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: outputs/last_sweep does not point at this sweep: ")
    assert SweepSummary.exit_code() == 0
    assert list(Path("outputs").iterdir()) == [Path("outputs/last_sweep")]


def test_refused_sweep_leaves_the_link_to_the_last_one(sweep_config, monkeypatch, capsys) -> None:
    """It leaves nothing to resume either."""
    write_job(0, ["optimizer.lr=0.1"], 0.9)
    SweepSummary().on_job_end(sweep_config, None)
    assert os.readlink("outputs/last_sweep") == "../sweep"
    Path("refused").mkdir()
    Path("refused/multirun.yaml").touch()
    sweep_config.hydra.sweep.dir = "refused"
    monkeypatch.setattr(SweepSummary, "sweep_dir", None)
    for hook in (SweepSummary().on_multirun_start, SweepSummary().on_job_start):
        hook(sweep_config, task_function=None)
    SweepSummary().on_job_end(sweep_config, None)
    assert os.readlink("outputs/last_sweep") == "../sweep"
    assert resume_command() is None
    assert format_error(KeyboardInterrupt()) == "interrupted before there was anything to save"


def test_sweep_is_resumed_by_its_directory(sweep_config, monkeypatch) -> None:
    """Another sweep may be the last one by then."""
    sweep_config.hydra.sweep.dir = "Übung 1"
    (folder := Path("Übung 1/0-0123abcd")).mkdir(parents=True)
    (folder / "config.yaml").touch()
    monkeypatch.setattr(SweepSummary, "sweep_dir", None)
    SweepSummary().on_multirun_start(sweep_config)
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=1,2", "sweep_resume=last"])
    assert resume_command() == "python train.py -m seed=1,2 'sweep_resume=\"Übung 1\"'"
    monkeypatch.setattr(SweepSummary, "sweep_dir", Path("Übung 1").rename("last"))
    assert resume_command() == "python train.py -m seed=1,2 sweep_resume=./last"
    assert format_error(KeyboardInterrupt()) == "interrupted"


@pytest.mark.parametrize(
    ("override", "is_held"),
    [
        ("net.sizes=choice([9],[5, 5])", True),
        ("net.sizes=choice([9],[5,6])", False),
        ("nesterov=choice(false,true)", True),
        ("model=choice(mlp,cnn)", True),
        ("name=choice(a b,c)", False),
        ("lr=interval(0.001,0.1)", True),
        ("lr=choice(0.1,0.003)", True),
        ("width=range(1,9)", True),
    ],
)
def test_first_trial_has_the_settings_of_the_config(override: str, is_held: bool) -> None:
    sweeper = OptunaSweeper({}, None, None, n_trials=3, startup_trials=1, seed=1)
    parsed = OverridesParser.create().parse_override(override)
    sweeper.space = {parsed.key_or_group: _distribution(parsed)}
    config = {"net": {"sizes": [5, 5]}, "nesterov": True, "name": "d", "lr": 0.003, "width": 4}
    base = OmegaConf.create(config | {"hydra": {"runtime": {"choices": {"model": "cnn"}}}})
    assert list(sweeper._first_trial(base)) == ([parsed.key_or_group] if is_held else [])


@pytest.mark.parametrize(
    "waiting",
    [{"optimizer.lr": 50.0}, {"optimizer.lr": -1.0, "other": 1}, {"optimizer.lr": math.nan}, {"optimizer.lr": "abc"}],
)
def test_waiting_trial_with_other_settings_is_not_run(waiting: dict[str, object], tmp_path: Path) -> None:
    """The study may come from anyone, and its parameters become overrides of a job."""
    sweeper = OptunaSweeper({}, None, None, n_trials=3, startup_trials=1, seed=1)
    sweeper.space, sweeper.at_once = {"optimizer.lr": FloatDistribution(0, 1)}, 1
    study = open_study(tmp_path, direction="maximize")
    study.enqueue_trial(waiting)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if waiting["optimizer.lr"] in ("abc", math.nan):
            with pytest.raises(ValueError, match=r"study\.db has a trial with other settings"):
                sweeper._next_trials(study, tmp_path, "")
        (trial,) = sweeper._next_trials(study, tmp_path, "")
    assert trial.number == 1 and 0 <= trial.params["optimizer.lr"] <= 1
    assert study.trials[0].state.name == "FAIL"


def test_table_is_printed_on_an_ascii_terminal(seed_sweep: Summary, sweep_config, monkeypatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    SweepSummary().on_multirun_end(sweep_config)
    assert SweepSummary.exit_code() == 0
    assert b"96.00 ? 1.00 %" in terminal.buffer.getvalue()


def test_failure_that_cannot_be_recorded_does_not_end_the_sweep(monkeypatch) -> None:
    """On a full disk the reason is printed, and the next job still runs."""

    def raise_no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(job_dir, "write_result", raise_no_space)
    assert job_dir.record_failure(Path(), "no space")["reason"] == "no space"
    Path("result.json").write_text("torn", encoding="utf-8")
    assert job_dir.record_failure(Path(), "no space")["status"] == "refused"  # it is not ours to replace


# --- real processes ----------------------------------------------------------------------------------------------

POINTS = ("model=blobs_mlp", "data=blobs", "data.val_size=60", "model.steps_per_batch=50", "trainer.max_epochs=4")
POINTS += ("logger=none", "callbacks.pictures=null", "threads=1")
GRID = ("-m", *POINTS, "data.batch_size=70,0", "optimizer.lr=0.01,0.05", "seed=1,2")
SEARCH = ("-m", "sweep=mnist_lr", *POINTS, "hydra.sweeper.n_trials=9", "hydra.sweeper.startup_trials=3")


def kill_when(line: str, folder: Path, *arguments: str) -> None:
    """Run ``python train.py ARGUMENTS`` and kill it once it prints a line that begins with ``line``."""
    command = [sys.executable, "-u", str(PROJECT / "train.py"), *arguments]
    folder.mkdir(exist_ok=True)
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        for printed in process.stdout:
            if printed.startswith(line):
                process.send_signal(signal.SIGKILL)
                break
        else:
            raise AssertionError(f"train.py never printed {line}")


def summary_files(folder: Path) -> dict[str, str]:
    return {name: (folder / "outputs/last_sweep" / name).read_text() for name in ("summary.csv", "summary.md")}


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("grid")
    command = [sys.executable, str(PROJECT / "train.py"), *GRID]
    return folder, subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_killed_sweep_resumes_to_the_same_summary(grid, shell: Shell, tmp_path: Path) -> None:
    kill_when("[1] epoch 2/", tmp_path, *GRID)
    again = shell(*GRID, "sweep_resume=last")
    assert again.returncode == grid[1].returncode == 1  # half of the jobs have data.batch_size=0
    assert ": done before" in again.stdout.splitlines()[0]
    assert not any(line.startswith(("[0] epoch", "[1] epoch 1/")) for line in again.stdout.splitlines())
    assert summary_files(tmp_path) == summary_files(grid[0])
    assert len(Summary(tmp_path / "outputs/last_sweep").jobs) == 8
    third = shell(*GRID, f"hydra.sweep.dir={os.readlink(tmp_path / 'outputs/last_sweep')}", cwd=tmp_path / "outputs")
    assert "] epoch" not in third.stdout
    assert third.stdout.count(": done before") == 4
    assert summary_files(tmp_path) == summary_files(grid[0])


@pytest.mark.slow
def test_job_gives_the_same_weights_as_its_command_alone(grid, shell: Shell, tmp_path: Path) -> None:
    swept = next(j for j in Summary(grid[0] / "outputs/last_sweep").jobs if j.settings["seed"] == "2" and j.metrics)
    alone = shell(*swept.command.split()[2:])
    assert alone.returncode == 0
    ours, others = (torch.load(path / "checkpoints/last.ckpt") for path in (swept.run_dir, tmp_path / "outputs/last"))
    assert all(torch.equal(ours["state_dict"][name], others["state_dict"][name]) for name in ours["state_dict"])


@pytest.mark.slow
def test_joblib_jobs_give_the_same_summary(grid, shell: Shell, tmp_path: Path) -> None:
    answer = shell(*GRID, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert answer.returncode == 1
    assert {line[:3] for line in answer.stdout.splitlines() if " epoch 4/4 " in line} == {"[0]", "[1]", "[2]", "[3]"}
    assert summary_files(tmp_path) == summary_files(grid[0])


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_of_a_launcher_have_several_processes(launcher: str, shell: Shell, tmp_path: Path) -> None:
    settings = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "model.steps_per_batch=1")
    at_once = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    answer = shell("-m", *POINTS, *settings, "seed=1,2", f"hydra/launcher={launcher}", *at_once)
    assert answer.returncode == 0, answer.stderr
    assert [job.status for job in Summary(tmp_path / "outputs/last_sweep").jobs] == ["finished"] * 2
    logs = [file.read_text() for file in tmp_path.glob("outputs/last_sweep/*/train.log")]
    assert ["; 2 processes on cpu" in log for log in logs] == [True] * 2


@pytest.mark.slow
@pytest.mark.parametrize("file", ["2/result.json", "2"])  # checked by the job, and where Hydra makes the directory
def test_job_that_cannot_begin_leaves_those_of_joblib_beside_it_alone(file: str, shell: Shell, tmp_path: Path) -> None:
    """joblib kills all its processes when a job raises an exception in one of them."""
    mine = tmp_path / "sweep" / file
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    settings = ("trainer.max_epochs=4,400,5,6", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=${hydra.job.num}")
    answer = shell("-m", *POINTS, *settings, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert answer.returncode == 1
    (line,) = [line for line in answer.stderr.splitlines() if "resume with" not in line]
    assert "error: " in line and "sweep/2" in line
    assert mine.read_text() == "mine"
    results = [json.loads((tmp_path / "sweep" / number / "result.json").read_text()) for number in "013"]
    assert [result["status"] for result in results] == ["finished"] * 3


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FileExistsError(errno.EEXIST, "File exists", "s/2"), "[Errno 17] File exists: 's/2'"),
        (job_dir.JobDirError("s/2 is refused"), "s/2 is refused"),
        (SystemExit(1), "1"),
    ],
)
def test_exception_of_a_job_reaches_the_command_of_joblib(
    error: BaseException, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a resolver OmegaConf raises another one, whose cause would not be pickled."""

    def execute_job() -> None:
        if isinstance(error, SystemExit):
            raise error
        raise InterpolationResolutionError("raised while resolving") from error

    monkeypatch.setattr(importlib.import_module(parallel.LAUNCHER), "execute_job", execute_job)
    received = pickle.loads(pickle.dumps(parallel._execute_job().return_value))
    assert isinstance(received, SystemExit | OSError | RuntimeError)
    assert str(received) == text


@pytest.mark.slow
def test_jobs_of_joblib_read_images_in_processes_of_their_own(shell: Shell, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (32, 32), (number, 0, 200)).save(tmp_path / "pictures" / name / f"{number}.png")
    settings = ("data=image_folder", "data.root=pictures", "data.num_workers=2", "model=lenet", "trainer.max_epochs=1")
    more = ("logger=none", "seed=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    answer = shell("-m", *settings, *more)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.slow
def test_submitit_local_jobs_finish(shell: Shell, tmp_path: Path) -> None:
    answer = shell("-m", *POINTS, "seed=1,2", "hydra/launcher=submitit_local")
    assert answer.returncode == 0, answer.stderr
    assert [job.status for job in Summary(tmp_path / "outputs/last_sweep").jobs] == ["finished"] * 2
    assert "2 runs, in outputs/sweep/" in answer.stdout


@pytest.mark.slow
def test_submitit_local_gets_trials_at_once(shell: Shell, tmp_path: Path) -> None:
    settings = ("hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2", "trainer.max_epochs=1")
    answer = shell(*SEARCH, *settings, "hydra/launcher=submitit_local")
    assert answer.returncode == 0, answer.stderr
    first, second, third = open_study(tmp_path / "outputs/last_sweep").trials
    assert second.datetime_start < min(first.datetime_complete, second.datetime_complete) < third.datetime_start


@pytest.mark.parametrize("folder", ['it\'s "x"', "a,b", 'a\\"b\\', "[x", "a b"])
def test_other_ranks_of_a_job_can_parse_its_directory(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hydra_cfg = OmegaConf.create({"overrides": {"task": ["seed=1"]}, "run": {"dir": "unset"}})
    monkeypatch.setattr(process.HydraConfig, "get", lambda: hydra_cfg)
    with process.single_job_argv(f"/{folder}/sweep/0"):
        by_lightning = f'hydra.run.dir="{hydra_cfg.run.dir}"'
        overrides = OverridesParser.create().parse_overrides([*sys.argv[1:], by_lightning])
    assert [override.value() for override in overrides] == [1, f"/{folder}/sweep/0", "."]


@pytest.mark.slow
def test_sweep_of_two_processes_in_a_directory_with_quotes(shell: Shell, tmp_path: Path) -> None:
    (folder := tmp_path / 'it\'s "x", y').mkdir()
    points = (*POINTS, "model.steps_per_batch=1", "trainer.max_epochs=1")
    answer = shell("-m", *points, "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "seed=1", cwd=folder)
    assert answer.returncode == 0, answer.stderr
    assert [job.status for job in Summary(folder / "outputs/last_sweep").jobs] == ["finished"]


@pytest.mark.slow
def test_sweep_summary_survives_damaged_files_and_an_ascii_terminal(shell: Shell, tmp_path: Path) -> None:
    """A damaged result.json, a directory as outputs/last_sweep, names like formulas, and a terminal without ±."""
    Path("outputs/last_sweep").mkdir(parents=True)
    Path("sweep/0").mkdir(parents=True)
    Path("sweep/0/result.json").write_text("torn", encoding="utf-8")
    formulas = f"+model.note='{FORMULA}1','{FORMULA}2'"
    sweep = ("-m", *POINTS, "trainer.max_epochs=1", "seed=1,2", "hydra.sweep.dir=sweep")
    answer = shell(*sweep, formulas, PYTHONIOENCODING="ascii")
    assert answer.returncode == 1
    assert "failed: sweep/0/result.json: not the result of a run" in answer.stdout
    assert "5 runs, 5 failed, in sweep" in answer.stdout  # the model takes no argument `note`
    assert "Traceback" not in answer.stderr
    assert answer.stderr.count("warning: outputs/last_sweep") == 1
    answer = shell(*sweep[:-1], "hydra.sweep.dir=other", PYTHONIOENCODING="ascii")
    assert "1 +- " not in answer.stdout and " ? " in answer.stdout
    assert "2 runs, in other" in answer.stdout


@pytest.mark.slow
def test_repeated_job_is_run_once(shell: Shell, tmp_path: Path) -> None:
    answer = shell("-m", "model=line", "data=doubles", "seed=1,2,1", "trainer.max_epochs=2", "callbacks.pictures=null")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("epoch 2/2") == 2
    assert answer.stdout.count(": done before") == 1
    assert len(Summary(tmp_path / "outputs/last_sweep").jobs) == 2


def test_wrong_sweep_command_gives_one_line(shell: Shell, tmp_path: Path) -> None:
    for arguments, hint in (
        (("seed=2", "sweep_resume=last"), "sweep_resume resumes a sweep: add -m"),
        (("-m", "seed=1,2", "sweep_resume=last"), "there is no sweep yet in outputs/"),
        (("-m", "seed=1,2", "sweep_resume=nowhere"), "nowhere is not a sweep directory"),
        (("-m", "seed=1,2", "hydra/launcher=ray"), "pip install hydra-ray-launcher"),
    ):
        answer = shell(*arguments)
        assert answer.returncode == 1
        assert hint in answer.stderr
        assert len(answer.stderr.splitlines()) == 1
        assert not list(tmp_path.glob("outputs/*"))


@pytest.mark.slow
def test_locked_run_directory_is_refused(shell: Shell, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert shell(*POINTS, f"hydra.run.dir={run}").returncode == 0
    with filelock.FileLock(run / ".lock"):
        answer = shell(f"resume={run}", "trainer.max_epochs=5")
    assert answer.returncode == 1
    assert answer.stderr == f"error: another process is training in {run}\n"
    assert json.loads((run / "result.json").read_text())["epochs"] == 4


# --- searches ----------------------------------------------------------------------------------------------------


def study_trials(folder: Path) -> list[tuple]:
    return [(t.number, t.state.name, t.params, t.value) for t in open_study(folder / "outputs/last_sweep").trials]


def test_pruning_keeps_a_resumed_trial_that_repeats_an_epoch() -> None:
    """Two finished trials have 0.9 after each epoch. The third trial is far behind."""
    study = open_study(Path(), direction="maximize")
    for _ in range(2):
        ended = study.ask({"optimizer.lr": FloatDistribution(0, 1)})
        for epoch in (1, 2, 3):
            ended.report(0.9, epoch)
        study.tell(ended, 0.9)
    study.ask({"optimizer.lr": FloatDistribution(0, 1)})

    strategy = SimpleNamespace(broadcast=lambda reason: reason)
    history = MetricsHistory(Path(), Monitors("val/acc", "max"))
    history.monitor = Monitor("val/acc", "max")
    trainer = SimpleNamespace(is_global_zero=True, default_root_dir="2-0123abcd", strategy=strategy)
    trainer.checkpoint_callbacks = [history]

    def train_epoch(epoch: int, accuracy: float) -> None:
        history.rows.append({"epoch": epoch + 1, "val/acc": accuracy})
        trainer.current_epoch = epoch + 1

    callback = OptunaPruning(2, startup_trials=2, warmup_epochs=2)
    callback.on_fit_start(trainer, None)
    train_epoch(0, 0.1)
    callback.on_train_epoch_start(trainer, None)  # no trial is pruned before warmup_epochs=2
    train_epoch(1, 0.1)
    with pytest.raises(
        Pruned, match=r"pruned after epoch 2: val/acc 0\.1 is worse than the median of the earlier runs"
    ):
        callback.on_train_epoch_start(trainer, None)

    resumed = OptunaPruning(2, startup_trials=2, warmup_epochs=1)
    resumed.on_fit_start(trainer, None)
    train_epoch(0, 0.2)  # the same epoch again
    resumed.on_train_epoch_start(trainer, None)
    assert read_trial(study, 2).intermediate_values == {1: pytest.approx(0.1), 2: pytest.approx(0.1)}


def test_open_trial_finds_a_trial_by_number() -> None:
    study = open_study(Path())
    for _ in range(3):
        study.ask({"optimizer.lr": FloatDistribution(0, 1)})
    open_trial(study, Path(), 1).set_user_attr("worker", "a")
    assert [trial.user_attrs for trial in study.trials] == [{}, {"worker": "a"}, {}]
    with pytest.raises(KeyError):
        open_trial(study, Path(), 3)


@pytest.mark.slow
def test_killed_search_resumes_to_the_same_study(shell: Shell, tmp_path: Path) -> None:
    whole = shell(*SEARCH)
    assert whole.returncode == 0, whole.stderr
    first, *others = study_trials(tmp_path)
    assert first[2] == {"optimizer.lr": 3e-3, "optimizer.weight_decay": 0.01}  # the settings of conf/
    states = [trial[1] for trial in others]
    assert len(states) == 8 and set(states) == {"COMPLETE", "PRUNED"}
    best = max(trial[3] for trial in study_trials(tmp_path) if trial[1] == "COMPLETE")
    assert f"best: {Summary(tmp_path / 'outputs/last_sweep').best().command}" in whole.stdout
    assert Summary(tmp_path / "outputs/last_sweep").best().metrics["val/acc"] == best
    assert "sweep=" not in Summary(tmp_path / "outputs/last_sweep").best().command
    assert matplotlib.image.imread("outputs/last_sweep/summary.png")[..., :3].std() > 0.05

    parts = tmp_path / "parts"
    kill_when("[2] epoch 3/", parts, *SEARCH)
    kill_when("[6] epoch 1/", parts, *SEARCH, "sweep_resume=last")
    assert shell(*SEARCH, "sweep_resume=last", cwd=parts).returncode == 0
    assert study_trials(parts) == study_trials(tmp_path)
    assert summary_files(parts) == summary_files(tmp_path)


@pytest.mark.slow
def test_two_processes_share_a_search(tmp_path: Path) -> None:
    # Enough trials for the second process to have some: it starts while the first one trains.
    command = [sys.executable, "-u", str(PROJECT / "train.py"), *SEARCH, "hydra.sweeper.n_trials=25"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as one:
        next(line for line in one.stdout if line.startswith("[0] epoch"))
        two = subprocess.run([*command, "sweep_resume=last"], capture_output=True, text=True)
        printed = one.stdout.read()
    assert (one.returncode, two.returncode) == (0, 0), printed + two.stderr
    assert [trial[0] for trial in study_trials(tmp_path)] == list(range(25))
    assert {trial[1] for trial in study_trials(tmp_path)} <= {"COMPLETE", "PRUNED"}
    assert "] epoch 1/" in printed and "] epoch 1/" in two.stdout
    assert len(Summary(tmp_path / "outputs/last_sweep").jobs) == 25


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("experiment=mnist_cnn",), "a search that looks at the test set makes it worthless: data.validate_on=val"),
        (("hydra.sweeper.metric=test/acc",), "a search that looks at the test set makes it worthless"),
        (("hydra.sweeper.direction=up",), "must be maximize or minimize"),
        (("hydra.sweeper.n_trials=0",), "hydra.sweeper.n_trials=0 must be a whole number of at least 1"),
        (("hydra.sweeper.n_jobs=0",), "hydra.sweeper.n_jobs=0 must be a whole number of at least 1"),
        (("seed=1,2",), "a search must not choose the seed"),
        (("optimizer.lr=1e-3", "optimizer.weight_decay=0"), "there is nothing to search"),
        (("optimizer.lr=tag(log, interval(0, 1))",), "optimizer.lr"),
    ],
)
def test_wrong_search_gives_one_line(arguments: tuple[str, ...], hint: str, shell: Shell, tmp_path: Path) -> None:
    answer = shell("-m", "sweep=mnist_lr", *arguments)
    assert answer.returncode == 1
    assert hint in answer.stderr
    assert len(answer.stderr.splitlines()) == 1, answer.stderr


def test_missing_optuna_gives_one_line(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "optuna.py").write_text("raise ModuleNotFoundError(\"No module named 'optuna'\", name='optuna')\n")
    answer = shell("-m", "sweep=mnist_lr", PYTHONPATH=str(tmp_path))
    assert answer.returncode == 1
    assert answer.stderr == "error: this needs the package optuna: pip install optuna\n"
