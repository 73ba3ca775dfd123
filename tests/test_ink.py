"""Digits are read from photographs of paper: 120 generated pictures in twelve styles."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from cli.build import load_run
from datamodules import sources
from datamodules.ink import find_ink
from tests.conftest import run

SIDE = 400
Y, X = np.mgrid[0:SIDE, 0:SIDE] / SIDE


def strokes(digit: np.ndarray, size: int = 280, corner: tuple[int, int] = (60, 60)) -> np.ndarray:
    """Return how much of each pixel of a sheet is covered by ink, ``(SIDE, SIDE)``."""
    sheet = np.zeros((SIDE, SIDE))
    top, left = corner
    enlarged = Image.fromarray(digit).resize((size, size), Image.Resampling.BICUBIC)
    sheet[top : top + size, left : left + size] = np.asarray(enlarged) / 255
    return (2 * (sheet - 0.25)).clip(0, 1)


def sheet_of(digit: np.ndarray, paper: float, ink: tuple[int, int, int], **place: int) -> np.ndarray:
    covered = strokes(digit, **place)[..., None]
    return paper * (1 - covered) + np.array(ink) * covered


def photographs(digit: np.ndarray, generator: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a photograph of a digit, ``(SIDE, SIDE, 3)``, in each style."""
    dark, noise = (30, 30, 30), generator.normal(0, 18, (SIDE, SIDE, 1))
    yield "white paper", sheet_of(digit, 250, dark)
    yield "light gray paper", sheet_of(digit, 190, dark)
    yield "mid-gray paper", sheet_of(digit, 120, (25, 25, 25))
    yield "light from the left", sheet_of(digit, 230, dark) * (1 - 0.55 * X)[..., None]
    yield "light from a corner", sheet_of(digit, 220, dark) * (0.35 + 0.325 * (X + Y))[..., None]
    yield "noise", sheet_of(digit, 180, (40, 40, 40)) + noise
    yield "blue ink", sheet_of(digit, 210, (40, 60, 180))
    yield "red ink", sheet_of(digit, 200, (200, 50, 60))
    yield "chalk on a board", sheet_of(digit, 50, (220, 220, 215)) + noise / 3
    ruled = sheet_of(digit, 225, (30, 30, 60))
    lines = (np.arange(SIDE) % 60 >= 30) & (np.arange(SIDE) % 60 < 33)
    ruled[lines] = np.minimum(ruled[lines], (150, 170, 215))
    yield "ruled paper", ruled
    corner = tuple(generator.integers(20, 260, 2))
    yield "a small digit", sheet_of(digit, 170, (50, 50, 50), size=110, corner=corner) + noise / 3
    yield "pencil", sheet_of(digit, 200, (130, 130, 135)) * (1 - 0.2 * Y)[..., None] + noise / 4


@pytest.mark.real
@pytest.mark.slow
def test_digits_on_photographs_are_read(real_root: Path) -> None:
    settings = (f"data.root={real_root}", "logger=none", "callbacks.pictures=null")
    run("run", *settings)
    _, datamodule, model = load_run("run", "last")
    _, (images, labels) = sources.load("mnist", real_root)
    generator = np.random.default_rng(0)
    wrong = []
    for label in range(10):
        digit = images[generator.choice(torch.nonzero(labels == label)[:500, 0].numpy()), 0].numpy()
        for style, pixels in photographs(digit, generator):
            photo = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1))
            exif = Image.Exif()
            if style == "light gray paper":  # a camera held sideways
                photo, exif[0x0112] = photo.transpose(Image.Transpose.ROTATE_90), 6
            photo.save("photo.jpg", quality=88, exif=exif)
            image, _ = datamodule.load_image(Path("photo.jpg"))
            with torch.inference_mode():
                predicted = int(model(datamodule.normalize(image[None])).argmax())
            if predicted != label:
                wrong.append((style, label, predicted))
    assert len(wrong) <= 5, wrong


def test_ink_is_what_was_written_and_nothing_else() -> None:
    """A cross on a sheet whose light falls off, with a line from edge to edge and a speck."""
    sheet = np.full((SIDE, SIDE), 220.0)
    sheet[300:303] = 150
    sheet[350:354, 30:34] = 40
    sheet[100:260, 190:210] = sheet[170:190, 120:280] = 30
    ink, is_dark = find_ink(Image.fromarray((sheet * (1 - 0.5 * X)).astype(np.uint8)))
    assert is_dark
    scale = ink.width / SIDE
    left, top, right, bottom = (edge / scale for edge in ink.getbbox())
    assert (left, top, right, bottom) == pytest.approx((120, 100, 280, 260), abs=6)
    covered = np.asarray(ink) > 128
    assert covered.sum() / scale**2 == pytest.approx(160 * 20 * 2 - 20 * 20, rel=0.15)


@pytest.mark.parametrize("bright", [False, True])
def test_ink_may_be_darker_or_brighter_than_the_paper(bright: bool) -> None:
    sheet = np.full((100, 100), 40 if bright else 200, np.uint8)
    sheet[30:70, 45:55] = 200 if bright else 40
    ink, is_dark = find_ink(Image.fromarray(sheet))
    assert is_dark is not bright
    assert ink.getbbox() == (45, 30, 55, 70)
