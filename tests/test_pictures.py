"""Digits as people have them: in files of every kind and size, and a run that is asked about them."""

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
from datamodules.image_files import load_image
from tests.conftest import PROJECT, read_predictions

MNIST = {"shape": (1, 28, 28), "dark_background": True, "center": True}
CIFAR10 = {"shape": (3, 32, 32), "dark_background": False, "center": False}


def digit(label: int, size: int = 100, x: float = 0.5, y: float = 0.5, part: float = 0.7) -> Image.Image:
    """A printed digit, white on black: ``part`` of the picture high, its middle at ``x`` and ``y``."""
    picture = Image.new("L", (size, size))
    font = ImageFont.load_default(size=part * size)
    ImageDraw.Draw(picture).text((x * size, y * size), str(label), fill=255, font=font, anchor="mm")
    return picture


def load(self: datamodules.MNIST) -> Any:
    """Printed digits in MNIST's size, about where MNIST's digits are: 400 for training, 100 for the test."""
    generator = np.random.default_rng(0)
    labels = torch.arange(10).repeat(50)
    places = generator.uniform([0.45, 0.45, 0.85], [0.55, 0.55, 1.05], (500, 3))
    images = [np.array(digit(label, 28, *place)) for label, place in zip(labels.tolist(), places, strict=True)]
    images = torch.from_numpy(np.stack(images))[:, None]
    return (images[:400], labels[:400]), (images[400:], labels[400:])


def test_a_photo_read_at_a_fraction_of_its_size_looks_the_same() -> None:
    """Turned by its EXIF mark as well; the same pixels in a PNG file are read in full."""
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 256, (15, 20, 3), dtype=np.uint8)
    photo = Image.fromarray(colours).resize((1600, 1200), Image.Resampling.BICUBIC)
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
    """A small CNN that learnt MNIST when it was printed digits."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datamodules.MNIST, "load", load)
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        settings = ("data.val_size=0", "data.batch_size=20", "trainer.max_epochs=6", "optimizer.lr=0.01")
        cfg = compose(*settings, "trainer.accelerator=cpu", "logger=none", "threads=1")
        assert train.train(cfg, folder)["metrics"]["test/acc"] >= 0.99
    return folder


def ask(run: Path, images: Any, to: str | Path = "predictions") -> list[dict[str, Any]]:
    settings = {"run": str(run), "checkpoint": "last", "images": str(images), "csv": None, "split": None, "limit": 6}
    return read_predictions(predict.predict(OmegaConf.create({**settings, "output": str(to)}), run))


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "predictions.csv", newline="") as lines:
        return list(csv.DictReader(lines))


# --- reading a file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("grey.png", lambda picture: picture),
        ("colour.png", lambda picture: picture.convert("RGB")),
        ("palette.png", lambda picture: picture.convert("P")),
        ("alpha.png", lambda picture: picture.convert("RGBA")),
        ("grey_alpha.png", lambda picture: picture.convert("LA")),
        ("grey.gif", lambda picture: picture),
        ("grey.bmp", lambda picture: picture),
        ("16_bit.png", lambda picture: Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)),
        ("16_bit.tif", lambda picture: Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)),
    ],
)
def test_a_lossless_file_of_the_right_size_is_the_tensor(name: str, change: Any) -> None:
    stored = torch.randint(256, (28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    stored[0] = stored[-1] = stored[:, 0] = stored[:, -1] = 0
    change(Image.fromarray(stored.numpy())).save(name)
    pixels, notes = load_image(Path(name), **MNIST)
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, stored[None])
    assert notes == []


def test_a_photograph_of_the_right_size_is_the_tensor() -> None:
    stored = torch.randint(256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(stored.permute(1, 2, 0).numpy()).save("photo.png")
    pixels, notes = load_image(Path("photo.png"), **CIFAR10)
    assert torch.equal(pixels, stored)
    assert notes == []


def test_dark_on_bright_is_inverted_and_what_is_transparent_is_white() -> None:
    white_on_black = digit(4)
    white_on_black.save("white_on_black.png")
    ImageOps.invert(white_on_black).save("black_on_white.png")
    ink = Image.new("RGBA", white_on_black.size, "black")
    ink.putalpha(white_on_black)
    ink.save("ink_on_nothing.png")
    expected, notes = load_image(Path("white_on_black.png"), **MNIST)
    assert notes == ["100 x 100 resized"]
    for name, said in [("black_on_white", []), ("ink_on_nothing", ["transparent parts made white"])]:
        pixels, notes = load_image(Path(f"{name}.png"), **MNIST)
        assert torch.equal(pixels, expected)
        assert notes == [*said, "inverted", "100 x 100 resized"]


def test_a_photograph_is_never_inverted() -> None:
    Image.new("RGB", (64, 64), "white").save("white.png")
    assert load_image(Path("white.png"), **CIFAR10)[0].unique().tolist() == [255]


def test_a_rotated_file_is_turned_as_it_says() -> None:
    upright = digit(7).convert("RGB")
    upright.save("upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save("rotated.png", exif=exif)
    expected, _ = load_image(Path("upright.png"), **MNIST)
    assert torch.equal(load_image(Path("rotated.png"), **MNIST)[0], expected)


def test_a_digit_is_brought_to_the_size_and_the_place_of_mnist() -> None:
    digit(8, size=300, x=0.2, y=0.8, part=0.2).save("far_off.png")
    pixels = load_image(Path("far_off.png"), **MNIST)[0][0].double()
    seen = (pixels > 0).nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).max() == 20
    weights = pixels / pixels.sum()
    places = torch.arange(28).double()
    for marginal in (weights.sum(0), weights.sum(1)):
        assert (marginal @ places).item() == pytest.approx(13.5, abs=0.5)


def test_a_picture_keeps_its_proportions() -> None:
    Image.new("RGB", (64, 32), "red").save("wide.png")
    pixels, _ = load_image(Path("wide.png"), **CIFAR10)
    assert torch.equal(
        pixels[0] == 255, torch.arange(32)[:, None].expand(32, 32).clamp(8, 23) == torch.arange(32)[:, None]
    )
    assert pixels[1:].max() == 0


@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 3000), (1, 28)])
@pytest.mark.parametrize("like", [MNIST, CIFAR10])
def test_a_picture_of_any_proportions_is_seen(size: tuple[int, int], like: dict) -> None:
    Image.new("L", size, 100).save("odd.png")
    pixels, notes = load_image(Path("odd.png"), **like)
    assert pixels.shape == like["shape"]
    assert pixels.max() == 100
    assert notes == [f"{size[0]} x {size[1]} resized"]


@pytest.mark.parametrize("colour", ["black", "white"])
def test_an_empty_page_shows_nothing(colour: str) -> None:
    Image.new("L", (50, 50), colour).save("page.png")
    with pytest.raises(ValueError, match=r"page\.png shows nothing"):
        load_image(Path("page.png"), **MNIST)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n half of one"])
def test_a_file_that_is_no_picture_is_named(content: bytes) -> None:
    Path("digit.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"digit\.png is not an image"):
        load_image(Path("digit.png"), **MNIST)


def test_a_torn_file_is_no_picture() -> None:
    digit(3, size=300).save("whole.png")
    Path("torn.png").write_bytes(Path("whole.png").read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"torn\.png is not an image"):
        load_image(Path("torn.png"), **MNIST)


# --- asking a run ------------------------------------------------------------------------------------------------


def test_a_folder_a_pattern_and_one_file(run: Path) -> None:
    Path("digits/more").mkdir(parents=True)
    for label in range(10):
        picture = digit(label, size=60 + 20 * label, x=0.4, y=0.6, part=0.5)
        (ImageOps.invert(picture) if label % 2 else picture).save(f"digits/{label}.{'png' if label < 5 else 'jpg'}")
    digit(9).save("digits/more/nine [1].png")
    assert [row["label"] for row in ask(run, "digits")] == list("0123456789")
    assert [row["input"] for row in ask(run, "digits/*.png")] == [f"digits/{label}.png" for label in range(5)]
    assert [row["label"] for row in ask(run, "digits/**/*.png")] == list("012349")
    assert [row["label"] for row in ask(run, "digits/more/nine [1].png")] == ["9"]


def test_the_table_is_what_the_net_says(run: Path) -> None:
    _, (images, _) = load(None)
    Path("digits").mkdir()
    for number in range(5):
        Image.fromarray(images[number, 0].numpy()).save(f"digits/{number}.png")
    ask(run, "digits", Path("to").resolve())
    table = rows(Path("to"))
    assert list(table[0]) == ["input", "label", "probability", "top 3"]
    _, datamodule, model = load_run(str(run), "last")
    with torch.inference_mode():
        shares = model.net(datamodule.normalize(images[:5])).softmax(1)
    for row, share in zip(table, shares, strict=True):
        best = share.sort(descending=True)
        assert row["label"] == str(best.indices[0].item())
        assert float(row["probability"]) == pytest.approx(best.values[0].item(), abs=1e-6)
        assert 0 <= float(row["probability"]) <= 1
        expected = [f"{index} {value:.4f}" for index, value in zip(best.indices[:3], best.values[:3], strict=True)]
        assert row["top 3"] == "; ".join(expected)


def test_what_is_no_picture_is_named_and_the_others_are_predicted(run: Path) -> None:
    Path("digits").mkdir()
    for label in (1, 2):
        digit(label).save(f"digits/{label}.png")
    Path("digits/empty.png").touch()
    Path("digits/notes.txt").write_text("about the digits")
    with pytest.raises(predict.FilesSkipped, match="2 of 4 files skipped: digits/empty") as error:
        ask(run, "digits", Path("to").resolve())
    assert str(error.value).endswith("digits/empty.png, digits/notes.txt")
    assert error.value.exit_code == 1
    assert [(row["input"], row["label"]) for row in rows(Path("to"))] == [("digits/1.png", "1"), ("digits/2.png", "2")]
    assert Path("to/predictions.png").is_file()


@pytest.mark.slow
def test_as_typed_with_a_file_that_is_no_picture(run: Path, shell) -> None:
    Path("my digits").mkdir()
    digit(6).save("my digits/6.png")
    Path("my digits/notes.png").write_text("about the digits")
    answer = shell(f"run={run}", "images=my digits/*.png", f"output={Path('to').resolve()}", script="predict.py")
    assert answer.returncode == 1
    assert answer.stderr == "error: 1 of 2 files skipped: my digits/notes.png\n"
    assert "skipped: my digits/notes.png is not an image" in answer.stdout
    assert [row["label"] for row in rows(Path("to"))] == ["6"]


def test_no_picture_at_all(run: Path) -> None:
    Path("notes.txt").write_text("no digits")
    Path("nothing").mkdir()
    with pytest.raises(ValueError, match="none of the 1 files is an image"):
        ask(run, "*.txt", Path("to").resolve())
    for nothing in ("nothing", "nowhere.png", "*.jpg"):
        with pytest.raises(FileNotFoundError, match="there is no such file"):
            ask(run, nothing, Path("to").resolve())
    assert not Path("to").exists()


def test_a_row_of_numbers_is_no_picture(run: Path) -> None:
    Path("points.csv").write_text("1,2\n")
    settings = {
        "run": str(run),
        "checkpoint": "last",
        "images": None,
        "csv": "points.csv",
        "split": None,
        "output": "to",
    }
    with pytest.raises(ValueError, match=r"trained on inputs of shape \(1, 28, 28\), not on rows"):
        predict.predict(OmegaConf.create(settings), run)


def test_the_picture_shows_the_digits(run: Path) -> None:
    Path("digits").mkdir()
    digit(5, size=28, part=0.9).save("digits/five.png")
    digit(5, size=28, part=0.9).save("digits/$five^{$.png")  # no formula
    ask(run, "digits", Path("to").resolve())
    drawn = np.asarray(Image.open("to/predictions.png").convert("L"))
    assert drawn.shape[1] > drawn.shape[0]  # two, side by side
    for half in np.array_split(drawn, 2, axis=1):  # on white paper, mostly dark pictures of bright digits
        assert 0.3 < (half < 20).mean() < 0.8
        middle = half[half.shape[0] // 3 : -half.shape[0] // 3, half.shape[1] // 3 : -half.shape[1] // 3]
        assert 0.1 < (middle > 200).mean() < 0.7


def test_more_pictures_than_are_drawn(run: Path) -> None:
    Path("digits").mkdir()
    for number in range(50):
        digit(number % 10, size=40).save(f"digits/{number:02}.png")
    ask(run, "digits", Path("to").resolve())
    assert [row["label"] for row in rows(Path("to"))] == list("0123456789" * 5)
    assert Path("to/predictions.png").is_file()


@pytest.mark.real
def test_lenet_reads_mnist_from_files(real_root: Path) -> None:
    """Test digits as files: as they are, and enlarged, black on white."""
    Path("run").mkdir()
    Path("as_stored").mkdir()
    Path("enlarged").mkdir()
    settings = ("model=lenet", f"data.root={real_root}", "trainer.max_epochs=1", "trainer.limit_train_batches=200")
    train.train(compose(*settings, "trainer.accelerator=cpu", "logger=none"), Path("run"))
    _, (images, labels) = datamodules.sources.load("mnist", real_root)
    for number in range(10):
        stored = Image.fromarray(images[number, 0].numpy())
        stored.save(f"as_stored/{number}.png")
        ImageOps.invert(stored.resize((100, 100), Image.Resampling.BICUBIC)).save(f"enlarged/{number}.png")
    for folder in ("as_stored", "enlarged"):
        read = [int(row["label"]) for row in ask(Path("run").resolve(), folder)]
        assert sum(ours == theirs for ours, theirs in zip(read, labels[:10].tolist(), strict=True)) >= 9


# --- files that are hostile --------------------------------------------------------------------------------------

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("name", ["drawn.png", "drawn.jpg", "drawn.eps"])
def test_postscript_starts_no_program(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def start(command: list[str], *_: Any, **__: Any) -> None:
        started.append(command)
        raise OSError("Ghostscript is not to be started")

    monkeypatch.setattr("subprocess.check_call", start)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")
    Path(name).write_bytes(POSTSCRIPT)
    with Image.open(name) as file, pytest.raises(OSError, match="Ghostscript"):
        file.load()  # Pillow on its own would
    assert started.pop()
    with pytest.raises(ValueError, match="is not an image"):
        load_image(Path(name), **CIFAR10)
    assert started == []


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png(name: str, width: int, height: int, color_type: int, bits: int, *chunks: bytes) -> None:
    """An image with no pixels in it beyond what ``chunks`` have."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0))
    Path(name).write_bytes(b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + png_chunk(b"IEND", b""))


def write_tiled_tiff(name: str, size: int, tile: int) -> None:
    """An image ``size`` x ``size``, deflated in one tile ``tile`` x ``tile``."""
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
def test_a_bomb_is_refused_before_it_is_decoded(kind: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_photo_of_a_hundred_million_pixels_is_read_at_a_fraction_of_its_size() -> None:
    Image.new("L", (12000, 9000), 200).save("photo.jpg")
    pixels, notes = load_image(Path("photo.jpg"), **CIFAR10)
    assert notes == ["12000 x 9000 resized"]
    assert pixels[:, 16].eq(200).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fifo", "socket", "directory", "device"])
def test_what_is_no_regular_file_is_skipped_at_once(kind: str) -> None:
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
        pytest.fail("it waits")
    assert done.stdout.decode() == f"{path} is not an image: not a regular file\n"


# --- predictions.csv ---------------------------------------------------------------------------------------------


def test_a_name_that_is_no_text_is_written_with_its_bytes(run: Path) -> None:
    """And one with control characters reaches no terminal as it is."""
    for name in (os.fsdecode(b"caf\xe9.png"), "\x1b[31mred\n.png", "$x^{.png"):
        digit(3).save(name)
    Path(os.fsdecode(b"no\xe9.png")).write_bytes(b"no image")
    with pytest.raises(predict.FilesSkipped) as skipped:
        ask(run, "*.png", to=Path("answers").resolve())
    assert "no\\udce9.png" in str(skipped.value)
    inputs = [row["input"] for row in rows(Path("answers"))]
    assert inputs == ["\\x1b[31mred\\n.png", "$x^{.png", "caf\\udce9.png"]
    assert Path("answers/predictions.png").stat().st_size > 1000


def test_a_full_disk_leaves_the_old_answers(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(60):
        digit(number % 10).save(f"{number}.png")
    ask(run, "[0-9].png", to=Path("answers").resolve())
    before = Path("answers/predictions.csv").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            ask(run, "*.png", to=Path("answers").resolve())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert Path("answers/predictions.csv").read_bytes() == before
    assert sorted(path.name for path in Path("answers").iterdir()) == ["predictions.csv", "predictions.png"]
