"""Find what is written on a photographed sheet of paper, whatever its gray, its light and its lines."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

SIDE = 128  # pixels of the longer side while the ink is looked for; smaller images keep their size
BORDER = 0.06  # of each side: where there is paper only
LEAST_CONTRAST = 0.08  # of ink, as a part of the brightness of its paper; less is a blank sheet


def find_ink(image: Image.Image) -> tuple[Image.Image, bool] | None:
    """Return an image of the ink alone, in mode L, black where there is none, and whether it is darker than its paper.

    The paper is a plane of brightness through the border of the image, for each color, because light falls off from
    one side to the other. Ink is what differs from it by more than the noise of the border. Ruled lines, which cross
    the whole sheet, and specks are left out.

    Args:
        image: in mode L or RGB, of any size.

    Returns:
        None for a blank sheet.
    """
    image = image.convert("RGB")
    if max(image.size) > SIDE:
        image = image.copy()
        image.thumbnail((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=None)
    pixels = np.asarray(image, np.float32) / 255
    paper = _paper(pixels)
    darker, brighter = ((paper - pixels) / paper.clip(0.1)).max(2), (pixels - paper).max(2)
    is_dark = _peak(darker) * paper.mean() > _peak(brighter)
    ink = _without_lines(darker if is_dark else brighter)
    noise = 1.4826 * np.median(np.abs(ink[_border(ink.shape)]))
    peak = _peak(ink)
    if peak < max(LEAST_CONTRAST, 6 * noise):
        return None
    threshold = max(0.3 * peak, min(4 * noise, 0.6 * peak))
    ink = np.where(_without_specks(ink > threshold), ink, 0)
    if not ink.any():
        return None
    shown = ((ink - threshold / 2) / (peak - threshold / 2)).clip(0, 1)
    return Image.fromarray((255 * shown).round().astype(np.uint8)), bool(is_dark)


def _border(shape: tuple[int, ...]) -> np.ndarray:
    inner = np.zeros(shape[:2], bool)
    margins = [max(1, round(BORDER * size)) for size in shape[:2]]
    inner[tuple(slice(margin, -margin) for margin in margins)] = True
    return ~inner


def _paper(pixels: np.ndarray) -> np.ndarray:
    """Return the brightness of the paper, ``(H, W, 3)``: a plane through the border, without what stands out there."""
    height, width, _ = pixels.shape
    y, x = np.mgrid[-1 : 1 : 1j * height, -1 : 1 : 1j * width]
    places = np.stack([np.ones_like(x), x, y], 2).astype(np.float32)
    used = border = _border(pixels.shape)
    for _ in range(4):
        plane, *_ = np.linalg.lstsq(places[used], pixels[used], rcond=None)
        paper = places @ plane
        away = np.abs(pixels - paper).max(2)
        used = border & (away <= max(2.5 * np.median(away[border]), 0.02))
    return paper


def _peak(values: np.ndarray) -> float:
    """Return the contrast of the strongest pixels: thin strokes fill a hundredth of a sheet."""
    return float(np.quantile(values, 0.995))


def _without_lines(ink: np.ndarray) -> np.ndarray:
    """Subtract thin rows and columns of ink that reach from one edge of the sheet to the other."""
    for axis in (1, 0):
        middle = np.median(ink, axis, keepdims=True).clip(0)
        ends = max(2, ink.shape[axis] // 20)
        first, last = np.split(ink, [ends], axis)[0], np.split(ink, [-ends], axis)[1]
        crosses = np.minimum(np.median(first, axis, keepdims=True), np.median(last, axis, keepdims=True)) > middle / 2
        ink = ink - np.where(crosses, middle, 0)
    return ink


def _without_specks(mask: np.ndarray) -> np.ndarray:
    """Keep the largest connected part, and those of at least a tenth of its pixels."""
    inside = torch.from_numpy(mask)[None, None].float()
    labels = torch.arange(1, mask.size + 1, dtype=torch.float32).view_as(inside) * inside
    while True:
        spread = F.max_pool2d(labels, 3, 1, 1) * inside
        if torch.equal(spread, labels):
            break
        labels = spread
    sizes = torch.bincount(labels.long().flatten())
    sizes[0] = 0
    large = sizes >= max(4, int(0.1 * sizes.max()))
    return large[labels.long()][0, 0].numpy() & mask
