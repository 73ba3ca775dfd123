"""A signal saves a checkpoint and ends the command with its exit code."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from omegaconf import OmegaConf

import evaluate
from callbacks.per_class_accuracy import PerClassAccuracy
from callbacks.signal_handler import Interrupted
from cli.exit_codes import exit_with_error
from cli.job import is_recorded
from tests.conftest import PROJECT, TINY_RUN, run


def start_training(folder: Path, *arguments: str, **options: Any) -> subprocess.Popen:
    command = [sys.executable, "-u", str(PROJECT / "train.py"), *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


LONG = (
    "model=blobs_mlp",
    "data=blobs",
    "model.steps_per_batch=1",
    "trainer.max_epochs=100000",
    "trainer.accelerator=cpu",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 128 + signal.SIGUSR1)]
)
def test_signal_saves_a_checkpoint_and_has_its_exit_code(number: signal.Signals, code: int, tmp_path: Path) -> None:
    process = start_training(tmp_path, *LONG, "hydra.run.dir=run", "logger=none")
    for line in process.stdout:  # wait for the third epoch
        if line.startswith("epoch 3/"):
            break
    process.send_signal(number)
    _, printed = process.communicate()
    assert process.returncode == code
    assert "Traceback" not in printed
    assert f"error: interrupted by {number.name}; saved in" in printed
    assert "resume with: python train.py resume=" in printed
    assert json.loads((tmp_path / "run/result.json").read_text())["status"] == "interrupted"
    step = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert step >= 3
    result = run(str(tmp_path / "run"), f"resume={tmp_path / 'run'}", f"trainer.max_epochs={step + 2}", "logger=none")
    assert result["status"] == "finished"
    assert result["steps"] == step + 2


class SignalInFinalizer:
    """Sends SIGTERM while it is finalized: Python drops what a signal handler raises there."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_signal_dropped_in_a_finalizer_still_ends_the_run(tiny_images: None, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []

    def patched(self: PerClassAccuracy, trainer: Trainer, *_: object) -> None:
        batches.append(SignalInFinalizer() and None)

    settings = (*TINY_RUN, "trainer.max_epochs=1", "data.eval_batch_size=10", "logger=none")
    monkeypatch.setattr(PerClassAccuracy, "on_test_batch_end", patched)
    with pytest.raises(Interrupted, match="SIGTERM; saved in") as caught:
        run("run", *settings)
    assert caught.value.exit_code == 143
    assert len(batches) == 1  # of the five test batches
    assert json.loads(Path("run/result.json").read_text())["status"] == "interrupted"
    eval_settings = {
        "run": "run",
        "checkpoint": "last",
        "split": "test",
        "trainer": {"accelerator": "cpu", "devices": 1},
    }
    with pytest.raises(Interrupted, match="SIGTERM; there was nothing to save"):
        evaluate.evaluate_config(OmegaConf.create(eval_settings), Path("run"))
    assert len(batches) == 2


SAVING_PROCESS = """
import os, signal
import runs.interrupts
from callbacks.signal_handler import Interrupted, SignalHandler
runs.interrupts.handle_early_signals()
try:
    with SignalHandler():
        os.kill(os.getpid(), signal.SIGTERM)
except Interrupted:
    os.kill(os.getpid(), signal.SIGTERM)  # the second of two at once, while result.json is written
    print("written", flush=True)
    runs.interrupts._last_sigterm = 0  # a later one does
    os.kill(os.getpid(), signal.SIGTERM)
    print("not ended")
"""


@pytest.mark.slow
def test_second_of_two_sigterms_does_not_end_a_run_that_is_writing() -> None:
    answer = subprocess.run([sys.executable, "-c", SAVING_PROCESS], cwd=PROJECT, capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (-signal.SIGTERM, "written\n")


@pytest.mark.slow
def test_signal_ends_a_sweep_and_prints_the_command_to_resume(tmp_path: Path) -> None:
    process = start_training(tmp_path, "-m", *LONG, "seed=1,2", "logger=none")
    for line in process.stdout:
        if line.startswith("[0] epoch 3/"):
            break
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 143
    (sweep,) = tmp_path.glob("outputs/sweep/*")
    assert errors.splitlines()[-1].endswith(f"seed=1,2 logger=none sweep_resume=outputs/sweep/{sweep.name}")
    assert len(list(tmp_path.glob("outputs/sweep/*/*/result.json"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "is_for_the_group", "processes", "code"),
    [
        (signal.SIGTERM, False, 2, 143),
        (signal.SIGTERM, False, 4, 143),
        (signal.SIGINT, True, 2, 130),
        (signal.SIGINT, True, 4, 130),
        (signal.SIGUSR1, True, 2, 128 + signal.SIGUSR1),
        (signal.SIGKILL, False, 4, -signal.SIGKILL),
    ],
)
def test_signal_ends_the_jobs_of_joblib_with_checkpoints(
    number: signal.Signals, is_for_the_group: bool, processes: int, code: int, tmp_path: Path
) -> None:
    """``docker stop`` and the memory killer reach the command alone, and Ctrl-C in a terminal its whole group.

    Of four processes two have no job: the end of one of them must not let joblib kill the others.
    """
    launcher = ("hydra/launcher=joblib", f"hydra.launcher.n_jobs={processes}")
    seeds = "seed=1,2,3" if processes == 2 else "seed=1,2"
    process = start_training(tmp_path, "-m", *LONG, seeds, "logger=none", *launcher, start_new_session=True)
    waited_for = {"[0] epoch 3/", "[1] epoch 3/"}
    for line in process.stdout:
        waited_for -= {start for start in waited_for if line.startswith(start)}
        if not waited_for:
            break
    os.killpg(process.pid, number) if is_for_the_group else process.send_signal(number)
    _, errors = process.communicate(timeout=60)  # ends when no process has the pipe open any more
    assert process.returncode == code
    jobs = sorted(tmp_path.glob("outputs/sweep/*/*/"))
    assert [job.name[0] for job in jobs] == ["0", "1"]  # a third has not begun
    for job in jobs:
        assert f"error: interrupted by SIGTERM; saved in {job}/checkpoints/last.ckpt" in errors
        assert json.loads((job / "result.json").read_text())["status"] == "interrupted"
        step = torch.load(job / "checkpoints/last.ckpt", weights_only=True)["global_step"]
        assert step == len((job / "metrics.csv").read_text().splitlines()) - 1
    if number != signal.SIGKILL:
        assert "Traceback" not in errors
        assert errors.splitlines()[-2] == f"error: interrupted by {number.name}"
        assert errors.splitlines()[-1].endswith(f"sweep_resume=outputs/sweep/{jobs[0].parent.name}")


# Lets joblib believe that the memory of each process grows, and sends Ctrl-C when the third of them starts.
REPLACED_PROCESS = """
import os, signal, sys
if any(word.startswith("LokyProcess") for word in sys.orig_argv):
    from joblib.externals.loky import process_executor
    process_executor._MAX_MEMORY_LEAK_SIZE = -1e12
    process_executor._MEMORY_LEAK_CHECK_DELAY = 0
    if "LokyProcess-3" in sys.orig_argv:
        os.killpg(0, signal.SIGINT)
"""


@pytest.mark.slow
def test_signal_while_joblib_replaces_a_process_ends_the_jobs_of_the_others_with_checkpoints(tmp_path: Path) -> None:
    """joblib starts another process in place of one whose memory has grown. It kills all when one of them dies."""
    (tmp_path / "sitecustomize.py").write_text(REPLACED_PROCESS)
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    settings = ("trainer.max_epochs=100000,4,5,6,7", "data.size=100000", "logger=none", *launcher)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    process = start_training(tmp_path, "-m", *LONG, *settings, start_new_session=True, env=environment)
    _, errors = process.communicate()
    assert process.returncode == 130
    jobs = sorted(tmp_path.glob("outputs/sweep/*/*/"))
    statuses = [json.loads((job / "result.json").read_text())["status"] for job in jobs]
    assert statuses == ["interrupted", "finished", "finished"]  # the others have not begun
    assert "[0] error: interrupted by SIGTERM; saved in " in errors
    assert errors.splitlines()[-2] == "error: interrupted by SIGINT"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's list of child processes")
def test_signal_to_one_process_of_joblib_ends_the_sweep_after_the_job_of_the_other(tmp_path: Path) -> None:
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    settings = ("trainer.max_epochs=500", "seed=1,2,3", "logger=none", *launcher)
    process = start_training(tmp_path, "-m", *LONG, *settings)
    waited_for = {"[0] epoch 3/", "[1] epoch 3/"}
    for line in process.stdout:
        waited_for -= {start for start in waited_for if line.startswith(start)}
        if not waited_for:
            break
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [pid for pid in children if b"LokyProcess" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(workers[0]), signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 143
    results = [json.loads(file.read_text())["status"] for file in tmp_path.glob("outputs/sweep/*/*/result.json")]
    assert sorted(results) == ["finished", "interrupted"]  # the third has not begun
    assert errors.splitlines()[-2] == "error: interrupted by SIGTERM"
    assert " sweep_resume=outputs/sweep/" in errors.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_the_job_that_joblib_runs_in_the_process_of_the_command(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    """With one process joblib starts none."""
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=1")
    process = start_training(tmp_path, "-m", *LONG, "seed=1,2", "logger=none", *launcher)
    for line in process.stdout:
        if line.startswith("[0] epoch 3/"):
            break
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    (job,) = tmp_path.glob("outputs/sweep/*/*/")
    assert f"error: interrupted by {number.name}; saved in {job}/checkpoints/last.ckpt" in errors
    assert errors.splitlines()[-1].endswith(f"sweep_resume=outputs/sweep/{job.parent.name}")


def test_signal_before_the_first_epoch_reports_nothing_to_save(
    tiny_images: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lit_models import Supervised

    monkeypatch.setattr(Supervised, "on_train_start", lambda _: os.kill(os.getpid(), signal.SIGTERM), raising=False)
    with pytest.raises(Interrupted, match="there was nothing to save yet"):
        run("run", *TINY_RUN, "trainer.max_epochs=1", "logger=none")


def test_keyboard_interrupt_has_exit_code_130(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as ended:
        exit_with_error(KeyboardInterrupt(), show_traceback=False)
    signal.signal(signal.SIGINT, handler)
    assert ended.value.code == 130


def test_keyboard_interrupt_that_an_import_turned_into_an_error_is_reported_as_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """numpy and torch raise errors of their own for one while they are imported."""
    monkeypatch.setattr("runs.interrupts._early_signal", signal.SIGINT)
    error = ValueError("last.ckpt is damaged or not a checkpoint: cannot load module more than once per process")
    with monkeypatch.context() as patch:
        patch.setattr("cli.job.is_multirun", lambda: True)
        assert not is_recorded(error)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as ended:
        exit_with_error(error, show_traceback=False)
    signal.signal(signal.SIGINT, handler)
    assert ended.value.code == 130
    assert capsys.readouterr().err.startswith("error: interrupted")


class DropsInterrupt(Callback):
    """Receives Ctrl-C in its constructor and drops it, as a library may do while it is imported."""

    def __init__(self) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_keyboard_interrupt_dropped_by_a_library_still_ends_the_run(shell) -> None:
    answer = shell(*TINY_RUN, "logger=none", "+callbacks.drops._target_=tests.test_signals.DropsInterrupt")
    assert answer.returncode == 130
    assert answer.stderr == "error: interrupted by SIGINT; there was nothing to save yet\n"
    assert "epoch" not in answer.stdout
