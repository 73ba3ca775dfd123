"""Your own images: splits, files that are none, and runs that resume exactly, with workers and without."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import train
from cli.build import load_run
from cli.compose import compose
from datamodules import CIFAR10, ImageFolder
from datamodules.image_folder import FolderLoader, PictureFiles
from datamodules.images import flip_crop
from tests.conftest import PROJECT
from tests.kill_and_resume import differences, end
from tests.test_resume import Killed, kill_at
from tests.test_scripts import ask


def make_pictures(root: Path, per_class: int = 30) -> None:
    """Red and green pictures of several sizes with some noise in them."""
    generator = torch.Generator().manual_seed(0)
    for channel, name in enumerate(("red", "green")):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = torch.randint(120, (40 + number % 3, 36, 3), dtype=torch.uint8, generator=generator)
            pixels[:, :, channel] += 120
            Image.fromarray(pixels.numpy()).save(root / name / f"{number}.png")


SETTINGS = {"image": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "batch_size": 8, "num_workers": 0}
RUN = ("model=lenet", "data=image_folder", "data.root=pictures", "data.batch_size=8", "data.augment=flip_crop")
RUN += ("trainer.accelerator=cpu", "threads=1", "logger=none", "trainer.max_epochs=2", "checkpoint.every_n_steps=1")


def run(folder: str, *overrides: str) -> dict:
    Path(folder).mkdir(exist_ok=True)
    return train.train(compose(*overrides), Path(folder))


def test_one_folder_is_split_by_seed_and_nothing_is_in_two_parts() -> None:
    make_pictures(Path("pictures"))
    folder = ImageFolder("pictures", val_size=0.25, test_size=0.2, **SETTINGS)
    folder.setup()
    assert folder.class_names == ("green", "red")
    assert (len(folder.train_indices), len(folder.val_indices), len(folder._parts[1][0])) == (36, 12, 12)
    train_files = {folder._parts[0][0][index] for index in folder.train_indices}
    val_files = {folder._parts[0][0][index] for index in folder.val_indices}
    test_files = set(folder._parts[1][0])
    assert len(train_files | val_files | test_files) == 60
    again = ImageFolder("pictures", val_size=0.25, test_size=0.2, seed=7, **SETTINGS)
    again.setup()
    assert set(again._parts[1][0]) == test_files


def test_folders_for_train_val_and_test_are_taken_as_they_are() -> None:
    for part, size in (("train", 10), ("val", 4), ("test", 3)):
        make_pictures(Path("pictures", part), size)
    folder = ImageFolder("pictures", **SETTINGS)
    folder.setup()
    counts = [
        sum(len(labels) for _, labels in loader) for loader in (folder.train_dataloader(), folder.val_dataloader())
    ]
    assert counts == [20, 8]
    assert sum(len(labels) for _, labels in folder.test_dataloader()) == 6


@pytest.mark.parametrize("workers", [0, 2])
def test_cifar10_as_files_is_cifar10_in_memory(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same order: the same weights and figures, to the bit."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (60, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(60) // 6
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        for part in ("train", "test"):
            path = Path("cifar10", part, str(label.item()), f"{number:02}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    monkeypatch.setattr(CIFAR10, "load", lambda _: ((images, labels), (images, labels)))
    settings = ("model=lenet", "data.batch_size=8", "data.val_size=0", "data.augment=flip_crop", "logger=none")
    settings += ("trainer.accelerator=cpu", "threads=1", "trainer.max_epochs=2")
    normalised = ("data.mean=[0.4,0.5,0.6]", "data.std=[0.2,0.3,0.2]")
    files = ("data=image_folder", "data.root=cifar10", f"data.num_workers={workers}")
    ours = run("files", *settings, *files, *normalised)
    theirs = run("memory", *settings, "data=cifar10", *normalised)
    for name in ("train/loss", "train/acc", "test/loss", "test/acc"):
        assert ours["metrics"][name] == theirs["metrics"][name]
    ends = [torch.load(f"{name}/checkpoints/last.ckpt")["state_dict"] for name in ("files", "memory")]
    assert differences(*ends) == []


def test_a_file_that_is_no_picture_is_named_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    make_pictures(Path("pictures/train"), 5)
    make_pictures(Path("pictures/test"), 3)
    Path("pictures/test/red/broken.png").write_bytes(b"no picture")
    folder = ImageFolder("pictures", val_size=0.0, **SETTINGS)
    folder.setup()
    assert sum(len(labels) for _, labels in folder.test_dataloader()) == 6
    assert "skipped: pictures/test/red/broken.png is no picture (1 so far)" in caplog.text


def break_files(*names: str) -> None:
    for name in names:
        Path("pictures/train", name).write_bytes(b"no picture")


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_make_as_many_batches_as_each_other_whatever_is_broken(workers: int) -> None:
    make_pictures(Path("pictures/train"), 5)
    break_files("green/0.png", "green/1.png", "green/4.png")  # of green/0 to 4 and red/0 to 4
    files = sorted(Path("pictures/train").rglob("*.png"))
    dataset, device = PictureFiles(files, torch.arange(10), (3, 8, 8)), torch.device("cpu")
    shares = []
    for rank in (0, 1):
        loader = FolderLoader(dataset, torch.arange(10), 2, workers, device, rank=rank, world_size=2)
        shares.append([(tuple(pictures.shape), labels.tolist()) for pictures, labels in loader])
        assert {(pictures.dtype, labels.dtype) for pictures, labels in loader} == {(torch.uint8, torch.int64)}
        assert len(loader) == 3
    assert shares[0] == [((0, 3, 8, 8), []), ((1, 3, 8, 8), [5]), ((1, 3, 8, 8), [8])]
    assert shares[1] == [((2, 3, 8, 8), [2, 3]), ((2, 3, 8, 8), [6, 7]), ((1, 3, 8, 8), [9])]


def test_a_batch_without_a_picture_changes_no_figure() -> None:
    """Neither in the training nor at the beginning of the test; a resumed run is where it was."""
    make_pictures(Path("pictures/train"), 8)
    make_pictures(Path("pictures/test"), 4)
    break_files(*(f"{name}/{number}.png" for name in ("green", "red") for number in range(7)))
    for number in range(4):
        Path(f"pictures/test/green/{number}.png").write_bytes(b"no picture")
    settings = (*RUN, "data.num_workers=0", "data.val_size=0", "data.batch_size=2", "data.eval_batch_size=4")
    result = run("whole", *settings)  # two pictures in eight batches
    assert (result["status"], result["steps"]) == ("finished", 16)
    assert 0 < result["metrics"]["train/loss"] < 10
    assert result["metrics"]["test/acc/red"] == result["metrics"]["test/acc"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 13)
        run("parts", *settings)
    run("parts", "resume=parts")
    assert differences(end(Path("whole")), end(Path("parts"))) == []


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the workers as Linux lists them")
def test_a_worker_that_is_killed_is_one_line(tmp_path: Path) -> None:
    make_pictures(Path("pictures"))
    command = [sys.executable, "-u", str(PROJECT / "train.py"), *RUN, "trainer.max_epochs=100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not process.stdout.readline().startswith("epoch 2/"):
            assert process.poll() is None
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        workers = [pid for pid in children if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(int(workers[0]), signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    assert len(workers) == 4  # two for the training and two for the validation stay
    assert process.returncode == 1
    assert said.startswith("error: a process that reads images has died")
    assert len(said.splitlines()) == 1
    assert json.loads(Path("outputs/last/result.json").read_text())["status"] == "failed"
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_all_is_the_run_s_to_answer(number: signal.Signals, code: int, tmp_path: Path) -> None:
    """As Ctrl-C in a terminal, or the end of a service: those who read images hear nothing of it."""
    make_pictures(Path("pictures"))
    command = [sys.executable, "-u", str(PROJECT / "train.py"), *RUN, "trainer.max_epochs=100000", "data.num_workers=2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, start_new_session=True) as process:
        while not process.stdout.readline().startswith("epoch 2/"):
            assert process.poll() is None
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code
    first, second, third = said.splitlines()
    assert first == "stopping after this step; again to stop at once"
    assert second.startswith(f"error: interrupted by {number.name}; saved in ")
    assert third.startswith("go on with: python train.py resume=")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumes_exactly_from_the_middle_of_an_epoch(workers: int) -> None:
    make_pictures(Path("pictures"))
    run("whole", *RUN, f"data.num_workers={workers}")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 8)  # in the second epoch of six steps
        run("parts", *RUN, f"data.num_workers={workers}")
    run("parts", "resume=parts")
    assert differences(end(Path("whole")), end(Path("parts"))) == []


def test_it_learns_and_the_run_knows_its_classes_without_the_folders() -> None:
    make_pictures(Path("pictures"))
    settings = [setting for setting in RUN if "max_epochs" not in setting]
    result = run("run", *settings, "data.num_workers=0", "trainer.max_epochs=4")
    assert result["metrics"]["test/acc"] == 1
    answers = ask(Path("run"), split="test", limit=7)
    truths = [row["truth"] for row in answers]
    assert truths == [row["label"] for row in answers] == ["green"] * 6 + ["red"]
    Path("pictures").rename("elsewhere")
    _, datamodule, _ = load_run("run", "last")
    assert datamodule.class_names == ("green", "red")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"val_size": 1.0}, "is a share"),
        ({"test_size": -0.1}, "is a share"),
        ({"augment": "flop"}, "must be none, crop"),
    ],
)
def test_settings_that_cannot_be(settings: dict, message: str) -> None:
    make_pictures(Path("pictures"), 2)
    with pytest.raises(ValueError, match=message):
        ImageFolder("pictures", **SETTINGS | settings)


def test_a_root_without_folders_of_images() -> None:
    for root, words in (("nowhere", "there is no such folder"), (".", "holds no folders of images")):
        with pytest.raises(FileNotFoundError, match=words):
            ImageFolder(root, **SETTINGS)


def test_a_folder_without_images_is_no_class() -> None:
    make_pictures(Path("pictures"))
    for name in ("blue", ".cache"):
        Path("pictures", name).mkdir()
        Path("pictures", name, "notes.txt").touch()
    assert ImageFolder("pictures", **SETTINGS).class_names == ("green", "red")


def test_flip_and_crop_are_windows_of_the_padded_image_or_its_mirror() -> None:
    images = torch.randint(1, 256, (50, 2, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    changed = flip_crop(images, torch.Generator().manual_seed(1))
    assert torch.equal(changed, flip_crop(images, torch.Generator().manual_seed(1)))
    kinds = set()
    for image, result in zip(images, changed, strict=True):
        for mirrored in (False, True):
            padded = torch.nn.functional.pad(image.flip(2) if mirrored else image, [4] * 4)
            windows = [padded[:, y : y + 9, x : x + 7] for y in range(9) for x in range(9)]
            if any(torch.equal(result, window) for window in windows):
                kinds.add(mirrored)
                break
        else:
            pytest.fail("not a window of the image")
    assert kinds == {False, True}
    shifted_only = flip_crop(images, torch.Generator().manual_seed(1), flip=False)
    assert not torch.equal(shifted_only, changed)
