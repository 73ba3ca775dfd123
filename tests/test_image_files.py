"""Reading image files of every kind and size, and predictions about them."""

import csv
import os
import resource
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image, ImageDraw, ImageFont, ImageOps

import datamodules
import predict
import train
from cli.build import load_run
from cli.compose import compose
from cli.examples import find_files
from datamodules.image_files import load_image
from tests.conftest import PROJECT, read_predictions

MNIST = {"shape": (1, 28, 28), "dark_background": True, "center": True}
CIFAR10 = {"shape": (3, 32, 32), "dark_background": False, "center": False}


def draw_digit(label: int, size: int = 100, x: float = 0.5, y: float = 0.5, part: float = 0.7) -> Image.Image:
    """Return a printed digit, white on black: ``part`` of the image high, its center at ``x`` and ``y``."""
    image = Image.new("L", (size, size))
    font = ImageFont.load_default(size=part * size)
    ImageDraw.Draw(image).text((x * size, y * size), str(label), fill=255, font=font, anchor="mm")
    return image


def load(self: datamodules.MNIST) -> Any:
    """Return printed digits in MNIST's size and about at MNIST's place: 400 for training, 100 for the test."""
    generator = np.random.default_rng(0)
    labels = torch.arange(10).repeat(50)
    places = generator.uniform([0.45, 0.45, 0.85], [0.55, 0.55, 1.05], (500, 3))
    images = [np.array(draw_digit(label, 28, *place)) for label, place in zip(labels.tolist(), places, strict=True)]
    images = torch.from_numpy(np.stack(images))[:, None]
    return (images[:400], labels[:400]), (images[400:], labels[400:])


def test_jpeg_decoded_at_reduced_size_looks_the_same() -> None:
    """Compare a JPEG with an EXIF orientation with the same pixels in a PNG, which is decoded in full size."""
    generator = np.random.default_rng(0)
    colors = generator.integers(0, 256, (15, 20, 3), dtype=np.uint8)
    photo = Image.fromarray(colors).resize((1600, 1200), Image.Resampling.BICUBIC)
    photo = Image.fromarray((np.array(photo) * 0.8 + generator.integers(0, 50, (1200, 1600, 1))).astype(np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    photo.save("photo.jpg", quality=90, exif=turned)
    with Image.open("photo.jpg") as file:
        ImageOps.exif_transpose(file).save("photo.png")
    (jpeg, notes), (png, _) = (load_image(Path(name), **CIFAR10) for name in ("photo.jpg", "photo.png"))
    assert notes == ["1600 x 1200 resized"]
    assert jpeg.shape == png.shape == (3, 32, 32)
    assert (jpeg.int() - png.int()).abs().max() <= 4
    with Image.open("photo.jpg") as file:
        file.draft(None, (128, 128))
        assert file.size == (200, 150)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a small CNN on printed digits in place of MNIST. Return its run directory."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datamodules.MNIST, "load", load)
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        settings = ("data.val_size=0", "data.batch_size=20", "trainer.max_epochs=6", "optimizer.lr=0.01")
        cfg = compose(*settings, "trainer.accelerator=cpu", "logger=none", "threads=1")
        assert train.train_config(cfg, folder)["metrics"]["test/acc"] >= 0.99
    return folder


def predict_images(run: Path, images: Any, output: str | Path = "predictions") -> list[dict[str, Any]]:
    settings = {"run": str(run), "checkpoint": "last", "images": str(images), "csv": None, "split": None}
    settings |= {"samples": None, "limit": 6}
    return read_predictions(predict.predict_config(OmegaConf.create({**settings, "output": str(output)}), run))


def read_rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "predictions.csv", newline="") as lines:
        return list(csv.DictReader(lines))


# --- reading a file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gray.png", lambda image: image),
        ("color.png", lambda image: image.convert("RGB")),
        ("palette.png", lambda image: image.convert("P")),
        ("alpha.png", lambda image: image.convert("RGBA")),
        ("gray_alpha.png", lambda image: image.convert("LA")),
        ("gray.gif", lambda image: image),
        ("gray.bmp", lambda image: image),
        ("16_bit.png", lambda image: Image.fromarray(np.asarray(image).astype(np.uint16) * 257)),
        ("16_bit.tif", lambda image: Image.fromarray(np.asarray(image).astype(np.uint16) * 257)),
    ],
)
def test_lossless_digit_of_the_right_size_is_unchanged(name: str, change: Any) -> None:
    stored = torch.randint(256, (28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    stored[0] = stored[-1] = stored[:, 0] = stored[:, -1] = 0
    change(Image.fromarray(stored.numpy())).save(name)
    pixels, notes = load_image(Path(name), **MNIST)
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, stored[None])
    assert notes == []


GRAY = {"shape": (1, 4, 4), "dark_background": False, "center": False}


def save_tiff(values: np.ndarray, **tags: Any) -> Path:
    Image.fromarray(values).save("image.tif", tiffinfo={int(tag[1:]): number for tag, number in tags.items()})
    return Path("image.tif")


def test_numbers_from_0_to_1_are_scaled() -> None:
    values = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    pixels, _ = load_image(save_tiff(values), **GRAY)
    assert pixels.flatten().tolist() == [17 * number for number in range(16)]
    Path("image.pfm").write_bytes(b"Pf 4 4 -1.0\n" + values[::-1].tobytes())  # from the lowest row
    assert torch.equal(load_image(Path("image.pfm"), **GRAY)[0], pixels)


def test_12_bits_are_scaled_where_the_file_says_so() -> None:
    """Pillow writes no TIFF of 12 bits. The one here has two pixels in three bytes."""
    values = [273 * number for number in range(16)]
    packed = b"".join(((a << 12) + b).to_bytes(3, "big") for a, b in zip(values[::2], values[1::2], strict=True))
    tags = [(256, 4), (257, 4), (258, 12), (259, 1), (262, 1), (273, 128), (277, 1), (278, 4), (279, len(packed))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    Path("image.tif").write_bytes(header.ljust(128, b"\0") + packed)
    assert load_image(Path("image.tif"), **GRAY)[0].flatten().tolist() == [17 * number for number in range(16)]
    Path("image.pgm").write_bytes(b"P5 4 4 4095\n" + np.array(values, ">u2").tobytes())
    assert load_image(Path("image.pgm"), **GRAY)[0].flatten().tolist() == [17 * number for number in range(16)]


def test_white_is_zero_of_16_bits_is_inverted() -> None:
    values = (np.arange(16, dtype=np.uint16) * 4369).reshape(4, 4)
    pixels, _ = load_image(save_tiff(values, _262=0), **GRAY)
    assert pixels.flatten().tolist() == [255 - 17 * number for number in range(16)]


RAMP = np.arange(16).reshape(4, 4)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ((RAMP * 273).astype(np.uint16), "its numbers end at 4095, where 65535 is white, which is nearly black"),
        ((RAMP * 1000 - 8000).astype(np.int32), "its numbers are signed or have 32 bits"),
        ((RAMP * 100_000).astype(np.int32), "its numbers are signed or have 32 bits"),
        ((RAMP * 17).astype(np.float32), "its numbers go from 0 to 255, and 0 is black and 1 white in such a file"),
        ((RAMP / 15 - 0.5).astype(np.float32), "its numbers go from -0.5 to 0.5, and 0 is black"),
        ((RAMP * np.nan).astype(np.float32), "its numbers go from nan to nan"),
    ],
)
def test_numbers_of_unknown_scale_are_refused(values: np.ndarray, line: str) -> None:
    with pytest.raises(ValueError) as error:
        load_image(save_tiff(values), **GRAY)
    assert str(error.value).startswith(f"image.tif is not an image: {line}")


def test_12_bits_of_color_in_16_are_refused() -> None:
    """Pillow writes no PNG of 16 bits in color."""
    colors = np.repeat((RAMP * 273)[:, :, None], 3, axis=2)

    def write(values: np.ndarray) -> None:
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
        png = b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
        Path("image.png").write_bytes(b"\x89PNG\r\n\x1a\n" + png)

    write(colors)
    with pytest.raises(ValueError, match=r"image\.png is not an image: its numbers end at 15, where 255 is white"):
        load_image(Path("image.png"), **CIFAR10)
    write(colors * 16)
    assert load_image(Path("image.png"), (3, 4, 4), False, False)[0].max() == 255


def test_black_image_of_16_bits_is_read() -> None:
    assert load_image(save_tiff(np.zeros((4, 4), np.uint16)), **GRAY)[0].max() == 0


def test_lossless_photo_of_the_right_size_is_unchanged() -> None:
    stored = torch.randint(256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(stored.permute(1, 2, 0).numpy()).save("photo.png")
    pixels, notes = load_image(Path("photo.png"), **CIFAR10)
    assert torch.equal(pixels, stored)
    assert notes == []


def test_dark_digits_are_inverted_and_transparency_becomes_white() -> None:
    white_on_black = draw_digit(4)
    white_on_black.save("white_on_black.png")
    ImageOps.invert(white_on_black).save("black_on_white.png")
    ink = Image.new("RGBA", white_on_black.size, "black")
    ink.putalpha(white_on_black)
    ink.save("ink_on_nothing.png")
    expected, notes = load_image(Path("white_on_black.png"), **MNIST)
    assert notes == ["100 x 100 cropped and centered"]
    for name, expected_notes in [("black_on_white", []), ("ink_on_nothing", ["transparent parts made white"])]:
        pixels, notes = load_image(Path(f"{name}.png"), **MNIST)
        assert torch.equal(pixels, expected)
        assert notes == [*expected_notes, "inverted", "100 x 100 cropped and centered"]


def test_photo_is_never_inverted() -> None:
    Image.new("RGB", (64, 64), "white").save("white.png")
    assert load_image(Path("white.png"), **CIFAR10)[0].unique().tolist() == [255]


def test_exif_orientation_is_applied() -> None:
    upright = draw_digit(7).convert("RGB")
    upright.save("upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees clockwise to display
    upright.transpose(Image.Transpose.ROTATE_90).save("rotated.png", exif=exif)
    expected, _ = load_image(Path("upright.png"), **MNIST)
    assert torch.equal(load_image(Path("rotated.png"), **MNIST)[0], expected)


def test_digit_is_scaled_and_centered_like_mnist() -> None:
    draw_digit(8, size=300, x=0.2, y=0.8, part=0.2).save("far_off.png")
    pixels = load_image(Path("far_off.png"), **MNIST)[0][0].double()
    seen = (pixels > 0).nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).max() == 20
    weights = pixels / pixels.sum()
    places = torch.arange(28).double()
    for marginal in (weights.sum(0), weights.sum(1)):
        assert (marginal @ places).item() == pytest.approx(13.5, abs=0.5)


def test_photo_keeps_its_aspect_ratio() -> None:
    Image.new("RGB", (64, 32), "red").save("wide.png")
    pixels, _ = load_image(Path("wide.png"), **CIFAR10)
    assert torch.equal(
        pixels[0] == 255, torch.arange(32)[:, None].expand(32, 32).clamp(8, 23) == torch.arange(32)[:, None]
    )
    assert pixels[1:].max() == 0


@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 3000), (1, 28)])
def test_image_of_extreme_aspect_ratio_is_read(size: tuple[int, int]) -> None:
    Image.new("L", size, 100).save("odd.png")
    pixels, notes = load_image(Path("odd.png"), **CIFAR10)
    assert pixels.shape == CIFAR10["shape"]
    assert pixels.max() == 100
    assert notes == [f"{size[0]} x {size[1]} resized"]


@pytest.mark.parametrize("size", [(50, 50), (400, 300), (1, 1), (3000, 2), (2, 3000), (1, 28)])
@pytest.mark.parametrize("kind", ["black", "white", "gray", "noise", "falling light", "ruled"])
def test_blank_sheet_shows_no_digit(kind: str, size: tuple[int, int]) -> None:
    width, height = size
    sheet = np.full((height, width), {"black": 0.0, "gray": 120.0}.get(kind, 230.0))
    sheet *= np.linspace(1, 0.4, width) if kind == "falling light" else 1
    if kind == "noise":
        sheet += np.random.default_rng(0).normal(0, 8, sheet.shape)
    if kind == "ruled":
        sheet[20::40] = 150
    Image.fromarray(sheet.clip(0, 255).astype(np.uint8)).save("page.png")
    with pytest.raises(ValueError, match=r"^page\.png: no digit found, the sheet is blank$"):
        load_image(Path("page.png"), **MNIST)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n half of one"])
def test_file_that_is_not_an_image_is_refused(content: bytes) -> None:
    Path("digit.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"digit\.png is not an image"):
        load_image(Path("digit.png"), **MNIST)


def test_truncated_image_is_refused() -> None:
    draw_digit(3, size=300).save("whole.png")
    Path("torn.png").write_bytes(Path("whole.png").read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"torn\.png is not an image"):
        load_image(Path("torn.png"), **MNIST)


# --- predict -----------------------------------------------------------------------------------------------------


def test_predict_takes_a_directory_a_pattern_or_a_file(run: Path) -> None:
    Path("digits/more").mkdir(parents=True)
    for label in range(10):
        image = draw_digit(label, size=60 + 20 * label, x=0.4, y=0.6, part=0.5)
        (ImageOps.invert(image) if label % 2 else image).save(f"digits/{label}.{'png' if label < 5 else 'jpg'}")
    draw_digit(9).save("digits/more/nine [1].png")
    assert [row["label"] for row in predict_images(run, "digits")] == list("0123456789")
    assert [row["input"] for row in predict_images(run, "digits/*.png")] == [
        f"digits/{label}.png" for label in range(5)
    ]
    assert [row["label"] for row in predict_images(run, "digits/**/*.png")] == list("012349")
    assert [row["label"] for row in predict_images(run, "digits/more/nine [1].png")] == ["9"]


def test_predictions_csv_holds_the_probabilities_of_the_net(run: Path) -> None:
    _, (images, _) = load(None)
    Path("digits").mkdir()
    for number in range(5):
        Image.fromarray(images[number, 0].numpy()).save(f"digits/{number}.png")
    predict_images(run, "digits", Path("to").resolve())
    table = read_rows(Path("to"))
    assert list(table[0]) == ["input", "label", "probability", "top 3"]
    _, datamodule, model = load_run(str(run), "last")
    with torch.inference_mode():
        probs = model.net(datamodule.normalize(images[:5])).softmax(1)
    for row, row_probs in zip(table, probs, strict=True):
        best = row_probs.sort(descending=True)
        assert row["label"] == str(best.indices[0].item())
        assert float(row["probability"]) == pytest.approx(best.values[0].item(), abs=1e-6)
        assert 0 <= float(row["probability"]) <= 1
        expected = [f"{index} {value:.4f}" for index, value in zip(best.indices[:3], best.values[:3], strict=True)]
        assert row["top 3"] == "; ".join(expected)


def test_files_that_are_not_images_are_skipped_and_named(run: Path) -> None:
    Path("digits").mkdir()
    for label in (1, 2):
        draw_digit(label).save(f"digits/{label}.png")
    Path("digits/empty.png").touch()
    Path("digits/notes.txt").write_text("about the digits")
    with pytest.raises(predict.FilesSkipped, match="2 of 4 files skipped: digits/empty") as error:
        predict_images(run, "digits", Path("to").resolve())
    assert str(error.value).endswith("digits/empty.png, digits/notes.txt")
    assert error.value.exit_code == 1
    assert [(row["input"], row["label"]) for row in read_rows(Path("to"))] == [
        ("digits/1.png", "1"),
        ("digits/2.png", "2"),
    ]
    assert Path("to/predictions.png").is_file()


@pytest.mark.slow
def test_command_line_skips_a_file_that_is_not_an_image(run: Path, shell) -> None:
    Path("my digits").mkdir()
    draw_digit(6).save("my digits/6.png")
    Path("my digits/notes.png").write_text("about the digits")
    answer = shell(f"run={run}", "images=my digits/*.png", f"output={Path('to').resolve()}", script="predict.py")
    assert answer.returncode == 1
    assert answer.stderr == "error: 1 of 2 files skipped: my digits/notes.png\n"
    assert "skipped: my digits/notes.png is not an image" in answer.stdout
    assert [row["label"] for row in read_rows(Path("to"))] == ["6"]


def test_predict_without_any_image_is_refused(run: Path) -> None:
    Path("notes.txt").write_text("no digits")
    Path("nothing").mkdir()
    with pytest.raises(ValueError, match="none of the 1 files can be used"):
        predict_images(run, "*.txt", Path("to").resolve())
    Path("deep").mkdir()
    draw_digit(6).save(Path("nothing").rename("deep/some 6s") / "6.png")
    Path("nothing").mkdir()
    reasons = {"nowhere.png": "there is no such file", "*.jpg": "there is no such file"}
    reasons |= {"nothing": "there is no file in this directory"}
    reasons |= {"deep": r'there are only directories in this one; .images="deep/\*\*/\*". takes the files in them'}
    for nothing, reason in reasons.items():
        with pytest.raises(FileNotFoundError, match=f"{reason}$"):
            predict_images(run, nothing, Path("to").resolve())
    assert not Path("to").exists()
    assert find_files("deep/**/*") == [Path("deep/some 6s/6.png")]


def test_csv_is_refused_by_an_image_model(run: Path) -> None:
    Path("points.csv").write_text("1,2\n")
    settings = {
        "run": str(run),
        "checkpoint": "last",
        "images": None,
        "csv": "points.csv",
        "split": None,
        "samples": None,
        "output": "to",
    }
    with pytest.raises(ValueError, match=r"trained on inputs of shape \(1, 28, 28\), not on rows"):
        predict.predict_config(OmegaConf.create(settings), run)


def test_predictions_plot_shows_the_digits(run: Path) -> None:
    Path("digits").mkdir()
    draw_digit(5, size=28, part=0.9).save("digits/five.png")
    draw_digit(5, size=28, part=0.9).save("digits/$five^{$.png")  # not a formula
    predict_images(run, "digits", Path("to").resolve())
    drawn = np.asarray(Image.open("to/predictions.png").convert("L"))
    assert drawn.shape[1] > drawn.shape[0]  # two images side by side
    for half in np.array_split(drawn, 2, axis=1):  # mostly dark images of bright digits, on a white background
        assert 0.3 < (half < 20).mean() < 0.8
        middle = half[half.shape[0] // 3 : -half.shape[0] // 3, half.shape[1] // 3 : -half.shape[1] // 3]
        assert 0.1 < (middle > 200).mean() < 0.7


def test_predictions_csv_holds_more_images_than_the_plot(run: Path) -> None:
    Path("digits").mkdir()
    for number in range(50):
        draw_digit(number % 10, size=40).save(f"digits/{number:02}.png")
    predict_images(run, "digits", Path("to").resolve())
    assert [row["label"] for row in read_rows(Path("to"))] == list("0123456789" * 5)
    assert Path("to/predictions.png").is_file()


def test_files_are_predicted_in_batches(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory does not grow with the number of files, and neither does what is printed."""
    sizes: list[int] = []
    normalize = datamodules.MNIST.normalize
    monkeypatch.setattr(
        datamodules.MNIST, "normalize", lambda self, inputs: sizes.append(len(inputs)) or normalize(self, inputs)
    )
    Path("digits").mkdir()
    for number in range(10):
        draw_digit(number, size=40).save(f"digits/{number}.png")
    for number in range(10, 150):
        os.link(f"digits/{number % 10}.png", f"digits/{number}.png")
    with caplog.at_level("INFO", "predict"):
        rows = predict_images(run, "digits", Path("to").resolve())
    assert [row["label"] for row in rows] == [Path(row["input"]).stem[-1] for row in rows]
    assert len(rows) == 150
    assert sizes[:3] == [64, 64, 22]
    assert set(sizes[3:]) == {48}  # those that are drawn
    printed = [record.getMessage() for record in caplog.records if record.name == "predict"]
    assert len(printed) == 48 + 2
    assert printed[-2].strip() == "… and 102 more"


@pytest.mark.real
def test_lenet_predicts_mnist_digits_from_files(real_root: Path) -> None:
    """Predict test digits from files: as they are stored, and enlarged and black on white."""
    Path("run").mkdir()
    Path("as_stored").mkdir()
    Path("enlarged").mkdir()
    settings = ("model=lenet", f"data.root={real_root}", "trainer.max_epochs=1", "trainer.limit_train_batches=200")
    train.train_config(compose(*settings, "trainer.accelerator=cpu", "logger=none"), Path("run"))
    _, (images, labels) = datamodules.sources.load("mnist", real_root)
    for number in range(10):
        stored = Image.fromarray(images[number, 0].numpy())
        stored.save(f"as_stored/{number}.png")
        ImageOps.invert(stored.resize((100, 100), Image.Resampling.BICUBIC)).save(f"enlarged/{number}.png")
    for folder in ("as_stored", "enlarged"):
        predicted = [int(row["label"]) for row in predict_images(Path("run").resolve(), folder)]
        assert sum(ours == theirs for ours, theirs in zip(predicted, labels[:10].tolist(), strict=True)) >= 9


# --- malicious files ---------------------------------------------------------------------------------------------

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("name", ["drawn.png", "drawn.jpg", "drawn.eps"])
def test_postscript_does_not_start_ghostscript(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def start(command: list[str], *_: Any, **__: Any) -> None:
        started.append(command)
        raise OSError("Ghostscript is not to be started")

    monkeypatch.setattr("subprocess.check_call", start)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")
    Path(name).write_bytes(POSTSCRIPT)
    with Image.open(name) as file, pytest.raises(OSError, match="Ghostscript"):
        file.load()  # Pillow alone starts Ghostscript
    assert started.pop()
    with pytest.raises(ValueError, match="is not an image"):
        load_image(Path(name), **CIFAR10)
    assert started == []


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png(name: str, width: int, height: int, color_type: int, bits: int, *chunks: bytes) -> None:
    """Write a PNG that holds a header and ``chunks`` only, and no pixels unless they are in ``chunks``."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0))
    Path(name).write_bytes(b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + png_chunk(b"IEND", b""))


def write_tiled_tiff(name: str, size: int, tile: int) -> None:
    """Write a TIFF of ``size`` x ``size`` pixels whose only tile claims ``tile`` x ``tile`` pixels."""
    entries = {256: size, 257: size, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 324: 8 + 2 + 120 + 4, 325: 9}
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    head = struct.pack("<2sHIH", b"II", 42, 8, len(entries))
    Path(name).write_bytes(head + table + bytes(4) + zlib.compress(b""))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("png", "13000 x 13000 is more than 67,108,864 pixels"),
        ("png, 16 bits", "13000 x 13000 is more than 67,108,864 pixels"),
        ("gif", "12000 x 12000 is more than 67,108,864 pixels"),
        ("ppm", "12000 x 12000 is more than 67,108,864 pixels"),
        ("tile", "26000 x 26000 is more than 67,108,864 pixels"),
        ("text", "Decompressed data too large"),
        ("profile", "Decompressed data too large"),
    ],
)
def test_decompression_bomb_is_refused_before_decoding(kind: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zlib.compress(bytes(80_000_000), 9)
    if kind.startswith("png"):
        write_png("bomb", 13000, 13000, 6, 16 if "16" in kind else 8)
    elif kind == "gif":
        Image.new("L", (1, 1)).save("bomb", "gif")
        raw = Path("bomb").read_bytes()
        Path("bomb").write_bytes(raw[:6] + struct.pack("<HH", 12000, 12000) + raw[10:])
    elif kind == "ppm":
        Path("bomb").write_bytes(b"P6 12000 12000 255\n")
    elif kind == "tile":
        write_tiled_tiff("bomb", 64, 26000)
    elif kind == "text":
        write_png("bomb", 8, 8, 2, 8, png_chunk(b"zTXt", b"Comment\0\0" + bomb))
    else:
        write_png("bomb", 8, 8, 2, 8, png_chunk(b"iCCP", b"icc\0\0" + bomb))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load_prepare", lambda _: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match=f"bomb is not an image: {reason}"):
        load_image(Path("bomb"), **CIFAR10)


def test_jpeg_of_108_million_pixels_is_read_at_reduced_size() -> None:
    Image.new("L", (12000, 9000), 200).save("photo.jpg")
    pixels, notes = load_image(Path("photo.jpg"), **CIFAR10)
    assert notes == ["12000 x 9000 resized"]
    assert pixels[:, 16].eq(200).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fifo", "socket", "directory", "device"])
def test_file_that_is_not_regular_is_refused_without_waiting(kind: str) -> None:
    script = "import sys; from pathlib import Path; from datamodules.image_files import load_image\n"
    script += "try: load_image(Path(sys.argv[1]), (3, 32, 32), False, False)\nexcept ValueError as e: print(e)"
    if kind == "fifo":
        os.mkfifo("x.png")
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind("x.png")
    elif kind == "directory":
        Path("x.png").mkdir()
    else:
        Path("x.png").symlink_to("/dev/zero")
    path = str(Path("x.png").resolve())
    try:
        done = subprocess.run([sys.executable, "-c", script, path], cwd=PROJECT, capture_output=True, timeout=100)
    except subprocess.TimeoutExpired:
        pytest.fail("load_image waits")
    assert done.stdout.decode() == f"{path} is not an image: not a regular file\n"


# --- predictions.csv ---------------------------------------------------------------------------------------------


def test_undecodable_file_name_is_escaped_in_predictions_csv(run: Path) -> None:
    """Control characters in a name are escaped too."""
    for name in (os.fsdecode(b"caf\xe9.png"), "\x1b[31mred\n.png", "$x^{.png"):
        draw_digit(3).save(name)
    Path(os.fsdecode(b"no\xe9.png")).write_bytes(b"no image")
    with pytest.raises(predict.FilesSkipped) as skipped:
        predict_images(run, "*.png", output=Path("answers").resolve())
    assert "no\\udce9.png" in str(skipped.value)
    inputs = [row["input"] for row in read_rows(Path("answers"))]
    assert inputs == ["\\x1b[31mred\\n.png", "$x^{.png", "caf\\udce9.png"]
    assert Path("answers/predictions.png").stat().st_size > 1000


def test_full_disk_keeps_the_old_predictions(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(60):
        draw_digit(number % 10).save(f"{number}.png")
    predict_images(run, "[0-9].png")
    before = (run / "predictions/predictions.csv").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            predict_images(run, "*.png")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (run / "predictions/predictions.csv").read_bytes() == before
    assert sorted(path.name for path in (run / "predictions").iterdir()) == ["predictions.csv", "predictions.png"]
