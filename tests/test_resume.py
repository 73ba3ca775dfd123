"""A resumed run is identical, to the bit, to the run that was never interrupted."""

import csv
import json
import os
import pickle
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.signal_handler import Interrupted
from cli.build import load_run, model_class
from cli.compose import compose
from cli.process import seed_and_set_threads
from cli.resume import merge_resume_config
from runs.checkpoint import load_checkpoint
from runs.monitor import possible_metrics
from tests.conftest import DATA_ROOT, PROJECT, TINY_RUN, Killed, call_at_step, kill_at, run
from tests.kill_and_resume import PROCEDURES, differences, final_state, kill_and_resume


@pytest.mark.parametrize("scheduler", ["none", "step", "cosine", "onecycle"])
def test_resume_after_a_kill_is_exact(scheduler: str, tiny_images: None) -> None:
    run("whole", *TINY_RUN, f"scheduler={scheduler}", "trainer.max_epochs=4", "logger=none")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 25)  # in the third epoch of ten steps
        run("parts", *TINY_RUN, f"scheduler={scheduler}", "trainer.max_epochs=4", "logger=none")
    assert torch.load("parts/checkpoints/last.ckpt")["global_step"] == 20
    run("parts", "resume=parts", "logger=none")
    assert differences(final_state(Path("whole")), final_state(Path("parts"))) == []


@pytest.mark.parametrize("step", [4, 10, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 9, 11, 19, 21))])
def test_resume_in_mid_epoch_is_exact(step: int, tiny_images: None) -> None:
    run("whole", *TINY_RUN, "trainer.max_epochs=3", "logger=none")
    settings = (
        *TINY_RUN,
        "trainer.max_epochs=3",
        "logger=none",
        "checkpoint.every_n_steps=1",
        "record.every_n_batches=3",
    )
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
    settings = (*TINY_RUN, "trainer.max_epochs=3", "logger=none", "record.every_n_batches=3")
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
        run("parts", *TINY_RUN, "trainer.max_epochs=2", "trainer.log_every_n_steps=2")
    run("parts", "resume=parts")
    steps = [
        event.step
        for event in EventAccumulator(Path("parts/dashboard.txt").read_text().strip())
        .Reload()
        .Scalars("train/loss_step")
    ]
    assert steps == list(range(2, 21, 2))


def test_longer_training_follows_the_schedule_of_its_new_length(tiny_images: None) -> None:
    run("parts", *TINY_RUN, "scheduler=cosine", "trainer.max_epochs=2", "logger=none")
    run("parts", "resume=parts", "trainer.max_epochs=4", "logger=none")
    (state,) = torch.load("parts/checkpoints/last.ckpt")["lr_schedulers"]
    assert state["T_max"] == 40
    assert state["_last_lr"] == [pytest.approx(0, abs=1e-9)]


def test_resume_refuses_wrong_runs_and_leaves_them_unchanged(tiny_images: None) -> None:
    run("done", *TINY_RUN, "trainer.max_epochs=1", "logger=none")
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
        run("parts", *TINY_RUN, "trainer.max_epochs=1", "logger=none")
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
    run("run", *TINY_RUN, "trainer.max_epochs=1", "logger=none")
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
    run("run", *TINY_RUN, "trainer.max_epochs=1", "logger=none")
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


def test_leftovers_of_a_killed_save_are_removed(tiny_images: None) -> None:
    run("run", *TINY_RUN, "trainer.max_epochs=1", "logger=none")
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
    run("run", *TINY_RUN, "trainer.max_epochs=2", "logger=none")
    run("run", "resume=run/checkpoints/last.ckpt", "trainer.max_epochs=3", "logger=none")
    with open("run/metrics.csv", newline="") as lines:
        assert [row["epoch"] for row in csv.DictReader(lines)] == ["1", "2", "3"]


# --- settings of a resumed run -----------------------------------------------------------------------------------


def test_largest_seed_works(tiny_images: None) -> None:
    assert run("run", *TINY_RUN, "seed=4294967295", "trainer.max_epochs=1", "logger=none")["status"] == "finished"


def test_resume_through_outputs_last_keeps_the_run_directory(tiny_images: None) -> None:
    Path("outputs").mkdir()
    run("outputs/run", *TINY_RUN, "trainer.max_epochs=1", "logger=none")
    run("outputs/run", "resume=outputs/last/checkpoints/last.ckpt", "trainer.max_epochs=2")
    assert Path("outputs/last").resolve() == Path("outputs/run").resolve()


def test_resume_keeps_callbacks_and_logger(tiny_images: None) -> None:
    run("run", *TINY_RUN, "callbacks=early_stopping", "trainer.max_epochs=2", "logger=none")
    result = run("run", "resume=run", "trainer.max_epochs=60")
    assert result["epochs"] < 60  # random labels stop early
    assert not Path("run/dashboard.txt").exists()


def test_resume_keeps_the_overrides_of_callbacks(tiny_images: None) -> None:
    overrides = ("callbacks=early_stopping", "callbacks.early_stopping.monitor=val/acc", "callbacks.pictures=null")
    run("run", *TINY_RUN, *overrides, "+callbacks.early_stopping.mode=max", "trainer.max_epochs=1", "logger=none")
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
    run("run", *TINY_RUN, "trainer.max_epochs=1", "logger=none")
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
    run("run", *TINY_RUN, "trainer.max_epochs=1", "logger=none")
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
    run("run", *TINY_RUN, "trainer.max_epochs=1", "logger=none")
    with pytest.raises(ValueError, match="is fixed by the checkpoint"):
        run("run", "resume=run", "trainer.max_epochs=2", override)


def test_resume_refuses_another_number_of_examples_per_step(tiny_images: None) -> None:
    run("run", *TINY_RUN, "trainer.max_epochs=1", "logger=none")
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
    settings = (*TINY_RUN, "trainer.accumulate_grad_batches=3", "trainer.max_epochs=3", "checkpoint.every_n_steps=1")
    run("whole", *settings, "logger=none")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 6)
        run("parts", *settings, "logger=none")
    run("parts", "resume=parts")
    assert differences(final_state(Path("whole")), final_state(Path("parts"))) == []


def test_logged_step_loss_is_not_divided_by_accumulation(tiny_images: None) -> None:
    run("run", *TINY_RUN, "trainer.accumulate_grad_batches=5", "trainer.max_epochs=1", "record.every_n_batches=10")
    with open("run/metrics.csv", newline="") as lines:
        of_batches, of_epoch = csv.DictReader(lines)
    assert float(of_batches["train/loss_step"]) == pytest.approx(float(of_epoch["train/loss"]), rel=1e-5)


def test_resume_with_another_trainer_option_keeps_training_settings(tiny_images: None) -> None:
    """Settings of the training come from the run, settings of the machine from the new option."""
    chosen = ("trainer.max_epochs=7", "trainer.gradient_clip_val=0.5", "+trainer.limit_predict_batches=3")
    run("run", *TINY_RUN, *chosen, "trainer.limit_train_batches=1", "logger=none")
    file = Path("run/checkpoints/last.ckpt")
    cfg = compose(*(overrides := ("resume=run", "trainer.max_epochs=9", "trainer=gpu")))
    cfg.choices.overrides = list(overrides)
    trainer = merge_resume_config(cfg, file).trainer
    assert (trainer.max_epochs, trainer.gradient_clip_val, trainer.limit_predict_batches) == (9, 0.5, 3)
    assert (trainer.accelerator, trainer.precision) == ("gpu", "bf16-mixed")


def test_repeated_command_has_as_many_processes_as_before(tiny_images: None) -> None:
    """The number comes from the option of trainer=, and what is typed beside it counts although the run has it too."""
    typed = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1")
    run("run", *TINY_RUN, *typed, "trainer.max_epochs=1", "logger=none")
    cfg = compose(*(overrides := ("resume=run", "trainer.max_epochs=2", *typed)))
    cfg.choices.overrides = list(overrides)
    assert merge_resume_config(cfg, Path("run/checkpoints/last.ckpt")).trainer.devices == 1


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


def test_best_epoch_is_a_validated_one(tiny_images: None) -> None:
    run("run", *TINY_RUN, "trainer.max_epochs=4", "trainer.check_val_every_n_epoch=2", "logger=none")
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


def test_error_about_a_foreign_checkpoint_names_the_versions_that_made_it(tiny_images: None) -> None:
    run("run", *TINY_RUN, "trainer.max_epochs=1", "logger=none")
    checkpoint = torch.load("run/checkpoints/last.ckpt")
    assert f"torch {torch.__version__}" in checkpoint["made_by"]
    del checkpoint["config"]["scheduler"]
    torch.save(checkpoint, "run/checkpoints/last.ckpt")
    with pytest.raises(ValueError, match=r"another version of this project \(lit-classics .*lacks scheduler"):
        run("run", "resume=run", "trainer.max_epochs=2")
