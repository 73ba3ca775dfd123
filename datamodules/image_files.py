"""Image files as a data set would have stored them."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from runs.format import printable

# The only formats that Pillow may look for, whatever a file is called: for PostScript it starts Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
IMG_EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# More than a full-frame camera takes (61 million). Decoding and converting needs up to 15 bytes a pixel: 1 GB.
MAX_PIXELS = 2**26
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # Pillow's limit; here it is an error
TILE_WIDTH, TILE_LENGTH = 322, 323  # tags of TIFF 6.0, section 15


def load_image(path: Path, shape: Sequence[int], dark_background: bool, center: bool) -> tuple[Tensor, list[str]]:
    """Read an image file of any size and mode as uint8 ``(C, H, W)``; also return what was done to it.

    Args:
        path: the file. Transparent parts become white.
        shape: ``(C, H, W)`` of the data set.
        dark_background: the data set shows bright things on black; an image with a bright border is inverted.
        center: cut the thing out, scale it to 20/28 of the size and put its center of mass in the middle, as MNIST's
            authors did (http://yann.lecun.com/exdb/mnist). An image that has the right size already is left as it is.

    Raises:
        ValueError: the file is not an image, is too large, or is empty where a thing is to be cut out.
    """
    channels, height, width = shape
    try:
        if not path.is_file():  # opening a FIFO waits for a writer
            raise ValueError("not a regular file")
        with Image.open(path, formats=FORMATS) as opened:
            size = f"{opened.width} x {opened.height}"
            if not center:  # a JPEG can be read at a half to an eighth of its size: a photo in a seventh of the time
                opened.draft(None, (4 * max(height, width),) * 2)
            _check_size(opened)
            ImageOps.exif_transpose(opened, in_place=True)
            picture: Image.Image = opened
            if picture.mode.startswith("I"):  # 16 bits, which convert() clips at 255
                picture = Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
            plain = picture.mode in ("L", "RGB") and "transparency" not in picture.info
            picture = picture.copy() if plain else picture.convert("RGBA")
    except Exception as error:  # Pillow's decoders raise anything
        raise ValueError(printable(f"{path} is not an image: {error}")) from error
    notes = []
    if picture.mode == "RGBA" and np.asarray(picture.getchannel("A")).min() < 255:
        notes.append("transparent parts made white")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    converted = picture.convert("L" if channels == 1 else "RGB")
    if dark_background:
        edge = np.asarray(converted.convert("L"))
        border = np.concatenate([edge[0], edge[-1], edge[:, 0], edge[:, -1]])
        if border.mean() > 127:
            converted = ImageOps.invert(converted)
            notes.append("inverted")
    if converted.size != (width, height):
        notes.append(f"{size} resized")
        if center:
            converted = _center(converted, width, path)
        else:
            converted = ImageOps.pad(_fitted(converted, width, height), (width, height))
    pixels = torch.from_numpy(np.array(converted)).view(height, width, channels)
    return pixels.permute(2, 0, 1).contiguous(), notes


def _check_size(picture: Image.Image) -> None:
    """Raise ValueError for an image that would take too much memory, before any of it is decoded."""
    sizes = [picture.size]
    if isinstance(picture, TiffImageFile):  # a tile is decoded as a whole, and may be larger than the image
        sizes.append((picture.tag_v2.get(TILE_WIDTH, 0), picture.tag_v2.get(TILE_LENGTH, 0)))
    for width, height in sizes:
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width} x {height} is more than {MAX_PIXELS:,} pixels")


def _fitted(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Scale to fit, keeping proportions and at least one pixel (ImageOps.contain rounds a thin image to none)."""
    scale = min(width / picture.width, height / picture.height)
    size = max(1, round(scale * picture.width)), max(1, round(scale * picture.height))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _center(picture: Image.Image, size: int, path: Path) -> Image.Image:
    ink = picture.point(lambda value: 255 if value > 64 else 0).getbbox()
    thing = _fitted(picture.crop(ink), size * 20 // 28, size * 20 // 28)
    weights = np.asarray(thing, np.float64)
    if ink is None or not weights.any():
        raise ValueError(f"{printable(str(path))} shows nothing bright on a dark background or dark on a bright one")
    rows, columns = np.indices(weights.shape)
    left = round(size / 2 - 0.5 - (weights * columns).sum() / weights.sum())
    top = round(size / 2 - 0.5 - (weights * rows).sum() / weights.sum())
    canvas = Image.new("L", (size, size))
    canvas.paste(thing, (min(max(left, 0), size - thing.width), min(max(top, 0), size - thing.height)))
    return canvas
