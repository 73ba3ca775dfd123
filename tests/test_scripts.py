"""evaluate.py, predict.py and export.py on finished runs."""

import csv
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import safetensors
import safetensors.torch
import torch
from omegaconf import OmegaConf
from torch import nn

import datamodules
import evaluate
import export
import predict
import train
from benchmarks import memory
from cli.build import load_run
from cli.compose import compose
from lit_models import nets
from runs.checkpoint import find_checkpoint
from tests.conftest import PROJECT, read_predictions

BLOBS = ("model=blobs_mlp", "data=blobs", "model.steps_per_batch=100", "trainer.max_epochs=5")


def load_band_images(self: datamodules.MNIST) -> Any:
    """Images of class k have a bright column band k. Higher classes are more frequent; one label in eight is random."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(torch.arange(1.0, 11), 700, replacement=True, generator=generator)
    images = torch.randint(60, (700, 1, 28, 28), dtype=torch.uint8, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, :, 2 + 2 * label : 6 + 2 * label] += 150
    labels[::8] = torch.randint(10, labels[::8].shape, generator=generator)
    return (images[:500], labels[:500]), (images[500:], labels[500:])


def train_run(folder: Path, *overrides: str) -> Path:
    folder.mkdir()
    train.train_config(compose(*overrides, "trainer.accelerator=cpu", "logger=none", "threads=1"), folder)
    return folder


@pytest.mark.slow
def test_peak_memory_is_measured(
    random_images: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    random_images(5100, 20)
    monkeypatch.setattr(memory, "COUNTS", (3, 5))
    monkeypatch.setattr(sys, "argv", ["memory.py"])
    memory.main()
    lines = capfd.readouterr().out.splitlines()
    assert [re.sub(r"[\d.]+ (s|MB)", r"… \1", line) for line in lines[-2:]] == [
        f"{count} files: … s, … MB at most" for count in (3, 5)
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on images (``image_run``), on points (``blobs``) and a regression (``line``)."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datamodules.MNIST, "load", load_band_images)
        patch.chdir(folder)
        train_run(
            folder / "image_run", "data.val_size=100", "data.batch_size=20", "scheduler=none", "optimizer.lr=0.01"
        )
        train_run(folder / "blobs", *BLOBS)
        train_run(
            folder / "line", "model=line", "data=readings", "optimizer=sgd", "optimizer.lr=1e-3", "scheduler=none"
        )
    return folder


@pytest.fixture
def image_run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the run on images for one test."""
    monkeypatch.setattr(datamodules.MNIST, "load", load_band_images)
    return Path(shutil.copytree(trained / "image_run", tmp_path / "image_run"))


def evaluate_run(run: str | Path, folder: Path | None = None, **settings: Any) -> dict[str, Any]:
    given = {"run": str(run), "checkpoint": "last", "split": "test", "trainer": {"accelerator": "cpu", "devices": 1}}
    return evaluate.evaluate_config(OmegaConf.create({**given, **settings}), folder or find_checkpoint(str(run))[0])


def predict_rows(run: Path, **settings: Any) -> list[dict[str, Any]]:
    """Run predict.py and return the rows of its ``answers/predictions.csv``."""
    if "output" not in settings:
        shutil.rmtree("answers", ignore_errors=True)
    given = {"run": str(run), "checkpoint": "last", "images": None, "csv": None, "split": None, "samples": None}
    cfg = OmegaConf.create({**given, "limit": 6, "output": str(Path("answers").resolve()), **settings})
    return read_predictions(predict.predict_config(cfg, run))


def export_run(run: Path, output: str, checkpoint: str = "last") -> Path:
    return export.export(OmegaConf.create({"run": str(run), "checkpoint": checkpoint, "output": output}), run)


def read_rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def trained_net(run: Path, net: nn.Module) -> nn.Module:
    """Load the weights of ``last.ckpt`` into ``net`` without the code of the commands."""
    weights = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    net.load_state_dict({name.removeprefix("net."): weight for name, weight in weights.items()})
    return net.eval()


def logits_of(run: Path, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return trained_net(run, nets.CNN((1, 28, 28), 10))((images / 255 - 0.1307) / 0.3081)


@pytest.mark.parametrize(
    "content", ['{"mine": 1}', '{"checkpoint": 1, "split": 1, "metrics": 1, "mine": 1}', "[1]", "mine", ""]
)
def test_evaluation_beside_a_checkpoint_does_not_overwrite_other_files(content: str, trained: Path) -> None:
    shutil.copy(trained / "blobs/checkpoints/last.ckpt", "model.ckpt")
    Path("evaluations").mkdir()
    (file := Path("evaluations/test_model.json")).write_text(content)
    with pytest.raises(ValueError, match=r"test_model.json would be overwritten, and is not an evaluation"):
        evaluate_run("model.ckpt")
    assert file.read_text() == content
    file.unlink()
    assert evaluate_run("model.ckpt") == evaluate_run("model.ckpt") == json.loads(file.read_text())


@pytest.mark.parametrize("there", ["predictions.csv", "predictions.png"])
def test_predictions_do_not_overwrite_other_files(there: str, image_run: Path) -> None:
    file = Path("answers", there)
    file.parent.mkdir()
    file.write_text("input,prediction\nmine,2\n")
    with pytest.raises(ValueError, match=f"would overwrite .*{there}: move it, or choose another directory"):
        predict_rows(image_run, split="test", output=str(file.parent.resolve()))
    assert file.read_text() == "input,prediction\nmine,2\n"
    file.unlink()
    predict_rows(image_run, split="test", output=str(file.parent.resolve()))


def test_predictions_in_the_run_directory_are_replaced(trained: Path) -> None:
    shutil.copytree(trained / "blobs", "run")
    settings = {"split": "test", "output": "predictions"}
    assert len(predict_rows(Path("run"), **settings, limit=2)) == 2
    assert len(predict_rows(Path("run"), **settings, limit=3)) == 3
    Path("run/config.yaml").unlink()  # a checkpoint alone, in a folder that is no run's
    with pytest.raises(ValueError, match=r"would overwrite .*predictions.csv"):
        predict_rows(Path("run"), **settings)


# --- evaluate ----------------------------------------------------------------------------------------------------


def test_evaluate_test_gives_the_metrics_of_the_run(image_run: Path) -> None:
    result = json.loads((image_run / "result.json").read_text())["metrics"]
    test = {name: value for name, value in result.items() if name.startswith("test/")}
    assert len(test) == 12
    assert 0.5 < test["test/acc"] < 1  # neither a guess nor perfect
    assert evaluate_run(image_run)["metrics"] == test


def test_evaluate_val_gives_the_metrics_of_the_epoch(image_run: Path) -> None:
    table = read_rows(image_run / "metrics.csv")
    best = torch.load(image_run / "checkpoints/best.ckpt", weights_only=True)["epoch"]
    assert best < len(table) - 1
    for checkpoint, row in (("best", table[best]), ("last", table[-1])):
        metrics = evaluate_run(image_run, split="val", checkpoint=checkpoint)["metrics"]
        for name in ("val/loss", "val/acc"):
            assert metrics[name] == float(row[name])
    assert table[best]["val/loss"] != table[-1]["val/loss"]


def test_evaluate_train_gives_the_metrics_of_the_final_weights(image_run: Path) -> None:
    (images, labels), _ = load_band_images(None)
    datamodule = load_run(str(image_run), "last")[1]
    datamodule.setup()
    logits, labels = logits_of(image_run, images[datamodule.train_indices]), labels[datamodule.train_indices]
    metrics = evaluate_run(image_run, split="train")["metrics"]
    assert len(labels) == 400
    assert metrics["train/acc"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert metrics["train/loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)


def test_per_class_accuracies_average_to_the_accuracy(image_run: Path) -> None:
    _, (images, labels) = load_band_images(None)
    metrics, right = evaluate_run(image_run)["metrics"], logits_of(image_run, images).argmax(1) == labels
    for label in range(10):
        assert metrics[f"test/acc/{label}"] == pytest.approx(right[labels == label].double().mean().item())
    counts = labels.bincount().tolist()
    assert min(counts) < max(counts) / 2
    whole = sum(count * metrics[f"test/acc/{label}"] for label, count in enumerate(counts)) / len(labels)
    assert metrics["test/acc"] == pytest.approx(whole)


def test_evaluate_adds_one_file_and_changes_no_other(image_run: Path) -> None:
    def hashes() -> dict[str, str]:
        files = sorted(path for path in image_run.rglob("*") if path.is_file())
        return {str(path.relative_to(image_run)): hashlib.md5(path.read_bytes()).hexdigest() for path in files}

    before = hashes()
    assert {"result.json", "metrics.csv", "config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt"} <= {*before}
    result = evaluate_run(image_run, split="val", checkpoint="best")
    after = hashes()
    assert json.loads((image_run / "evaluations/val_best.json").read_text()) == result
    assert result["split"] == "val"
    assert result["checkpoint"] == str(image_run / "checkpoints/best.ckpt")
    assert {*after} - {*before} == {"evaluations/val_best.json"}
    assert before.items() <= after.items()


def test_run_is_given_as_directory_checkpoint_or_last(image_run: Path, tmp_path: Path, monkeypatch) -> None:
    Path("outputs").mkdir()
    Path("outputs/last").symlink_to(image_run)
    results = [evaluate_run(name) for name in (image_run, "image_run", image_run / "checkpoints/last.ckpt", "last")]
    assert all(result == results[0] | {"checkpoint": result["checkpoint"]} for result in results)
    assert all(Path(result["checkpoint"]).samefile(image_run / "checkpoints/last.ckpt") for result in results)
    assert (
        evaluate_run(image_run / "checkpoints/best.ckpt")["metrics"]
        == evaluate_run(image_run, checkpoint="best")["metrics"]
    )
    assert {path.name for path in (image_run / "evaluations").iterdir()} == {"test_last.json", "test_best.json"}


def test_evaluate_regression_gives_loss_rmse_and_r2(trained: Path) -> None:
    result = json.loads((trained / "line/result.json").read_text())["metrics"]
    assert evaluate_run(trained / "line")["metrics"] == {
        name: result[name] for name in ("test/loss", "test/rmse", "test/r2")
    }


def test_evaluate_finds_data_that_moved_to_data_root(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(datamodules.MNIST, "load", lambda self: torch.load(Path(self.root) / "images.pt"))
    Path("here").mkdir()
    torch.save(load_band_images(None), "here/images.pt")
    run = train_run(tmp_path / "run", f"data.root={tmp_path / 'here'}", "data.val_size=100", "trainer.max_epochs=1")
    Path("here").rename("there")
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "there"))
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert evaluate_run(run)["metrics"]["test/loss"] == metrics["test/loss"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "tset"}, "split=tset must be test, val or train"),
        ({"checkpoint": "bset"}, "checkpoint=bset must be last or best"),
        ({"run": "nowhere"}, "nowhere is neither a run directory nor a checkpoint"),
        ({"split": "val"}, "split=val: this run has no such examples"),
    ],
)
def test_evaluate_refuses_wrong_settings(settings: dict[str, str], message: str, trained: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate_run(**{"run": trained / "blobs", "folder": trained / "blobs", **settings})
    assert not (trained / "blobs/evaluations").exists()


# --- predict -----------------------------------------------------------------------------------------------------


def test_predict_split_test_gives_predicted_and_true_classes(image_run: Path) -> None:
    _, (images, labels) = load_band_images(None)
    predictions = predict_rows(image_run, split="test")
    assert [row["input"] for row in predictions] == [f"test[{number}]" for number in range(6)]
    assert [row["truth"] for row in predictions] == [str(label) for label in labels[:6].tolist()]
    assert [row["label"] for row in predictions] == [
        str(label) for label in logits_of(image_run, images[:6]).argmax(1).tolist()
    ]
    assert [row["truth"] for row in read_rows(Path("answers/predictions.csv"))] == [row["truth"] for row in predictions]
    assert Path("answers/predictions.png").is_file()
    assert len(predict_rows(image_run, split="test", limit=1)) == 1


def test_predict_limit_above_the_split_size_gives_all_examples(trained: Path) -> None:
    assert len(predict_rows(trained / "blobs", split="test", limit=10**6)) == 200


def test_predict_reads_csv_with_and_without_a_header(trained: Path) -> None:
    points = "2,2\n-2,-1.5\n\n3,1e0\n"
    Path("bare.csv").write_text(points)
    Path("header.csv").write_text("x,y\n" + points)
    Path("spreadsheet.csv").write_text(points, encoding="utf-8-sig")
    for name in ("bare", "header", "spreadsheet"):
        predictions = predict_rows(trained / "blobs", csv=f"{name}.csv")
        assert [row["input"] for row in predictions] == ["2,2", "-2,-1.5", "3,1e0"]
        assert [row["label"] for row in predictions] == ["blob at (2, 2)", "blob at (-2, -2)", "blob at (2, 2)"]
    assert list(read_rows(Path("answers/predictions.csv"))[0]) == ["input", "label", "probability", "top 3"]
    assert not Path("answers/predictions.png").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1,2\n1,2,3\n", r"points\.csv, line 2: 3 cells for 2 columns"),
        ("x,y\n1,2\n1\n", r"points\.csv, line 3: 1 cell for 2 columns"),
        ("1,2\n1,two\n", r"points\.csv, line 2, column x2: 'two' is not a number"),
        ("one,2\n1,2\n", r"points\.csv, line 1: one,2 is not 2 numbers"),
        ("1,nan\n3,4\n", r"points\.csv, line 1: 1,nan is not 2 numbers"),
        ("x,y\n", r"points\.csv has no rows"),
        ("", r"points\.csv is empty"),
    ],
)
def test_predict_refuses_bad_csv_rows(content: str, message: str, trained: Path) -> None:
    Path("points.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        predict_rows(trained / "blobs", csv="points.csv")
    assert not Path("answers").exists()


def test_predict_line_gives_numbers(trained: Path) -> None:
    coefficients = json.loads((trained / "line/result.json").read_text())["metrics"]
    Path("readings.csv").write_text("reading\n-1.5\n0\n20\n")
    predictions = predict_rows(trained / "line", csv="readings.csv")
    assert [row["input"] for row in predictions] == ["-1.5", "0", "20"]
    for row in predictions:
        expected = coefficients["w"] * float(row["input"]) + coefficients["b"]
        assert row["prediction"] == pytest.approx(expected, rel=1e-5)
    assert [row["truth"] for row in predict_rows(trained / "line", split="test", limit=2)] == pytest.approx(
        [35.7, 55.9]
    )


def test_predict_gives_all_outputs_of_a_regression(tmp_path: Path) -> None:
    (row,) = predict_rows(train_run(tmp_path / "run", "experiment=lenet_one_step"), split="test")
    assert len(row["prediction"]) == len(row["truth"]) == 10
    assert row["truth"] == pytest.approx(datamodules.OneRandom([1, 32, 32], 10).load()[1][1][0].tolist())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one of images="),
        ({"split": "test", "csv": "points.csv"}, "exactly one of images="),
        ({"split": "train"}, "split=train must be test"),
        ({"split": "test", "limit": 0}, "limit=0 must be a whole number of at least 1"),
        ({"split": "test", "limit": "six"}, "limit=six must be a whole number of at least 1"),
        ({"images": "point.png"}, r"trained on inputs of shape \(2,\), not on image files"),
        ({"csv": "nowhere.csv"}, r"nowhere\.csv"),
    ],
)
def test_predict_refuses_wrong_settings(settings: dict[str, Any], message: str, trained: Path) -> None:
    Path("point.png").touch()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        predict_rows(trained / "blobs", **settings)
    assert not Path("answers").exists()


# --- export ------------------------------------------------------------------------------------------------------


def test_onnx_maps_stored_pixels_to_logits(image_run: Path) -> None:
    export_run(image_run, "model.onnx")
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    assert (entry.name, entry.type, entry.shape[1:]) == ("inputs", "tensor(uint8)", [1, 28, 28])
    _, (images, _) = load_band_images(None)
    for size in (1, 3, 7):
        (logits,) = session.run(["logits"], {"inputs": images[:size].numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), logits_of(image_run, images[:size]), rtol=1e-5, atol=1e-5)
    properties = {entry.key: entry.value for entry in onnx.load("model.onnx").metadata_props}
    assert json.loads(properties["class_names"]) == list("0123456789")


def test_onnx_of_points_has_class_names(trained: Path) -> None:
    export_run(trained / "blobs", "model.onnx", checkpoint="best")
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    points = torch.tensor([[2.0, 2.0], [-2.0, -2.0], [3.0, 1.0]])
    (logits,) = session.run(None, {"inputs": points.numpy()})
    assert logits.argmax(1).tolist() == [0, 1, 0]
    names = {entry.key: entry.value for entry in onnx.load("model.onnx").metadata_props}["class_names"]
    assert json.loads(names) == list(datamodules.Blobs.class_names)


def test_exported_parameters_load_into_the_plain_net(image_run: Path) -> None:
    _, (images, _) = load_band_images(None)
    pixels = (images[:5] / 255 - 0.1307) / 0.3081
    weights = {
        ".pt": torch.load(export_run(image_run, "model.pt"), weights_only=True),
        ".safetensors": safetensors.torch.load_file(export_run(image_run, "model.safetensors")),
    }
    for state in weights.values():
        net = nets.CNN((1, 28, 28), 10)
        net.load_state_dict(state)
        with torch.inference_mode():
            assert torch.equal(net(pixels), logits_of(image_run, images[:5]))
    with safetensors.safe_open("model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["class_names"]) == list("0123456789")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("model.txt", r"output=model\.txt must end in one of \.onnx, \.pt2, \.safetensors, \.pt"),
        ("model", "must end in one of"),
        ("nowhere/model.onnx", "there is no directory nowhere"),
    ],
)
def test_export_refuses_a_wrong_output(output: str, message: str, trained: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        export_run(trained / "blobs", output)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".safetensors", ".pt"])
@pytest.mark.parametrize("kind", ["file", "directory", "dangling link", "link to a file", "earlier export"])
def test_export_overwrites_nothing(kind: str, suffix: str, trained: Path) -> None:
    file = Path(f"thesis{suffix}")
    Path("mine").write_text("mine")
    if kind == "earlier export":
        export_run(trained / "blobs", str(file))
    elif kind == "directory":
        file.mkdir()
    elif kind == "file":
        file.write_text("mine")
    else:
        file.symlink_to("mine" if kind == "link to a file" else "nowhere")
    before = file.is_file() and file.read_bytes()
    with pytest.raises(ValueError, match=f"would overwrite {file}: move it, or choose another name"):
        export_run(trained / "line", str(file))
    assert (file.is_file() and file.read_bytes()) == before
    assert Path("mine").read_text() == "mine"


def test_onnx_export_names_all_missing_packages(trained: Path, monkeypatch) -> None:
    for name in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"needs onnx, onnxruntime: pip install onnx onnxscript onnxruntime"):
        export_run(trained / "blobs", "model.onnx")
    assert not Path("model.onnx").exists()


def test_failed_export_leaves_nothing(trained: Path, monkeypatch) -> None:
    """A net with random outputs differs from its exported graph, so the final check fails."""
    forward = nets.MLP.forward
    monkeypatch.setattr(nets.MLP, "forward", lambda self, x: forward(self, x) + torch.rand(1))
    with pytest.raises(AssertionError, match="not close"):
        export_run(trained / "blobs", "model.onnx")
    assert list(Path().iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on file sizes")
@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".safetensors", ".pt"])
def test_export_to_a_full_disk_gives_one_line(suffix: str, trained: Path) -> None:
    """A limit of one kilobyte per file stands for a full disk."""
    command = [sys.executable, PROJECT / "export.py", f"run={trained / 'image_run'}", f"output=model{suffix}"]
    limited = ["bash", "-c", 'ulimit -f 1; exec "$@"', "export", *map(str, command)]
    answer = subprocess.run(limited, capture_output=True, text=True)
    assert answer.returncode == 1
    (line,) = answer.stderr.splitlines()
    assert line.startswith("error: ") and "File too large" in line
    assert list(Path().iterdir()) == []


# --- command line ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_evaluate_command_from_another_directory(trained: Path, tmp_path: Path, shell) -> None:
    run = shutil.copytree(trained / "blobs", tmp_path / "elsewhere/run")
    answer = shell(f"run={run}", "split=train", "trainer.accelerator=cpu", script="evaluate.py")
    assert (answer.returncode, answer.stderr) == (0, "")
    metrics = json.loads((run / "evaluations/train_last.json").read_text())["metrics"]
    assert f"{100 * metrics['train/acc']:.2f} %" in answer.stdout
    assert answer.stdout.startswith("train of elsewhere/run/checkpoints/last.ckpt\n")
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


@pytest.mark.slow
def test_predict_command(trained: Path, tmp_path: Path, shell) -> None:
    run = shutil.copytree(trained / "blobs", tmp_path / "outputs/blobs/first")
    Path("outputs/last").symlink_to(run)
    answer = shell("run=last", "split=test", "limit=3", script="predict.py")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert len(read_rows(run / "predictions/predictions.csv")) == 3
    assert [line.split()[0] for line in answer.stdout.splitlines()] == ["test[0]", "test[1]", "test[2]", "written"]


@pytest.mark.slow
def test_export_command(trained: Path, shell) -> None:
    answer = shell(f"run={trained / 'blobs/checkpoints/best.ckpt'}", "output=model.onnx", script="export.py")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.startswith("written to model.onnx")
    onnx.checker.check_model("model.onnx")


@pytest.mark.parametrize(
    ("script", "example", "wrong", "message"),
    [
        ("evaluate.py", "checkpoint=best split=val", "run=nowhere", "nowhere is neither a run directory nor"),
        ("predict.py", "run=last images='drawn/*.png'", "run=. imges=a.png", "did you mean images?"),
        ("export.py", "run=last output=model.safetensors", "run=. output=model.txt", "must end in one of .onnx"),
    ],
)
def test_help_shows_examples_and_mistakes_give_one_line(
    script: str, example: str, wrong: str, message: str, trained: Path, shell
) -> None:
    shutil.copytree(trained / "blobs", ".", dirs_exist_ok=True)
    answer = shell("--help", script=script)
    assert answer.returncode == 0
    assert f"python {script} run=last" in answer.stdout
    assert example in answer.stdout
    answer = shell(*wrong.split(), script=script)
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: ")
    assert message in answer.stderr
    assert len(answer.stderr.splitlines()) == 1
    assert "Traceback" not in answer.stdout


def test_pt2_program_takes_batches_of_any_size(tmp_path: Path) -> None:
    """model.pt2 maps any batch of stored inputs to logits, and needs no class of this project."""
    folder = tmp_path / "whole"
    folder.mkdir()
    train.train_config(compose("model=blobs_mlp", "data=blobs", "trainer.max_epochs=1", "logger=none"), folder)
    settings = {"run": str(folder), "checkpoint": "last", "output": str(tmp_path / "model.pt2")}
    export.export(OmegaConf.create(settings), folder)
    program = torch.export.load(tmp_path / "model.pt2").module()
    _, datamodule, model = load_run(str(folder), "last")
    for size in (1, 5):
        points = torch.randn(size, 2)
        torch.testing.assert_close(program(points), model(datamodule.normalize(points)))
