"""A resumed run is identical, to the bit, to the run that was never interrupted."""

import contextlib
import csv
import itertools
import json
import logging
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
import train
from callbacks.per_class_accuracy import PerClassAccuracy
from callbacks.signal_handler import Interrupted
from cli.build import load_run, model_class
from cli.compose import compose
from cli.exit_codes import exit_with_error
from cli.overwrite import check_unused
from cli.process import seed_and_set_threads
from cli.resume import merge_resume_config
from runs.checkpoint import load_checkpoint
from runs.monitor import possible_metrics
from tests.conftest import DATA_ROOT, PROJECT
from tests.kill_and_resume import PROCEDURES, differences, final_state, kill_and_resume


@pytest.fixture
def tiny_images(random_images: Callable[[int, int], None]) -> None:
    random_images(200, 50)


RUN = ("model=dropout_cnn", "data.batch_size=16", "data.val_size=40", "trainer.accelerator=cpu", "threads=1")


def run(folder: str, *overrides: str) -> dict:
    path = Path(folder)
    path.mkdir(exist_ok=True)
    return train.train_config(compose(*overrides), path)


def call_at_step(patch: pytest.MonkeyPatch, step: int, action: Callable[[], None]) -> None:
    """Call ``action`` when ``step`` steps have been taken and the next one is about to begin."""
    from lit_models import Supervised

    training_step = Supervised.training_step

    def patched(self, batch, batch_idx):
        if self.global_step == step:
            action()
        return training_step(self, batch, batch_idx)

    patch.setattr(Supervised, "training_step", patched)


class Killed(BaseException):
    """Ends a run in this process as abruptly as possible."""


def kill_at(patch: pytest.MonkeyPatch, step: int) -> None:
    def kill() -> None:
        raise Killed

    call_at_step(patch, step, kill)


@pytest.mark.parametrize("scheduler", ["none", "step", "cosine", "onecycle"])
def test_resume_after_a_kill_is_exact(scheduler: str, tiny_images: None) -> None:
    run("whole", *RUN, f"scheduler={scheduler}", "trainer.max_epochs=4", "logger=none")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 25)  # in the third epoch of ten steps
        run("parts", *RUN, f"scheduler={scheduler}", "trainer.max_epochs=4", "logger=none")
    assert torch.load("parts/checkpoints/last.ckpt")["global_step"] == 20
    run("parts", "resume=parts", "logger=none")
    assert differences(final_state(Path("whole")), final_state(Path("parts"))) == []


@pytest.mark.parametrize("step", [4, 10, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 9, 11, 19, 21))])
def test_resume_in_mid_epoch_is_exact(step: int, tiny_images: None) -> None:
    run("whole", *RUN, "trainer.max_epochs=3", "logger=none")
    settings = (*RUN, "trainer.max_epochs=3", "logger=none", "checkpoint.every_n_steps=1", "record.every_n_batches=3")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, step)
        run("parts", *settings)
    assert torch.load("parts/checkpoints/last.ckpt")["global_step"] == step
    run("parts", "resume=parts", "logger=none")
    run("rhythm", *settings)
    assert differences(final_state(Path("rhythm")), final_state(Path("parts"))) == []
    whole, parts = (torch.load(f"{name}/checkpoints/last.ckpt")["state_dict"] for name in ("whole", "parts"))
    assert differences(whole, parts) == []


@pytest.mark.parametrize("count", [1, 2])
def test_resume_after_a_signal_in_mid_epoch_is_exact(
    count: int, tiny_images: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job of SLURM receives two SIGTERMs at once."""
    settings = (*RUN, "trainer.max_epochs=3", "logger=none", "record.every_n_batches=3")
    run("whole", *settings)
    call_at_step(monkeypatch, 14, lambda: [os.kill(os.getpid(), signal.SIGTERM) for _ in range(count)])
    with pytest.raises(Interrupted):
        run("parts", *settings)
    assert torch.load("parts/checkpoints/last.ckpt")["global_step"] == 15  # the step is finished first
    run("parts", "resume=parts", "logger=none")
    assert differences(final_state(Path("whole")), final_state(Path("parts"))) == []


def test_three_epochs_and_five_more_equal_eight(tiny_images: None) -> None:
    """The tutorial stops, reloads and continues. The curve has neither a gap nor a repeated point."""
    dropout = ("experiment=mnist_dropout_cnn", "trainer.accelerator=cpu", "threads=1")
    run("eight", *dropout, "trainer.max_epochs=8", "logger=none")
    assert run("parts", *dropout)["epochs"] == 3
    result = run("parts", "resume=parts", "trainer.max_epochs=8")
    assert (result["epochs"], result["status"], result["experiment"]) == (8, "finished", "mnist_dropout_cnn")
    assert differences(final_state(Path("eight")), final_state(Path("parts"))) == []
    events = EventAccumulator(Path("parts/dashboard.txt").read_text().strip()).Reload()
    assert [event.step for event in events.Scalars("val/loss")] == [4 * epoch for epoch in range(9)]


def test_event_files_have_no_repeated_points_after_a_kill(tiny_images: None) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 18)
        run("parts", *RUN, "trainer.max_epochs=2", "trainer.log_every_n_steps=2")
    run("parts", "resume=parts")
    steps = [
        event.step
        for event in EventAccumulator(Path("parts/dashboard.txt").read_text().strip())
        .Reload()
        .Scalars("train/loss_step")
    ]
    assert steps == list(range(2, 21, 2))


def test_longer_training_follows_the_schedule_of_its_new_length(tiny_images: None) -> None:
    run("parts", *RUN, "scheduler=cosine", "trainer.max_epochs=2", "logger=none")
    run("parts", "resume=parts", "trainer.max_epochs=4", "logger=none")
    (state,) = torch.load("parts/checkpoints/last.ckpt")["lr_schedulers"]
    assert state["T_max"] == 40
    assert state["_last_lr"] == [pytest.approx(0, abs=1e-9)]


def test_resume_refuses_wrong_runs_and_leaves_them_unchanged(tiny_images: None) -> None:
    run("done", *RUN, "trainer.max_epochs=1", "logger=none")
    before = (Path("done/result.json").read_bytes(), Path("done/checkpoints/last.ckpt").read_bytes())
    (Path("empty")).mkdir()
    torch.save({"state_dict": {}, "pytorch-lightning_version": "1.9.0"}, "foreign.ckpt")
    whole = Path("done/checkpoints/last.ckpt").read_bytes()
    Path("truncated.ckpt").write_bytes(whole[: len(whole) // 2])
    Path("nothing.ckpt").touch()
    Path("hostile.ckpt").write_bytes(pickle.dumps(os.system))
    for overrides, message in [
        (["resume=done"], "has finished its 1 epoch; trainer.max_epochs=6 would add five"),
        (
            ["resume=done", "model=lenet", "trainer.max_epochs=2"],
            "made with model=dropout_cnn and cannot resume with model=lenet",
        ),
        (
            ["resume=done", "data=cifar10", "trainer.max_epochs=2"],
            "made with data=mnist and cannot resume with data=cifar10",
        ),
        (["resume=done", "experiment=mnist_cnn", "trainer.max_epochs=2"], "made with experiment=null"),
        (["resume=last"], "no last.ckpt|there is no run yet"),
        (["resume=empty"], "is not a run directory"),
        (["resume=nowhere"], "neither a run directory nor a checkpoint"),
        (["resume=https://example.com/last.ckpt"], "not a file on this machine"),
        (["resume=foreign.ckpt"], r"not a checkpoint of this project: it holds no config \(Lightning 1.9.0 wrote it\)"),
        (["resume=truncated.ckpt"], "damaged or not a checkpoint"),
        (["resume=nothing.ckpt"], "damaged or not a checkpoint"),
        (["resume=hostile.ckpt"], "which could run code|damaged"),
    ]:
        if overrides == ["resume=last"]:
            Path("outputs/last").unlink()
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            run("other", *overrides, "logger=none")
    assert before == (Path("done/result.json").read_bytes(), Path("done/checkpoints/last.ckpt").read_bytes())
    assert os.listdir("other") == []


def test_run_killed_before_its_test_is_tested_on_resume(tiny_images: None) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        from lit_models import Supervised

        patch.setattr(Supervised, "test_step", lambda *_: (_ for _ in ()).throw(Killed))
        run("parts", *RUN, "trainer.max_epochs=1", "logger=none")
    result = run("parts", "resume=parts", "logger=none")
    assert result["status"] == "finished"
    assert "test/acc" in result["metrics"]
    assert (result["epochs"], result["steps"]) == (1, 10)


@pytest.mark.slow
@pytest.mark.parametrize("model", sorted(path.stem for path in (PROJECT / "conf/model").glob("*.yaml")))
def test_checkpoints_of_all_models_load_with_weights_only(model: str, tiny_images: None) -> None:
    data = {"blobs_mlp": "blobs", "logistic": "separable", "deep_logistic": "tabular", "mlp_regression": "readings"}
    data |= {"siamese": "mnist_pairs", "lstm": "sines", "xor_mlp": "xor"}
    data = data.get(model, "readings" if model.startswith("line") else "mnist")
    small = ["data.val_size=8", "data.batch_size=16"] if data.startswith("mnist") else ["data.batch_size=200"]
    small = ["data.length=50", "data.batch_size=4"] if data == "sines" else small
    limits = ("trainer.limit_train_batches=1", "trainer.max_epochs=1", "logger=none", "trainer.accelerator=cpu")
    if model == "distilled_cnn":
        run("teacher", "model=cnn", "data=mnist", *small, *limits)
        small.append("model.teacher=teacher")
    result = run("run", f"model={model}", f"data={data}", *small, *limits)
    measured = {name for name in result["metrics"] if name.count("/") == 1 and not name.endswith(("/rmse", "/r2"))}
    cls = model_class(compose(f"model={model}"))
    stages = {name.partition("/")[0] for name in measured}  # some data has no validation examples
    possible = possible_metrics([cls.__new__(cls)]) or set()  # what its attribute measures says
    assert measured == {name for name in possible if name.partition("/")[0] in stages}
    for name in ("last",) if model in ("gan", "dcgan") else ("last", "best"):  # no loss falls as a GAN gets better
        assert torch.load(f"run/checkpoints/{name}.ckpt", weights_only=True)["config"]["choices"]["model"] == model


# --- stored configs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key_path", "value"),
    [
        ("model._target_", "os.system"),
        ("model._target_", "builtins.eval"),
        ("model._target_", "torch.load"),
        ("model._target_", "torch.hub.load"),
        ("model._target_", "torch.nn.functional.torch.load"),
        ("model._target_", "torch.nn.modules.module.torch.load"),
        ("model._target_", "torch.optim.lr_scheduler.Path"),
        ("model._target_", "lit_models.finetuning.Path"),
        ("model._target_", "datamodules.sources.subprocess.Popen"),
        ("model._target_", "datamodules.sources.load"),
        ("model._target_", "lit_models.supervised.torch.nn.Module.load_state_dict"),
        ("model.net._target_", "lightning.pytorch.trainer.trainer.os.system"),
        ("model.net._target_", "lit_models.nets.NoSuchNet"),
        ("data._target_", "numpy.load"),
        ("optimizer._target_", "subprocess.run"),
        ("scheduler._target_", "torch.utils.data.DataLoader"),
        ("trainer._target_", "webbrowser.open"),
        ("trainer.plugins", [{"_target_": "os.system", "command": "touch owned"}]),
        ("model.net.hidden_sizes", "${oc.env:HOME}"),
        ("name", "${oc.env:HOME}"),
        ("model._args_", ["touch owned"]),
    ],
)
def test_malicious_stored_config_is_refused(key_path: str, value: object, tiny_images: None) -> None:
    run("run", *RUN, "trainer.max_epochs=1", "logger=none")
    checkpoint = torch.load("run/checkpoints/last.ckpt")
    *parents, key = key_path.split(".")
    node = checkpoint["config"]
    for parent in parents:
        node = node[parent]
    node[key] = value
    torch.save(checkpoint, "run/checkpoints/last.ckpt")
    with pytest.raises(ValueError, match=r"last.ckpt is refused: config\.") as error:
        run("run", "resume=run", "trainer.max_epochs=2", "logger=none")
    assert key_path in str(error.value)
    with pytest.raises(ValueError, match="is refused"):
        load_run("run", "last")
    assert not Path("owned").exists()


def test_stored_callbacks_and_loggers_are_not_instantiated(tiny_images: None) -> None:
    run("run", *RUN, "trainer.max_epochs=1", "logger=none")
    checkpoint = torch.load("run/checkpoints/last.ckpt")
    checkpoint["config"]["callbacks"]["evil"] = {"_target_": "os.mkdir", "path": "owned"}
    checkpoint["config"]["logger"] = {"_target_": "os.mkdir", "path": "owned"}
    torch.save(checkpoint, "run/checkpoints/last.ckpt")
    run("run", "resume=run", "trainer.max_epochs=2", "logger=none")
    assert not Path("owned").exists()


def test_malicious_pickle_is_refused() -> None:
    class MaliciousPickle:
        def __reduce__(self):
            return os.mkdir, ("owned",)

    torch.save({"config": MaliciousPickle()}, "evil.ckpt")
    with pytest.raises(ValueError, match="which could run code"):
        load_checkpoint(Path("evil.ckpt"))
    assert not Path("owned").exists()


# --- signals, full disks, non-finite losses ----------------------------------------------------------------------


def start_training(folder: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-u", str(PROJECT / "train.py"), *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


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


@pytest.mark.slow
def test_resume_from_the_command_line(shell, tmp_path: Path) -> None:
    """The experiment may be repeated or left out. Callbacks and logger are those of the run."""
    first = shell("experiment=blobs", "trainer.max_epochs=1", "model.steps_per_batch=10", "logger=none")
    assert first.returncode == 0, first.stderr
    again = shell("experiment=blobs", "resume=last", "trainer.max_epochs=2")
    assert again.returncode == 0, again.stderr
    assert "predicted labels" in again.stdout
    third = shell("resume=outputs/last/checkpoints/last.ckpt", "trainer.max_epochs=3")
    assert third.returncode == 0, third.stderr
    result = json.loads((tmp_path / "outputs/last/result.json").read_text())
    assert (result["experiment"], result["epochs"], result["steps"]) == ("blobs", 3, 30)
    assert not (tmp_path / "outputs/last/dashboard.txt").exists()
    assert len(list((tmp_path / "outputs/blobs").iterdir())) == 1
    finished = shell("resume=last")
    assert finished.returncode == 1
    assert "has finished its 3 epochs" in finished.stderr


class SignalInFinalizer:
    """Sends SIGTERM while it is finalized: Python drops what a signal handler raises there."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_signal_dropped_in_a_finalizer_still_ends_the_run(tiny_images: None, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []

    def patched(self: PerClassAccuracy, trainer: Trainer, *_: object) -> None:
        batches.append(SignalInFinalizer() and None)

    settings = (*RUN, "trainer.max_epochs=1", "data.eval_batch_size=10", "logger=none")
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
def test_nonfinite_loss_stops_before_the_update(shell, tmp_path: Path) -> None:
    lines = ("experiment=line_diverging", "trainer.max_epochs=100", "model.allow_divergence=false", "logger=none")
    answer = shell(*lines, "hydra.run.dir=run")
    assert answer.returncode == 4
    assert answer.stderr.startswith("error: the training loss is inf after step ")
    assert len(answer.stderr.splitlines()) == 1
    assert json.loads((tmp_path / "run/result.json").read_text())["status"] == "diverged"
    weights = torch.load(tmp_path / "run/checkpoints/last.ckpt")["state_dict"]
    assert all(torch.isfinite(weight).all() for weight in weights.values())


@pytest.mark.parametrize("validation", [0, 1])
def test_last_step_that_ruins_the_weights_is_reported_and_not_saved(validation: int) -> None:
    """No step comes after it, whose loss would tell."""
    line = ("model=line", "data=doubles", f"data.val_size={validation}", "optimizer=sgd", "optimizer.lr=3e38")
    short = ("scheduler=none", "trainer.max_epochs=1", "trainer.accelerator=cpu", "callbacks.pictures=null")
    with pytest.raises(FloatingPointError, match=r"^the training weight net\.\S+ is -?inf after step 1; try a smaller"):
        run("run", *line, *short, "logger=none")
    assert json.loads(Path("run/result.json").read_text())["status"] == "diverged"
    assert not Path("run/checkpoints/last.ckpt").exists()


def test_run_whose_last_step_ruins_the_test_is_not_called_finished() -> None:
    large = ("model=blobs_mlp", "data=blobs", "model.steps_per_batch=1", "trainer.limit_train_batches=1")
    short = ("scheduler=none", "trainer.max_epochs=1", "trainer.accelerator=cpu", "callbacks.pictures=null")
    result = run("run", *large, *short, "optimizer=sgd", "optimizer.lr=3e38", "threads=1", "logger=none")
    assert (result["status"], result["metrics"]["test/loss"]) == ("diverged", float("inf"))


def test_allowed_divergence_trains_to_the_end() -> None:
    result = run("run", "experiment=line_diverging", "trainer.max_epochs=100", "logger=none")
    assert (result["status"], result["epochs"]) == ("diverged", 100)


@pytest.fixture
def small_disk(tmp_path: Path):
    """Mount a file system of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_disk(folder: Path, leave: int) -> None:
    """Fill a file system except for ``leave`` bytes."""
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    (folder / "filler").write_bytes(b"x" * (free - leave))


def test_full_disk_keeps_the_previous_checkpoint(small_disk: Path, tiny_images: None) -> None:
    run(str(small_disk / "run"), *RUN, "trainer.max_epochs=1", "logger=none")
    before = (small_disk / "run/checkpoints/last.ckpt").read_bytes()
    fill_disk(small_disk, 100_000)  # half a checkpoint
    with pytest.raises(OSError, match="is the disk full") as error:
        run(str(small_disk / "run"), f"resume={small_disk / 'run'}", "trainer.max_epochs=2", "logger=none")
    assert "last.ckpt could not be written" in str(error.value)
    assert (small_disk / "run/checkpoints/last.ckpt").read_bytes() == before
    assert not list(small_disk.rglob("*.tmp"))
    (small_disk / "filler").unlink()
    result = run(str(small_disk / "run"), f"resume={small_disk / 'run'}", "trainer.max_epochs=2", "logger=none")
    assert (result["status"], result["epochs"]) == ("finished", 2)


def test_full_tmpdir_does_not_matter(small_disk: Path, tiny_images: None, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_disk(small_disk, 0)
    monkeypatch.setenv("TMPDIR", str(small_disk))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert run("run", *RUN, "trainer.max_epochs=1", "logger=none")["status"] == "finished"


def test_event_files_on_a_full_disk_warn_once(
    small_disk: Path, tiny_images: None, caplog: pytest.LogCaptureFixture
) -> None:
    from loggers.tensorboard import TensorBoard

    fill_disk(small_disk, 0)
    Path("outputs").symlink_to(small_disk)
    logger = TensorBoard("run", title="events")
    for step in range(3000):
        logger.log_metrics({"train/loss": 1.0}, step)
        if step % 100 == 0:
            logger.save()
    logger.finalize("success")
    warnings = [record.message for record in caplog.records if "TensorBoard" in record.message]
    assert len(warnings) == 1
    assert "No space left" in warnings[0]


def test_leftovers_of_a_killed_save_are_removed(tiny_images: None) -> None:
    run("run", *RUN, "trainer.max_epochs=1", "logger=none")
    leftovers = [Path("run/checkpoints/.last.ckpt.123.tmp"), Path("run/pictures/.mistakes.png.123.tmp")]
    for leftover in leftovers:
        leftover.parent.mkdir(exist_ok=True)
        leftover.write_bytes(b"half")
    run("run", "resume=run", "trainer.max_epochs=2", "logger=none")
    assert not any(leftover.exists() for leftover in leftovers)


@pytest.mark.real
def test_resume_after_twenty_random_kills_is_exact(
    real_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_ROOT", str(DATA_ROOT))
    lines = kill_and_resume(20, seed=1, folder=tmp_path)
    assert len(lines) == 20
    assert sum(bool(re.search(r"resumed from step \d", line)) for line in lines) >= 15


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("experiment", [name for name in PROCEDURES if name not in ("mnist_vae", "mnist_gan")])
def test_resume_after_kills_is_exact_with_every_procedure(
    experiment: str, real_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/test_generative.py kills the other two."""
    monkeypatch.setenv("DATA_ROOT", str(real_root))
    assert len(kill_and_resume(2, seed=2, folder=tmp_path, experiment=experiment)) == 2


def test_metrics_csv_has_each_epoch_once_after_resume(tiny_images: None) -> None:
    run("run", *RUN, "trainer.max_epochs=2", "logger=none")
    run("run", "resume=run/checkpoints/last.ckpt", "trainer.max_epochs=3", "logger=none")
    with open("run/metrics.csv", newline="") as lines:
        assert [row["epoch"] for row in csv.DictReader(lines)] == ["1", "2", "3"]


# --- settings of a resumed run -----------------------------------------------------------------------------------


def test_largest_seed_works(tiny_images: None) -> None:
    assert run("run", *RUN, "seed=4294967295", "trainer.max_epochs=1", "logger=none")["status"] == "finished"


def test_resume_through_outputs_last_keeps_the_run_directory(tiny_images: None) -> None:
    Path("outputs").mkdir()
    run("outputs/run", *RUN, "trainer.max_epochs=1", "logger=none")
    run("outputs/run", "resume=outputs/last/checkpoints/last.ckpt", "trainer.max_epochs=2")
    assert Path("outputs/last").resolve() == Path("outputs/run").resolve()


def test_resume_keeps_callbacks_and_logger(tiny_images: None) -> None:
    run("run", *RUN, "callbacks=early_stopping", "trainer.max_epochs=2", "logger=none")
    result = run("run", "resume=run", "trainer.max_epochs=60")
    assert result["epochs"] < 60  # random labels stop early
    assert not Path("run/dashboard.txt").exists()


def test_resume_keeps_the_overrides_of_callbacks(tiny_images: None) -> None:
    overrides = ("callbacks=early_stopping", "callbacks.early_stopping.monitor=val/acc", "callbacks.pictures=null")
    run("run", *RUN, *overrides, "+callbacks.early_stopping.mode=max", "trainer.max_epochs=1", "logger=none")
    run("run", "resume=run", "trainer.max_epochs=2", "~callbacks.per_class")
    callbacks = yaml.safe_load(Path("run/config.yaml").read_text())["callbacks"]
    assert callbacks["early_stopping"]["monitor"] == "val/acc"
    assert callbacks["early_stopping"]["mode"] == "max"
    assert callbacks["pictures"] is callbacks["per_class"] is None


STOP = "+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping"


@pytest.mark.parametrize(
    "typed",
    [
        (STOP, "+callbacks.stop.monitor=train/loss", "+callbacks.stop.mode=max", "+callbacks.stop.patience=4"),
        (
            "+callbacks.stop={_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:train/loss,mode:max,patience:4}",
        ),
    ],
)
def test_callback_of_the_command_line_resumes_with_its_state(
    typed: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """The loss falls. Without its state the callback would wait for four more epochs."""
    short = ("model=blobs_mlp", "data=blobs", "threads=1", "trainer.accelerator=cpu", "logger=none")
    run("run", *short, *typed, "optimizer.lr=0.01", "trainer.max_epochs=3")
    assert run("run", "resume=run", "trainer.max_epochs=4")["epochs"] == 4
    assert run("run", "resume=run", "trainer.max_epochs=20", "+callbacks.stop.verbose=true")["epochs"] == 5
    assert "is not taken from a checkpoint" not in caplog.text


def test_callback_that_may_write_files_is_not_taken_from_a_checkpoint(caplog: pytest.LogCaptureFixture) -> None:
    writes = "+callbacks.mine._target_=lightning.pytorch.callbacks.ModelCheckpoint"
    short = ("model=blobs_mlp", "data=blobs", "threads=1", "trainer.accelerator=cpu", "logger=none")
    run("run", *short, writes, "+callbacks.mine.dirpath=elsewhere", "trainer.max_epochs=1")
    shutil.rmtree("elsewhere")
    run("run", "resume=run", "trainer.max_epochs=2")
    assert not Path("elsewhere").exists()
    (line,) = [one for one in caplog.messages if one.startswith("resume: the callback mine is not taken from a che")]
    assert "+callbacks.mine._target_=… is typed again" in line
    caplog.clear()
    run("run", "resume=run", "trainer.max_epochs=3", writes, "+callbacks.mine.dirpath=elsewhere")
    assert yaml.safe_load(Path("run/config.yaml").read_text())["callbacks"]["mine"]["dirpath"] == "elsewhere"
    assert "is not taken from a checkpoint" not in caplog.text


@pytest.mark.parametrize("settings", [{"monitor": "../../evil"}, {"log": {"_target_": "os.mkdir"}}, {"_args_": ["x"]}])
def test_stored_callback_with_other_than_plain_values_is_not_made(settings: dict, tiny_images: None) -> None:
    run("run", *RUN, "trainer.max_epochs=1", "logger=none")
    checkpoint = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    target = STOP.partition("=")[2]
    checkpoint["config"]["callbacks"]["stop"] = {"_target_": target, "monitor": "val/loss", **settings}
    checkpoint["config"]["choices"]["overrides"] = [STOP]
    torch.save(checkpoint, "run/checkpoints/last.ckpt")
    new_cfg = compose("resume=run", "trainer.max_epochs=2")
    new_cfg.choices.overrides = ["resume=run", "trainer.max_epochs=2"]
    if "_args_" in settings:
        with pytest.raises(ValueError, match=r"is refused: config\.callbacks\.stop\._args_ is not used"):
            merge_resume_config(new_cfg, Path("run/checkpoints/last.ckpt"))
    else:
        assert "stop" not in merge_resume_config(new_cfg, Path("run/checkpoints/last.ckpt")).callbacks


@pytest.mark.parametrize(
    "key", ["callbacks.pictures._target_", "callbacks.pictures[_target_]", "+callbacks.x._target_"]
)
def test_stored_overrides_cannot_set_the_target_of_a_callback(key: str, tiny_images: None) -> None:
    run("run", *RUN, "trainer.max_epochs=1", "logger=none")
    checkpoint = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    checkpoint["config"]["callbacks"] = {"pictures": {"_target_": "os.mkdir"}, "x": {"_target_": "os.mkdir"}}
    checkpoint["config"]["choices"]["overrides"] = [f"{key}=os.mkdir"]
    torch.save(checkpoint, "run/checkpoints/last.ckpt")
    new_cfg = compose("resume=run", "trainer.max_epochs=2")
    new_cfg.choices.overrides = ["resume=run", "trainer.max_epochs=2"]
    cfg = merge_resume_config(new_cfg, Path("run/checkpoints/last.ckpt"))
    assert cfg.callbacks.pictures._target_ == "callbacks.plots.Plots"
    assert "x" not in cfg.callbacks


@pytest.mark.parametrize(
    "override", ["optimizer.lr=0.5", "seed=9", "scheduler.max_lr=1", "model.net._target_=x", "data.val_size=8"]
)
def test_resume_refuses_to_change_what_the_checkpoint_fixes(override: str, tiny_images: None) -> None:
    run("run", *RUN, "trainer.max_epochs=1", "logger=none")
    with pytest.raises(ValueError, match="is fixed by the checkpoint"):
        run("run", "resume=run", "trainer.max_epochs=2", override)


def test_resume_refuses_another_number_of_examples_per_step(tiny_images: None) -> None:
    run("run", *RUN, "trainer.max_epochs=1", "logger=none")
    with pytest.raises(ValueError, match=r"examples in a batch .*: 16 in this run, and now 32,"):
        run("run", "resume=run", "trainer.max_epochs=2", "data.batch_size=32")
    with pytest.raises(ValueError, match=r"batches in a step .*: 1 in this run, and now 2,"):
        run("run", "resume=run", "trainer.max_epochs=2", "trainer.accumulate_grad_batches=2")
    assert json.loads(Path("run/result.json").read_text())["status"] == "finished"  # unchanged
    # Overrides with the value that a setting already has, and of settings that may change, are accepted.
    result = run("run", "resume=run", "trainer.max_epochs=2", "data.folds=null", "data.eval_batch_size=7")
    assert result["epochs"] == 2


def test_resume_does_not_need_the_pretrained_weights_file(tiny_images: None) -> None:
    import torchvision

    torch.save(torchvision.models.resnet18(num_classes=10).state_dict(), "start.pt")
    settings = ("model=resnet18", "model.weights=start.pt", "data.batch_size=16", "data.val_size=8", "logger=none")
    run("run", *settings, "trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.accelerator=cpu")
    Path("start.pt").unlink()
    run("run", "resume=run", "trainer.max_epochs=2")
    load_run("run", "best")


def test_resume_with_accumulated_gradients_is_exact(tiny_images: None) -> None:
    settings = (*RUN, "trainer.accumulate_grad_batches=3", "trainer.max_epochs=3", "checkpoint.every_n_steps=1")
    run("whole", *settings, "logger=none")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 6)
        run("parts", *settings, "logger=none")
    run("parts", "resume=parts")
    assert differences(final_state(Path("whole")), final_state(Path("parts"))) == []


def test_logged_step_loss_is_not_divided_by_accumulation(tiny_images: None) -> None:
    run("run", *RUN, "trainer.accumulate_grad_batches=5", "trainer.max_epochs=1", "record.every_n_batches=10")
    with open("run/metrics.csv", newline="") as lines:
        of_batches, of_epoch = csv.DictReader(lines)
    assert float(of_batches["train/loss_step"]) == pytest.approx(float(of_epoch["train/loss"]), rel=1e-5)


def test_resume_with_another_trainer_option_keeps_training_settings(tiny_images: None) -> None:
    """Settings of the training come from the run, settings of the machine from the new option."""
    chosen = ("trainer.max_epochs=7", "trainer.gradient_clip_val=0.5", "+trainer.limit_predict_batches=3")
    run("run", *RUN, *chosen, "trainer.limit_train_batches=1", "logger=none")
    file = Path("run/checkpoints/last.ckpt")
    cfg = compose(*(overrides := ("resume=run", "trainer.max_epochs=9", "trainer=gpu")))
    cfg.choices.overrides = list(overrides)
    trainer = merge_resume_config(cfg, file).trainer
    assert (trainer.max_epochs, trainer.gradient_clip_val, trainer.limit_predict_batches) == (9, 0.5, 3)
    assert (trainer.accelerator, trainer.precision) == ("gpu", "bf16-mixed")


def test_checkpoint_every_n_steps_with_several_steps_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are seven steps on each of seven batches. A checkpoint is due when the steps pass a multiple of ten."""
    saved, save = [], Trainer.save_checkpoint

    def patched(self: Trainer, path: Path) -> None:
        saved.append((path.name, self.global_step))
        save(self, path)

    monkeypatch.setattr(Trainer, "save_checkpoint", patched)
    settings = ("model=blobs_mlp", "data=blobs", "data.batch_size=32", "model.steps_per_batch=7", "logger=none")
    run("run", *settings, "trainer.max_epochs=1", "checkpoint.every_n_steps=10", "threads=1")
    assert saved == [*[("last.ckpt", step) for step in (14, 21, 35, 42)], ("best.ckpt", 49)]


def test_epoch_with_a_nan_score_is_never_best() -> None:
    run("run", "experiment=line_diverging", "trainer.max_epochs=100", "logger=none")
    best = torch.load("run/checkpoints/best.ckpt")
    assert all(weight.isfinite().all() for weight in best["state_dict"].values())
    assert best["epoch"] == 0


def test_signal_before_the_first_epoch_reports_nothing_to_save(
    tiny_images: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lit_models import Supervised

    monkeypatch.setattr(Supervised, "on_train_start", lambda _: os.kill(os.getpid(), signal.SIGTERM), raising=False)
    with pytest.raises(Interrupted, match="there was nothing to save yet"):
        run("run", *RUN, "trainer.max_epochs=1", "logger=none")


def test_best_epoch_is_a_validated_one(tiny_images: None) -> None:
    run("run", *RUN, "trainer.max_epochs=4", "trainer.check_val_every_n_epoch=2", "logger=none")
    assert torch.load("run/checkpoints/best.ckpt")["epoch"] in (1, 3)


def test_epoch_schedule_steps_once_per_epoch_with_several_steps_per_batch() -> None:
    settings = ("model=blobs_mlp", "data=blobs", "optimizer=sgd", "optimizer.lr=0.8", "model.steps_per_batch=7")
    run("run", *settings, "scheduler=step", "scheduler.step_size=1", "scheduler.gamma=0.5", "trainer.max_epochs=3")
    (state,) = torch.load("run/checkpoints/last.ckpt")["lr_schedulers"]
    assert state["_last_lr"] == [pytest.approx(0.1)]


def test_threads_are_reset_between_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.process._default_threads", lambda: 2)
    before = torch.get_num_threads()
    seed_and_set_threads(1, threads=1)
    assert torch.get_num_threads() == 1
    seed_and_set_threads(1, threads=None)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_keyboard_interrupt_has_exit_code_130(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as ended:
        exit_with_error(KeyboardInterrupt(), show_traceback=False)
    signal.signal(signal.SIGINT, handler)
    assert ended.value.code == 130


class DropsInterrupt(Callback):
    """Receives Ctrl-C in its constructor and drops it, as a library may do while it is imported."""

    def __init__(self) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_keyboard_interrupt_dropped_by_a_library_still_ends_the_run(shell) -> None:
    answer = shell(*RUN, "logger=none", "+callbacks.drops._target_=tests.test_resume.DropsInterrupt")
    assert answer.returncode == 130
    assert answer.stderr == "error: interrupted by SIGINT; there was nothing to save yet\n"
    assert "epoch" not in answer.stdout


def test_error_about_a_foreign_checkpoint_names_the_versions_that_made_it(tiny_images: None) -> None:
    run("run", *RUN, "trainer.max_epochs=1", "logger=none")
    checkpoint = torch.load("run/checkpoints/last.ckpt")
    assert f"torch {torch.__version__}" in checkpoint["made_by"]
    del checkpoint["config"]["scheduler"]
    torch.save(checkpoint, "run/checkpoints/last.ckpt")
    with pytest.raises(ValueError, match=r"another version of this project \(lit-classics .*lacks scheduler"):
        run("run", "resume=run", "trainer.max_epochs=2")


# --- training that stops in mid-epoch -----------------------------------------------------------------------------


class StopAfterBatches(Callback):
    """Sets ``trainer.should_stop`` in ``hook`` after ``batches`` training batches."""

    def __init__(self, batches: int, hook: str = "on_train_batch_end") -> None:
        self.seen, self.batches = 0, batches
        setattr(self, hook, self.stop)
        if hook != "on_train_batch_end":
            self.on_train_batch_end = self.count

    def count(self, *_: object) -> None:
        self.seen += 1

    def stop(self, trainer: Trainer, *_: object) -> None:
        self.seen += "on_validation_end" not in vars(self)
        trainer.should_stop = self.seen >= self.batches


def metrics_rows(folder: str) -> list[dict[str, str]]:
    with open(f"{folder}/metrics.csv", newline="") as lines:
        return [row | {"seconds": ""} for row in csv.DictReader(lines)]


def assert_same_run(whole: str, parts: str) -> None:
    one, other = (torch.load(f"{folder}/checkpoints/last.ckpt", weights_only=True) for folder in (whole, parts))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", "epoch_sums"):
        assert differences(one[part], other[part], part) == []
    assert metrics_rows(whole) == metrics_rows(parts)
    one, other = (json.loads(Path(folder, "result.json").read_text()) for folder in (whole, parts))
    assert one["metrics"] == other["metrics"]
    assert (one["epochs"], one["steps"], one["status"]) == (other["epochs"], other["steps"], "finished")


@pytest.mark.parametrize("scheduler", ["none", "step"])
@pytest.mark.parametrize("steps", [1, 4, 9, 10, 11, 25])
def test_resume_after_max_steps_is_exact(steps: int, scheduler: str, tiny_images: None) -> None:
    settings = (*RUN, f"scheduler={scheduler}", "trainer.max_epochs=3", "logger=none", "record.every_n_batches=3")
    run("whole", *settings)
    result = run("parts", *settings, f"trainer.max_steps={steps}")
    assert (result["epochs"], result["steps"]) == (steps // 10, steps)
    assert [row["epoch"] for row in metrics_rows("parts") if row.get("train/loss")] == [
        str(epoch) for epoch in range(1, steps // 10 + 1)
    ]
    run("parts", "resume=parts", f"trainer.max_steps={'-1' if steps % 2 else steps + 40}")
    assert_same_run("whole", "parts")


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("trainer.check_val_every_n_epoch=2",),
        ("+trainer.val_check_interval=5",),
        ("trainer.check_val_every_n_epoch=null", "+trainer.val_check_interval=7"),
        ("trainer.limit_train_batches=7",),
        ("+trainer.reload_dataloaders_every_n_epochs=1",),
        ("trainer.precision=64-true",),
        ("trainer.gradient_clip_val=0.5",),
        ("trainer.limit_val_batches=0",),
    ],
)
def test_resume_after_max_steps_is_exact_with_other_settings(settings: tuple[str, ...], tiny_images: None) -> None:
    settings = (*RUN, "scheduler=none", "trainer.max_epochs=4", "logger=none", *settings)
    run("whole", *settings)
    run("parts", *settings, "trainer.max_steps=5")
    run("parts", "resume=parts", "trainer.max_steps=17")
    run("parts", "resume=parts", "trainer.max_steps=-1")
    assert_same_run("whole", "parts")


def test_max_steps_with_several_steps_per_batch() -> None:
    settings = ("model=blobs_mlp", "data=blobs", "data.batch_size=32", "model.steps_per_batch=7", "logger=none")
    run("whole", *settings, "scheduler=none", "trainer.max_epochs=2", "threads=1")
    result = run("parts", *settings, "scheduler=none", "trainer.max_epochs=2", "trainer.max_steps=10", "threads=1")
    assert (result["epochs"], result["steps"]) == (0, 14)  # all steps on a batch are taken
    run("parts", "resume=parts", "trainer.max_steps=-1")
    assert_same_run("whole", "parts")
    run("short", *settings, "scheduler=onecycle", "trainer.max_epochs=9", "trainer.max_steps=16")
    (state,) = torch.load("short/checkpoints/last.ckpt", weights_only=True)["lr_schedulers"]
    assert (state["total_steps"], state["last_epoch"]) == (21, 21)


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_end"])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("batches", [3, 4, 14])
def test_resume_after_callback_stops_in_mid_epoch_is_exact(
    hook: str, accumulate: int, batches: int, tiny_images: None
) -> None:
    settings = (*RUN, "scheduler=none", "trainer.max_epochs=3", f"trainer.accumulate_grad_batches={accumulate}")
    settings = (*settings, "logger=none", "+trainer.val_check_interval=2")
    run("whole", *settings)
    stop = ("+callbacks.stop._target_=tests.test_resume.StopAfterBatches", f"+callbacks.stop.batches={batches}")
    result = run("parts", *settings, *stop, f"+callbacks.stop.hook={hook}")
    assert result["epochs"] == batches // 10
    run("parts", "resume=parts")  # the added callback is not part of the resumed run
    assert_same_run("whole", "parts")


def test_resume_after_max_time_is_exact(tiny_images: None, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = (*RUN, "scheduler=onecycle", "trainer.max_epochs=3", "logger=none")
    run("whole", *settings)
    clock = itertools.count()  # each call advances the time by one second
    with monkeypatch.context() as patch:
        patch.setattr("lightning.pytorch.callbacks.timer.time.monotonic", lambda: float(next(clock)))
        result = run("parts", *settings, "trainer.max_time=00:00:00:30")
    assert result["epochs"] < 3
    assert torch.load("parts/checkpoints/last.ckpt", weights_only=True)["global_step"] % 10
    with pytest.raises(
        ValueError, match=r"nothing left to train after step \d+; trainer.max_time=null would continue it"
    ):
        run("parts", "resume=parts")
    run("parts", "resume=parts", "trainer.max_time=null")
    assert_same_run("whole", "parts")


def test_run_whose_time_ends_with_an_epoch_says_so(
    tiny_images: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = itertools.count()  # each call advances the time by one second
    monkeypatch.setattr("lightning.pytorch.callbacks.timer.time.monotonic", lambda: float(next(clock)))
    one_batch = "trainer.limit_train_batches=1"
    assert run("run", *RUN, one_batch, "trainer.max_epochs=99", "trainer.max_time=00:00:00:02")["epochs"] < 9
    line = r"stopped early, after epoch \d: its time is over; resume= with a higher limit continues"
    assert len([one for one in caplog.messages if re.fullmatch(line, one)]) == 1


def test_max_steps_in_the_first_epoch_leaves_a_usable_run(tiny_images: None) -> None:
    """There is no row of metrics, but a last.ckpt."""
    result = run("run", *RUN, "trainer.max_steps=3", "logger=none")
    assert (result["status"], result["epochs"], result["steps"]) == ("finished", 0, 3)
    assert metrics_rows("run") == []
    _, _, model = load_run("run", "last")
    assert not model.training


@pytest.mark.parametrize(
    ("limits", "then", "message"),
    [
        (("trainer.max_steps=4",), (), "nothing left to train after step 4; trainer.max_steps=-1 would continue it"),
        (("trainer.max_steps=10",), (), "after step 10; trainer.max_steps=-1 would continue it"),
        ((), ("trainer.max_steps=25",), "has finished its 1 epoch; trainer.max_epochs=6 would add five"),
        ((), ("trainer.max_epochs=3", "trainer.max_steps=5"), "after step 10; trainer.max_steps=-1 would continue it"),
        ((), ("trainer.max_steps=5",), "after step 10; trainer.max_epochs=6 trainer.max_steps=-1 would continue it"),
    ],
)
def test_resume_with_nothing_left_to_train_is_refused(
    limits: tuple[str, ...], then: tuple[str, ...], message: str, tiny_images: None
) -> None:
    epochs = ("trainer.max_epochs=2",) if limits else ("trainer.max_epochs=1",)
    run("run", *RUN, *epochs, *limits, "logger=none")
    before = Path("run/result.json").read_bytes()
    with pytest.raises(ValueError, match=message):
        run("run", "resume=run", *then)
    assert Path("run/result.json").read_bytes() == before


@pytest.mark.parametrize("option", ["debug=fast", "debug=overfit", "debug=limit", "debug=profile"])
def test_debug_of_a_resumed_run_is_refused(option: str, tiny_images: None) -> None:
    """It would be of no effect, and the whole training would go on."""
    run("run", *RUN, "trainer.max_epochs=1", "logger=none")
    before = Path("run/result.json").read_bytes()
    with pytest.raises(ValueError, match=f"resume: {option} is for a new run"):
        run("run", "resume=run", "trainer.max_epochs=2", option, "logger=none")
    assert Path("run/result.json").read_bytes() == before


def test_resume_that_cannot_begin_keeps_the_result(tiny_images: None) -> None:
    run("run", *RUN, "trainer.max_epochs=1", "logger=none")
    before = Path("run/result.json").read_bytes()
    with pytest.raises(ValueError, match="val_check_interval"):
        run("run", "resume=run", "trainer.max_epochs=2", "+trainer.val_check_interval=500", "logger=none")
    assert Path("run/result.json").read_bytes() == before


def test_checkpoint_behind_the_last_one_is_resumed_elsewhere_only(tiny_images: None) -> None:
    run("run", *RUN, "trainer.max_epochs=1", "logger=none")
    shutil.copy("run/checkpoints/last.ckpt", "run/checkpoints/early.ckpt")
    check_unused(Path("run"), "run/checkpoints/early.ckpt")  # as far as last.ckpt
    run("run", "resume=run", "trainer.max_epochs=2", "logger=none")
    line = "early.ckpt is of step 10, and last.ckpt in the same directory of step 20, which would be lost: resume=run"
    with pytest.raises(ValueError, match=re.escape(line)):
        check_unused(Path("run"), "run/checkpoints/early.ckpt")
    Path("elsewhere").mkdir()
    check_unused(Path("elsewhere"), "run/checkpoints/early.ckpt")


def test_max_steps_below_the_steps_taken_is_refused(tiny_images: None) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 15)
        run("run", *RUN, "trainer.max_epochs=3", "logger=none")
    with pytest.raises(ValueError, match=r"after step 10; trainer.max_steps=-1 would continue it"):
        run("run", "resume=run", "trainer.max_steps=8")


@pytest.mark.parametrize("step", [4, 10, 14, 20])
def test_killed_run_with_max_steps_resumes_exactly(step: int, tiny_images: None) -> None:
    settings = (*RUN, "trainer.max_epochs=9", "trainer.max_steps=25", "logger=none", "checkpoint.every_n_steps=1")
    run("whole", *settings)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, step)
        run("parts", *settings)
    run("parts", "resume=parts")
    assert_same_run("whole", "parts")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("model", ["dropout_cnn", "quick_cnn"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_other_precisions_resume_exactly(precision: str, model: str, optimizer: str, tiny_images: None) -> None:
    settings = (*RUN, f"model={model}", f"optimizer={optimizer}", f"trainer.precision={precision}", "logger=none")
    settings = (*settings, "trainer.max_epochs=3", "checkpoint.every_n_steps=1")
    run("whole", *settings)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 14)
        run("parts", *settings)
    run("parts", "resume=parts")
    assert differences(final_state(Path("whole")), final_state(Path("parts"))) == []
