"""Training that stops inside an epoch, and resumes there to the same bits."""

import csv
import itertools
import json
import logging
import re
import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from cli.build import load_run
from cli.overwrite import check_unused
from tests.conftest import TINY_RUN, Killed, kill_at, run
from tests.kill_and_resume import differences, final_state


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
    settings = (*TINY_RUN, f"scheduler={scheduler}", "trainer.max_epochs=3", "logger=none", "record.every_n_batches=3")
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
    settings = (*TINY_RUN, "scheduler=none", "trainer.max_epochs=4", "logger=none", *settings)
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
    settings = (*TINY_RUN, "scheduler=none", "trainer.max_epochs=3", f"trainer.accumulate_grad_batches={accumulate}")
    settings = (*settings, "logger=none", "+trainer.val_check_interval=2")
    run("whole", *settings)
    stop = ("+callbacks.stop._target_=tests.test_partial_epochs.StopAfterBatches", f"+callbacks.stop.batches={batches}")
    result = run("parts", *settings, *stop, f"+callbacks.stop.hook={hook}")
    assert result["epochs"] == batches // 10
    run("parts", "resume=parts")  # the added callback is not part of the resumed run
    assert_same_run("whole", "parts")


def test_resume_after_max_time_is_exact(tiny_images: None, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = (*TINY_RUN, "scheduler=onecycle", "trainer.max_epochs=3", "logger=none")
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
    assert run("run", *TINY_RUN, one_batch, "trainer.max_epochs=99", "trainer.max_time=00:00:00:02")["epochs"] < 9
    line = r"stopped early, after epoch \d: its time is over; resume= with a higher limit continues"
    assert len([one for one in caplog.messages if re.fullmatch(line, one)]) == 1


def test_max_steps_in_the_first_epoch_leaves_a_usable_run(tiny_images: None) -> None:
    """There is no row of metrics, but a last.ckpt."""
    result = run("run", *TINY_RUN, "trainer.max_steps=3", "logger=none")
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
    run("run", *TINY_RUN, *epochs, *limits, "logger=none")
    before = Path("run/result.json").read_bytes()
    with pytest.raises(ValueError, match=message):
        run("run", "resume=run", *then)
    assert Path("run/result.json").read_bytes() == before


@pytest.mark.parametrize("option", ["debug=fast", "debug=overfit", "debug=limit", "debug=profile"])
def test_debug_of_a_resumed_run_is_refused(option: str, tiny_images: None) -> None:
    """It would be of no effect, and the whole training would go on."""
    run("run", *TINY_RUN, "trainer.max_epochs=1", "logger=none")
    before = Path("run/result.json").read_bytes()
    with pytest.raises(ValueError, match=f"resume: {option} is for a new run"):
        run("run", "resume=run", "trainer.max_epochs=2", option, "logger=none")
    assert Path("run/result.json").read_bytes() == before


def test_resume_that_cannot_begin_keeps_the_result(tiny_images: None) -> None:
    run("run", *TINY_RUN, "trainer.max_epochs=1", "logger=none")
    before = Path("run/result.json").read_bytes()
    with pytest.raises(ValueError, match="val_check_interval"):
        run("run", "resume=run", "trainer.max_epochs=2", "+trainer.val_check_interval=500", "logger=none")
    assert Path("run/result.json").read_bytes() == before


def test_checkpoint_behind_the_last_one_is_resumed_elsewhere_only(tiny_images: None) -> None:
    run("run", *TINY_RUN, "trainer.max_epochs=1", "logger=none")
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
        run("run", *TINY_RUN, "trainer.max_epochs=3", "logger=none")
    with pytest.raises(ValueError, match=r"after step 10; trainer.max_steps=-1 would continue it"):
        run("run", "resume=run", "trainer.max_steps=8")


@pytest.mark.parametrize("step", [4, 10, 14, 20])
def test_killed_run_with_max_steps_resumes_exactly(step: int, tiny_images: None) -> None:
    settings = (*TINY_RUN, "trainer.max_epochs=9", "trainer.max_steps=25", "logger=none", "checkpoint.every_n_steps=1")
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
    settings = (*TINY_RUN, f"model={model}", f"optimizer={optimizer}", f"trainer.precision={precision}", "logger=none")
    settings = (*settings, "trainer.max_epochs=3", "checkpoint.every_n_steps=1")
    run("whole", *settings)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 14)
        run("parts", *settings)
    run("parts", "resume=parts")
    assert differences(final_state(Path("whole")), final_state(Path("parts"))) == []
