"""data=image_folder: splits, broken files, worker processes, and exact resume with and without workers."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import train
from cli.build import load_run, stored_config
from cli.compose import compose
from cli.errors import format_error
from datamodules import CIFAR10, ImageFolder
from datamodules.image_file_loader import ImageFileDataset, ImageFileLoader
from datamodules.images import flip_crop
from runs.checkpoint import load_checkpoint
from tests.conftest import PROJECT, Killed, kill_at
from tests.kill_and_resume import differences, final_state
from tests.test_scripts import evaluate_run, predict_rows


def make_images(root: Path, per_class: int = 30) -> None:
    """Write noisy red and green images of several sizes, ``per_class`` of each."""
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
    return train.train_config(compose(*overrides), Path(folder))


def split_files(folder: ImageFolder) -> dict[str, set[str]]:
    """Return the files of each split, relative to the root."""
    folder.setup()
    files = {"train": [folder._parts[0][0][index] for index in folder.train_indices]}
    files |= {"val": [folder._parts[0][0][index] for index in folder.val_indices], "test": folder._parts[1][0]}
    return {split: {str(file.relative_to(folder.root)) for file in found} for split, found in files.items()}


def test_one_directory_is_split_into_disjoint_splits() -> None:
    make_images(Path("pictures"), 200)
    split = split_files(ImageFolder("pictures", val_size=0.25, test_size=0.2, **SETTINGS))
    assert [len(split[name]) for name in ("train", "val", "test")] == pytest.approx([240, 80, 80], abs=25)
    assert sum(map(len, split.values())) == len(set.union(*split.values())) == 400
    assert split_files(ImageFolder("pictures", val_size=0.25, test_size=0.2, seed=7, **SETTINGS)) == split
    assert split_files(ImageFolder("pictures", val_size=0.5, test_size=0.2, **SETTINGS))["test"] == split["test"]


@pytest.mark.parametrize("name", ["../private", "..", ".", "", "/etc", "a/b", 3, None])
@pytest.mark.parametrize("part", ["class", "split"])
def test_stored_names_are_names_in_the_root(part: str, name: object) -> None:
    """A run may come from anyone: it reads no directory beside the one that is typed."""
    make_images(Path("pictures"))
    names = ["red", name] if part == "class" else ["red", "green"]
    state = {"class_names": names, "folders": {"train": name} if part == "split" else {}, "digests": {}}
    with pytest.raises(ValueError, match="in the data of the run is not the name of a directory"):
        ImageFolder("pictures", **SETTINGS, fitted_state=state)


def test_files_stay_in_their_split_when_others_are_added_or_removed() -> None:
    make_images(Path("pictures"), 100)
    before = split_files(ImageFolder("pictures", **SETTINGS))
    Path("pictures/green/5.png").unlink()
    Path("pictures/green/0.png").rename("pictures/green/a.png")
    for number in range(20):
        (Path("pictures/green") / f"new_{number}.png").write_bytes(Path("pictures/red/1.png").read_bytes())
    Path("pictures/amber").mkdir()  # a new class, before the others in the order of the classes
    Path("pictures/red/3.png").rename("pictures/amber/3.png")
    after = split_files(ImageFolder("pictures", **SETTINGS))
    gone = {"green/5.png", "green/0.png", "red/3.png"}
    for split, files in before.items():
        assert files - gone <= after[split]
    split_before, split_after = (next(name for name in split if file in split[name]) for split, file in
                ((before, "red/3.png"), (after, "amber/3.png")))  # fmt: skip
    assert split_before == split_after


def test_each_file_is_validated_in_exactly_one_fold() -> None:
    make_images(Path("pictures"), 50)
    splits = [split_files(ImageFolder("pictures", folds=3, fold=fold, **SETTINGS)) for fold in range(3)]
    not_test = splits[0]["train"] | splits[0]["val"]
    assert sorted(file for split in splits for file in split["val"]) == sorted(not_test)
    for split in splits:
        assert split["train"] == not_test - split["val"]
        assert len(split["val"]) == pytest.approx(len(not_test) / 3, abs=12)


def test_each_split_of_a_small_directory_has_a_file() -> None:
    """Even if the hash of no file falls into the held-out fraction."""
    for size in range(3, 12):
        make_images(Path(f"pictures{size}"), size)
        split = split_files(ImageFolder(f"pictures{size}", val_size=0.2, test_size=0.2, **SETTINGS))
        assert all(split.values()), size


def test_old_run_keeps_its_split_by_permutation() -> None:
    make_images(Path("pictures"), 5)
    old = ImageFolder(
        "pictures", val_size=0.25, test_size=0.2, fitted_state={"class_names": ["green", "red"]}, **SETTINGS
    )
    assert split_files(old)["test"] == {"green/2.png", "red/0.png"}
    assert split_files(old)["val"] == {"green/3.png", "green/4.png"}
    # A resumed run keeps this kind of split.
    assert old.fitted_config()["fitted_state"] == {"class_names": ["green", "red"]}


NOISY_RUN = (*RUN, "data.num_workers=0", "data.test_size=0.3", "data.val_size=0.2", "data.augment=none")


def make_datamodule() -> ImageFolder:
    return ImageFolder("pictures", val_size=0.2, test_size=0.3, **SETTINGS)


def rename_into(split: str, file: Path) -> Path:
    """Rename a file until its name puts it into ``split``."""
    for number in range(1000):
        file = file.rename(file.with_name(f"renamed_{number}.png"))
        if str(file.relative_to("pictures")) in split_files(make_datamodule())[split]:
            return file
    raise AssertionError


def change_test_images(kind: str) -> None:
    test, train = (Path("pictures", min(split_files(make_datamodule())[split])) for split in ("test", "train"))
    if kind == "removed":
        test.unlink()
    elif kind == "overwritten":
        Image.new("RGB", (5, 5)).save(test)
    else:
        rename_into("test", train)


@pytest.mark.parametrize("kind", ["renamed", "overwritten", "removed"])
def test_changed_test_images_are_read_where_their_directory_is_typed(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Else a checkpoint, which may come from anyone, would choose the directory whose images a picture shows."""
    make_images(Path("pictures"))
    run("run", *NOISY_RUN, "trainer.max_epochs=1")
    line = f"the test images in {Path('pictures').resolve()} are not those of the run: some were added, removed, "
    line += "renamed or overwritten since"
    evaluate_run("run")
    predict_rows(Path("run"), split="test", limit=5)
    assert line not in caplog.text
    change_test_images(kind)
    for command in (evaluate_run, lambda run, **typed: predict_rows(run, split="test", limit=5, **typed)):
        with pytest.raises(ValueError, match=r"are not known to be those of the run: .*; data\.root=.*/pictures reads"):
            command(Path("run"))
        caplog.clear()
        command(Path("run"), data={"root": str(Path("pictures").resolve()), "path": None, "test_path": None})
        assert [record.getMessage() for record in caplog.records].count(line) == 1


@pytest.mark.parametrize("stored", [{}, {"train": "0"}])
def test_images_without_a_stored_digest_are_not_those_of_the_run(stored: dict[str, str]) -> None:
    """A checkpoint from anyone may lack the digests of a directory that it names."""
    make_images(Path("pictures"))
    run("run", *NOISY_RUN, "trainer.max_epochs=1")
    for file in Path("run/checkpoints").glob("*.ckpt"):
        checkpoint = torch.load(file, weights_only=True)
        checkpoint["config"]["data"]["fitted_state"]["digests"] = stored
        torch.save(checkpoint, file)
    for command in (evaluate_run, lambda run: predict_rows(run, split="test", limit=5)):
        with pytest.raises(ValueError, match=r"the test images in .*pictures are not known to be those of the run"):
            command(Path("run"))
    with pytest.raises(ValueError, match=r"^resume: images in .*pictures \(train, val\) were added"):
        run("run", "resume=run", "trainer.max_epochs=2")


def test_resume_refuses_changed_training_images() -> None:
    make_images(Path("pictures"))
    run("run", *NOISY_RUN, "trainer.max_epochs=1")
    test = Path("pictures", min(split_files(make_datamodule())["test"]))
    renamed = rename_into("train", test)
    with pytest.raises(ValueError, match=r"^resume: images in .*pictures \(train\) were added, removed, renamed or"):
        run("run", "resume=run", "trainer.max_epochs=2")
    renamed.rename(test)
    change_test_images("overwritten")
    with pytest.raises(ValueError, match=r"the test images in .*pictures are not known to be those of the run"):
        run("run", "resume=run", "trainer.max_epochs=2")
    assert run("run", "resume=run", "data.root=pictures", "trainer.max_epochs=2")["status"] == "finished"


@pytest.mark.skipif(os.name == "nt", reason="a backslash separates directories")
def test_class_name_with_a_backslash_resumes() -> None:
    make_images(Path("pictures"))
    first = sorted(Path("pictures").iterdir())[0]
    first.rename(first.with_name("\\frac"))
    run("run", *NOISY_RUN, "trainer.max_epochs=1")
    assert run("run", "resume=run", "trainer.max_epochs=2")["epochs"] == 2


def test_directories_train_val_and_test_are_the_splits() -> None:
    for part, size in (("train", 10), ("val", 4), ("test", 3)):
        make_images(Path("pictures", part), size)
    folder = ImageFolder("pictures", **SETTINGS)
    folder.setup()
    counts = [
        sum(len(labels) for _, labels in loader) for loader in (folder.train_dataloader(), folder.val_dataloader())
    ]
    assert counts == [20, 8]
    assert sum(len(labels) for _, labels in folder.test_dataloader()) == 6


def test_first_images_held_out_for_the_test_are_of_several_classes() -> None:
    make_images(Path("pictures"))
    folder = ImageFolder("pictures", **SETTINGS)
    folder.setup()
    files, labels = folder._parts[1]
    assert set(labels[:6].tolist()) == {0, 1}
    assert [folder.class_names[label] for label in labels] == [file.parent.name for file in files]


# --- which directories are what ----------------------------------------------------------------------------------


def move(**names: str) -> None:
    """Rename directories in ``pictures``."""
    for before, after in names.items():
        Path("pictures", before).rename(Path("pictures", after))


def refusal() -> str:
    with pytest.raises((OSError, ValueError)) as error:
        ImageFolder("pictures", **SETTINGS)
    return str(error.value)


@pytest.mark.parametrize(
    "names", [("Train", "Test", "Val"), ("training", "testing", "validation"), ("TRAIN", "test", "valid")]
)
def test_other_usual_names_of_the_splits(names: tuple[str, str, str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for name, size in zip(names, (4, 2, 3), strict=True):
        make_images(Path("pictures", name), size)
    folder = ImageFolder("pictures", **SETTINGS)
    train_name, test_name, val_name = names
    files = split_files(folder)
    for split, name, size in (("train", train_name, 8), ("test", test_name, 4), ("val", val_name, 6)):
        assert {Path(file).parts[0] for file in files[split]} == {name}
        assert len(files[split]) == size
    places = f"train 8 from pictures/{train_name}, val 6 from pictures/{val_name}, test 4 from pictures/{test_name}"
    assert [record.getMessage() for record in caplog.records] == [f"images: {places}; 2 classes: green, red"]
    state = folder.fitted_config()["fitted_state"]
    assert split_files(ImageFolder("pictures", fitted_state=state, **SETTINGS)) == files
    assert len(caplog.records) == 1  # a finished run says it no more


def test_classes_may_be_named_like_splits() -> None:
    make_images(Path("pictures"))
    move(red="valid", green="invalid")
    assert ImageFolder("pictures", **SETTINGS).class_names == ("invalid", "valid")
    make_images(Path("pictures"))
    move(red="train")  # steam trains
    assert ImageFolder("pictures", **SETTINGS).class_names == ("green", "invalid", "train", "valid")


@pytest.mark.parametrize(
    ("folders", "line"),
    [
        (("train", "Training"), "data.root=pictures: Training and train are both names of the train split"),
        (("train", "val", "valid"), "data.root=pictures: val and valid are both names of the val split"),
        ((".", "test"), "data.root=pictures: test looks like the test split, with a directory for each class, and"),
        (("Test", "val"), "data.root=pictures: val looks like the val split, with a directory for each class, and"),
    ],
)
def test_ambiguous_directories_are_refused(folders: tuple[str, ...], line: str) -> None:
    for folder in folders:
        make_images(Path("pictures", folder), 2)
    assert refusal().startswith(line)


def test_splits_without_classes_are_refused() -> None:
    make_images(Path("pictures"), 2)
    move(red="train", green="test")
    assert refusal() == (
        "data.root=pictures: test, train look like splits, and hold images without a directory for each class"
    )


def test_hidden_copies_and_those_of_systems_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    make_images(Path("pictures"), 6)
    expected = split_files(ImageFolder("pictures", **SETTINGS))
    caplog.clear()
    for copy in (".ipynb_checkpoints", "__MACOSX", "red/.ipynb_checkpoints", "green/__MACOSX", "green/@eaDir"):
        Path("pictures", copy).mkdir()
        shutil.copy("pictures/red/0.png", Path("pictures", copy, "0-checkpoint.png"))
    shutil.copy("pictures/red/0.png", "pictures/red/._0.png")
    Path("pictures/.DS_Store").touch()
    folder = ImageFolder("pictures", **SETTINGS)
    assert split_files(folder) == expected
    assert folder.class_names == ("green", "red")
    assert caplog.messages[0].endswith("classes: green, red; left out: .ipynb_checkpoints, __MACOSX, 4 hidden files")


def test_directories_beside_the_splits_are_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for folder in ("train", "test", "extra"):
        make_images(Path("pictures", folder), 3)
    Path("pictures/train/red/photo.heic").touch()
    ImageFolder("pictures", **SETTINGS).setup()
    assert caplog.messages[0].endswith("classes: green, red; left out: extra, 1 .heic file")


def test_jpeg_files_with_other_endings_are_read() -> None:
    make_images(Path("pictures"))
    for file in Path("pictures/red").iterdir():
        Image.open(file).save(file.with_suffix(".JFIF"), "jpeg")
        file.unlink()
    folder = ImageFolder("pictures", **SETTINGS)
    assert {file.rpartition(".")[2] for files in split_files(folder).values() for file in files} == {"JFIF", "png"}


def test_class_of_unreadable_formats_is_refused() -> None:
    make_images(Path("pictures"), 3)
    make_images(Path("more"), 3)
    Path("more/red").rename("pictures/blue")
    for file in Path("pictures/red").iterdir():
        file.rename(file.with_suffix(".avif"))
    assert refusal() == "pictures/red holds no images that can be read, only .avif; convert them to .png or .jpg"


@pytest.mark.parametrize("split", ["test", "valid"])
def test_class_without_training_images_is_refused(split: str) -> None:
    make_images(Path("pictures/train"), 3)
    make_images(Path("pictures", split), 3)
    move(**{f"{split}/red": f"{split}/Red"})
    assert refusal() == f"pictures/{split} has classes that pictures/train has no images of: Red"


def test_linked_directories_are_followed_once() -> None:
    make_images(Path("pictures"), 4)
    Path("elsewhere/deep").mkdir(parents=True)
    for number in range(4, 7):
        shutil.copy("pictures/red/0.png", f"elsewhere/deep/{number}.png")
    Path("pictures/red/more").symlink_to(Path("elsewhere").resolve())
    Path("pictures/red/again").symlink_to(Path("elsewhere/deep").resolve())
    Path("elsewhere/above").symlink_to(Path("pictures/red").resolve())
    Path("pictures/blue").symlink_to(Path("pictures/green").resolve())
    folder = ImageFolder("pictures", **SETTINGS)
    files = set.union(*split_files(folder).values())
    assert folder.class_names == ("blue", "green", "red")
    assert sorted(Path(file).name for file in files if file.startswith("red")) == [f"{n}.png" for n in range(7)]


# --- reading them ------------------------------------------------------------------------------------------------


def test_run_is_evaluated_from_another_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a root that was typed relative to the first one."""
    make_images(Path("pictures"), 10)
    tested = run("run", *NOISY_RUN, "trainer.max_epochs=1")["metrics"]["test/loss"]
    assert yaml.safe_load(Path("run/config.yaml").read_text())["data"]["root"] == str(Path("pictures").resolve())
    folder = Path("run").resolve()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert evaluate_run(folder)["metrics"]["test/loss"] == tested


def test_directory_of_images_that_is_the_data_root_is_only_read(monkeypatch: pytest.MonkeyPatch) -> None:
    make_images(Path("pictures"), 10)
    monkeypatch.setenv("DATA_ROOT", str(Path("pictures").resolve()))
    run("run", *NOISY_RUN, "trainer.max_epochs=1")
    assert stored_config(load_checkpoint(Path("run/checkpoints/last.ckpt"))).data.only_read is True


def test_published_data_set_keeps_the_directory_that_was_typed() -> None:
    cifar10 = CIFAR10("here", [0.5] * 3, [0.5] * 3)
    assert cifar10.fitted_config() == {"root": str(Path("here").resolve())}
    with pytest.raises(ValueError, match="cannot be used as a name: a config would evaluate it"):
        CIFAR10("${oc.env:HOME}", [0.5] * 3, [0.5] * 3).fitted_config()


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_split_of_broken_files_only_is_refused(split: str) -> None:
    for name in ("train", "val", "test"):
        make_images(Path("pictures", name), 3)
    for file in Path("pictures", split).rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(ValueError) as error:
        run("refused", *RUN)
    assert str(error.value) == (
        f"none of the 6 {split} images can be read: pictures/{split}/green/0.png is not an image"
    )
    assert not any(Path("refused").iterdir())


def test_evaluation_of_broken_files_only_is_refused() -> None:
    make_images(Path("pictures/train"), 10)
    make_images(Path("pictures/test"), 2)
    run("run", *NOISY_RUN, "trainer.max_epochs=1")
    for file in Path("pictures/test").rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"^none of the 4 test images can be read: .*0\.png is not an image$"):
        evaluate_run("run")
    assert evaluate_run("run", split="val")["metrics"]


def test_reason_why_an_image_is_skipped_is_named(caplog: pytest.LogCaptureFixture) -> None:
    make_images(Path("pictures/train"), 3)
    make_images(Path("pictures/test"), 3)
    Image.fromarray(torch.full((5, 5), 100.0).numpy()).save("pictures/test/red/heat.tif")
    folder = ImageFolder("pictures", **SETTINGS)
    folder.setup()
    assert sum(len(labels) for _, labels in folder.test_dataloader()) == 6
    assert "skipped: pictures/test/red/heat.tif is not an image: its numbers go from 100 to 100, and" in caplog.text


@pytest.mark.parametrize("workers", [0, 2])
def test_cifar10_from_files_trains_identically_to_memory(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is the same, so weights and metrics are identical to the bit."""
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
    normalized = ("data.mean=[0.4,0.5,0.6]", "data.std=[0.2,0.3,0.2]")
    files = ("data=image_folder", "data.root=cifar10", f"data.num_workers={workers}")
    ours = run("files", *settings, *files, *normalized)
    theirs = run("memory", *settings, "data=cifar10", *normalized)
    for name in ("train/loss", "train/acc", "test/loss", "test/acc"):
        assert ours["metrics"][name] == theirs["metrics"][name]
    ends = [torch.load(f"{name}/checkpoints/last.ckpt")["state_dict"] for name in ("files", "memory")]
    assert differences(*ends) == []


def test_broken_image_is_skipped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    make_images(Path("pictures/train"), 5)
    make_images(Path("pictures/test"), 3)
    Path("pictures/test/red/broken.png").write_bytes(b"no image")
    folder = ImageFolder("pictures", val_size=0.0, **SETTINGS)
    folder.setup()
    assert sum(len(labels) for _, labels in folder.test_dataloader()) == 6
    assert "skipped: pictures/test/red/broken.png is not an image (1 so far)" in caplog.text


def break_files(*names: str) -> None:
    for name in names:
        Path("pictures/train", name).write_bytes(b"no image")


@pytest.mark.parametrize("workers", [0, 2])
def test_all_ranks_get_the_same_number_of_batches_despite_broken_files(workers: int) -> None:
    make_images(Path("pictures/train"), 5)
    break_files("green/0.png", "green/1.png", "green/4.png")  # of ten files, five of each class
    files = sorted(Path("pictures/train").rglob("*.png"))
    dataset, device = ImageFileDataset(files, torch.arange(10), (3, 8, 8)), torch.device("cpu")
    shares = []
    for rank in (0, 1):
        loader = ImageFileLoader(dataset, torch.arange(10), 2, workers, device, rank=rank, world_size=2)
        shares.append([(tuple(pictures.shape), labels.tolist()) for pictures, labels in loader])
        assert {(pictures.dtype, labels.dtype) for pictures, labels in loader} == {(torch.uint8, torch.int64)}
        assert len(loader) == 3
    assert shares[0] == [((0, 3, 8, 8), []), ((1, 3, 8, 8), [5]), ((1, 3, 8, 8), [8])]
    assert shares[1] == [((2, 3, 8, 8), [2, 3]), ((2, 3, 8, 8), [6, 7]), ((1, 3, 8, 8), [9])]


def test_batches_without_images_do_not_affect_metrics_or_resume() -> None:
    """This holds for training and for the start of the test. Resume stays exact."""
    make_images(Path("pictures/train"), 8)
    make_images(Path("pictures/test"), 4)
    break_files(*(f"{name}/{number}.png" for name in ("green", "red") for number in range(7)))
    for number in range(4):
        Path(f"pictures/test/green/{number}.png").write_bytes(b"no image")
    settings = (*RUN, "data.num_workers=0", "data.val_size=0", "data.batch_size=2", "data.eval_batch_size=4")
    result = run("whole", *settings)  # two images in eight batches
    assert (result["status"], result["steps"]) == ("finished", 16)
    assert 0 < result["metrics"]["train/loss"] < 10
    assert result["metrics"]["test/acc/red"] == result["metrics"]["test/acc"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 13)
        run("parts", *settings)
    run("parts", "resume=parts")
    assert differences(final_state(Path("whole")), final_state(Path("parts"))) == []


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's list of child processes")
def test_killed_worker_ends_the_run_with_one_line(tmp_path: Path) -> None:
    make_images(Path("pictures"))
    command = [sys.executable, "-u", str(PROJECT / "train.py"), *RUN, "trainer.max_epochs=100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not process.stdout.readline().startswith("epoch 2/"):
            assert process.poll() is None
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        workers = [pid for pid in children if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(int(workers[0]), signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert len(workers) == 4  # two persistent workers for training and two for validation
    assert process.returncode == 1
    assert errors.startswith("error: a worker process has died")
    assert len(errors.splitlines()) == 1
    assert json.loads(Path("outputs/last/result.json").read_text())["status"] == "failed"
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_to_the_process_group_is_handled_by_the_main_process(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    """As by Ctrl-C in a terminal, or when a service is stopped. The worker processes ignore the signal."""
    make_images(Path("pictures"))
    command = [sys.executable, "-u", str(PROJECT / "train.py"), *RUN, "trainer.max_epochs=100000", "data.num_workers=2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, start_new_session=True) as process:
        while not process.stdout.readline().startswith("epoch 2/"):
            assert process.poll() is None
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    first, second, third = errors.splitlines()
    assert first == "stopping after this step; a second signal stops at once"
    assert second.startswith(f"error: interrupted by {number.name}; saved in ")
    assert third.startswith("resume with: python train.py resume=")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux's pidfd_open")
def test_workers_exit_when_the_main_process_is_killed() -> None:
    """Even if they are reading a file."""
    script = """
import os, sys, time
import torch
from datamodules import image_file_loader
def read(*_):
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(1000)
image_file_loader.load_image = read
files = [image_file_loader.Path(str(k)) for k in range(4)]
dataset = image_file_loader.ImageFileDataset(files, torch.arange(4), (3, 8, 8))
next(iter(image_file_loader.ImageFileLoader(dataset, torch.arange(4), 2, 2, torch.device("cpu"))))
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        readers = [int(process.stdout.readline()) for _ in range(2)]
        alive = [os.pidfd_open(pid) for pid in readers]
        process.kill()
        process.wait()
    for pid, running in zip(readers, alive, strict=True):
        ended = bool(select.select([running], [], [], 200)[0])
        os.close(running)
        if not ended:
            os.kill(pid, signal.SIGKILL)
        assert ended


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_fifo_among_the_images_is_skipped(workers: int) -> None:
    make_images(Path("pictures/train"), 5)
    make_images(Path("pictures/test"), 3)
    os.mkfifo("pictures/test/red/fifo.png")
    script = "import sys; from datamodules import ImageFolder\n"
    script += (
        "folder = ImageFolder(sys.argv[1], [3, 8, 8], mean=[0.5] * 3, std=[0.5] * 3, num_workers=int(sys.argv[2]))\n"
    )
    script += "folder.setup(); print(sum(len(labels) for _, labels in folder.test_dataloader()))"
    command = [sys.executable, "-c", script, str(Path("pictures").resolve()), str(workers)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            printed, _ = process.communicate(timeout=200)
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail("the loader waits for the FIFO")
    assert printed == b"6\n"


def test_batches_do_not_use_shared_memory() -> None:
    """A container has only 64 MB of it."""
    make_images(Path("pictures"))
    folder = ImageFolder("pictures", **SETTINGS | {"num_workers": 2, "augment": "none"})
    folder.setup()
    loader = folder.train_dataloader()
    batches = list(loader._fetch([torch.arange(4), torch.arange(4, 8)]))
    assert [len(labels) for _, _, labels in batches] == [4, 4]
    assert not any(tensor.is_shared() for batch in batches for tensor in batch)


SMALL_SHM = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"', "sh"]


def can_shrink_shm() -> bool:
    return bool(shutil.which("unshare")) and subprocess.run([*SMALL_SHM, "true"], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not can_shrink_shm(), reason="needs the permission to mount")
def test_batch_larger_than_shared_memory_trains() -> None:
    make_images(Path("pictures"))
    overrides = [
        *RUN,
        "data.image=[3,128,128]",
        "data.batch_size=30",
        "data.num_workers=2",
        "trainer.max_epochs=1",
        "model=mlp",
    ]
    command = [*SMALL_SHM, sys.executable, str(PROJECT / "train.py"), *overrides]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, errors = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail("the training hangs")
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("${oc.env:SECRET}", "a config would evaluate it"),
        ("${new_folder:made}", "a config would evaluate it"),
        ("a ${b", "a config would evaluate it"),
        ("???", "a config would evaluate it"),
        ("two\nlines", "it has control characters"),
        ("\x1b[31mred", "it has control characters"),
        (os.fsdecode(b"caf\xe9"), "is not UTF-8"),
    ],
)
def test_class_name_that_could_be_evaluated_is_refused(name: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "swordfish")
    make_images(Path("pictures"))
    Path("pictures/red").rename(Path("pictures") / name)
    with pytest.raises(Exception) as error:
        run("refused", *RUN)
    line = format_error(error.value)
    assert f"pictures: {name!r} cannot be used as a name: " in line.replace("\\\\", "\\") and reason in line
    assert not any(Path("refused").iterdir()) and not Path("made").exists()
    line.encode()


def test_class_names_that_look_like_yaml_stay_strings() -> None:
    make_images(Path("pictures"))
    for before, after in (("red", "null"), ("green", "{a: [1], $b}")):
        Path("pictures", before).rename(Path("pictures", after))
    run("run", *RUN, "trainer.max_epochs=1", "data.num_workers=0")
    assert {row["truth"] for row in predict_rows(Path("run"), split="test", limit=20)} == {"null", "{a: [1], $b}"}
    assert yaml.safe_load(Path("run/config.yaml").read_text())["data"]["fitted_state"]["class_names"] == [
        "null",
        "{a: [1], $b}",
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_in_mid_epoch_is_exact(workers: int) -> None:
    make_images(Path("pictures"))
    run("whole", *RUN, f"data.num_workers={workers}")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 8)  # in the second epoch of six steps
        run("parts", *RUN, f"data.num_workers={workers}")
    run("parts", "resume=parts")
    assert differences(final_state(Path("whole")), final_state(Path("parts"))) == []


def test_run_learns_and_keeps_its_class_names_without_the_images() -> None:
    make_images(Path("pictures"))
    settings = [setting for setting in RUN if "max_epochs" not in setting]
    result = run("run", *settings, "data.num_workers=0", "trainer.max_epochs=4")
    assert result["metrics"]["test/acc"] == 1
    folder = ImageFolder("pictures", **SETTINGS)
    folder.setup()
    expected = [folder.class_names[label] for label in folder._parts[1][1][:6]]
    predictions = predict_rows(Path("run"), split="test", limit=6)
    assert [row["truth"] for row in predictions] == [row["label"] for row in predictions] == expected
    assert set(expected) == {"green", "red"}
    Path("pictures").rename("elsewhere")
    _, datamodule, _ = load_run("run", "last")
    assert datamodule.class_names == ("green", "red")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"val_size": 1.0}, "must be a fraction"),
        ({"test_size": -0.1}, "must be a fraction"),
        ({"augment": "flop"}, "must be none, crop"),
    ],
)
def test_invalid_settings_are_refused(settings: dict, message: str) -> None:
    make_images(Path("pictures"), 2)
    with pytest.raises(ValueError, match=message):
        ImageFolder("pictures", **SETTINGS | settings)


def test_root_without_class_directories_is_refused() -> None:
    for root, words in (("nowhere", "there is no such directory"), (".", "holds no directories of images")):
        with pytest.raises(FileNotFoundError, match=words):
            ImageFolder(root, **SETTINGS)


def test_directory_without_images_is_not_a_class() -> None:
    make_images(Path("pictures"))
    for name in ("blue", ".cache"):
        Path("pictures", name).mkdir()
        Path("pictures", name, "notes.txt").touch()
    assert ImageFolder("pictures", **SETTINGS).class_names == ("green", "red")


def test_flip_crop_gives_windows_of_the_padded_or_mirrored_image() -> None:
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
