"""predict.py and export.py with models that reconstruct and generate."""

import shutil
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import export
import predict
import train
from cli.build import load_run
from cli.compose import compose
from tests.conftest import read_predictions, replace_images

BRIEF = ("trainer.max_epochs=1", "trainer.limit_train_batches=2", "data.batch_size=32", "trainer.accelerator=cpu")
BRIEF += ("logger=none", "callbacks.pictures=null", "data.val_size=0", "threads=1")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of an autoencoder, a VAE and a GAN on random images."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        replace_images(300, 60, patch.setattr)
        patch.chdir(folder)
        for name in ("autoencoder", "vae", "gan"):
            (folder / name).mkdir()
            train.train_config(compose(f"experiment=mnist_{name}", *BRIEF), folder / name)
    return {name: folder / name for name in ("autoencoder", "vae", "gan")}


@pytest.fixture(autouse=True)
def _random_images(random_images: Any) -> None:
    random_images(300, 60)


def predict_rows(run: Path, **settings: Any) -> list[dict[str, Any]]:
    shutil.rmtree("answers", ignore_errors=True)
    given = {"run": str(run), "checkpoint": "last", "images": None, "csv": None, "split": None, "samples": None}
    cfg = OmegaConf.create({**given, "limit": 6, "output": str(Path("answers").resolve()), **settings})
    return read_predictions(predict.predict_config(cfg, run))


@pytest.mark.parametrize("name", ["autoencoder", "vae"])
def test_squared_error_is_that_of_the_reconstruction(runs: dict[str, Path], name: str) -> None:
    rows = predict_rows(runs[name], split="test")
    assert list(rows[0]) == ["input", "squared error", "truth"]
    _, datamodule, model = load_run(str(runs[name]), "last")
    datamodule.setup()
    inputs, _ = next(iter(datamodule.test_dataloader()))
    with torch.inference_mode():
        expected = (model.reconstruct(inputs[:6]) - inputs[:6]).square().mean((1, 2, 3))
    assert [float(row["squared error"]) for row in rows] == pytest.approx(expected.tolist(), rel=1e-5)
    assert Path("answers/predictions.png").is_file()


def test_reconstructions_of_files(runs: dict[str, Path]) -> None:
    Image.new("L", (28, 28), 0).save("dark.png")
    (row,) = predict_rows(runs["autoencoder"], images="dark.png")
    assert row["input"] == "dark.png"
    assert float(row["squared error"]) > 0


@pytest.mark.parametrize("name", ["vae", "gan"])
def test_more_samples_begin_with_the_same_ones(
    runs: dict[str, Path], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    few, many = predict_rows(runs[name], samples=3), predict_rows(runs[name], samples=70)
    assert "written to" in caplog.text
    assert "sample[" not in caplog.text  # numbers of samples say nothing
    assert "more" not in caplog.text
    assert many[:3] == few
    assert [row["input"] for row in many] == [f"sample[{number}]" for number in range(70)]
    assert len({row["latent vector"] for row in many}) == 70
    with Image.open("answers/predictions.png") as picture:
        assert min(picture.size) > 200


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gan", {"split": "test"}, "GAN predicts nothing about an input, it generates: try samples=64"),
        ("gan", {"samples": 0}, "samples=0 must be a whole number of at least 1"),
        ("gan", {"samples": 2.5}, r"samples=2\.5 must be a whole number of at least 1"),
        ("gan", {"samples": 2, "split": "test"}, "exactly one of images="),
        ("autoencoder", {"samples": 2}, "samples= is for a model that generates, such as model=vae, not Autoencoder"),
        ("autoencoder", {"csv": "rows.csv"}, "not on rows; try images="),
    ],
)
def test_impossible_predictions_are_refused(
    runs: dict[str, Path], name: str, settings: dict[str, Any], message: str
) -> None:
    Path("rows.csv").write_text("1,2\n")
    with pytest.raises(ValueError, match=message):
        predict_rows(runs[name], **settings)
    assert not Path("answers").exists()


def exported(run: Path, output: str) -> Path:
    return export.export(OmegaConf.create({"run": str(run), "checkpoint": "last", "output": output}), run)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae", "gan"])
def test_exported_generator_turns_latent_vectors_into_images(runs: dict[str, Path], name: str) -> None:
    _, datamodule, model = load_run(str(runs[name]), "last")
    latents = torch.randn(5, model.latent_dim)
    with torch.inference_mode():
        expected = datamodule.to_uint8(model.sample(latents))
    session = onnxruntime.InferenceSession(exported(runs[name], "model.onnx"), providers=["CPUExecutionProvider"])
    (entry,), (exit_,) = session.get_inputs(), session.get_outputs()
    assert (entry.name, exit_.name, exit_.type) == ("inputs", "images", "tensor(uint8)")
    images = torch.from_numpy(session.run(None, {"inputs": latents.numpy()})[0])
    assert (images.int() - expected.int()).abs().max() <= 1
    program = torch.export.load(exported(runs[name], "model.pt2")).module()
    assert (program(latents).int() - expected.int()).abs().max() <= 1


def test_exported_encoder_turns_images_into_codes(runs: dict[str, Path]) -> None:
    _, datamodule, model = load_run(str(runs["autoencoder"]), "last")
    images = torch.randint(256, (4, 1, 28, 28), dtype=torch.uint8)
    with torch.inference_mode():
        expected = model.encode(datamodule.normalize(images))
    session = onnxruntime.InferenceSession(exported(runs["autoencoder"], "m.onnx"), providers=["CPUExecutionProvider"])
    (exit_,) = session.get_outputs()
    assert exit_.name == "codes"
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"inputs": images.numpy()})[0]), expected)


def test_exported_weights_are_those_of_the_generator(runs: dict[str, Path]) -> None:
    _, _, model = load_run(str(runs["gan"]), "last")
    weights = torch.load(exported(runs["gan"], "model.pt"), weights_only=True)
    assert weights.keys() == model.generator.state_dict().keys()
