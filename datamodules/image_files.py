"""Read image files in the format of a data set."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from datamodules.ink import find_ink
from runs.format import printable

# The only formats that Pillow may open, whatever the name of a file. For PostScript it would start Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
IMG_EXTENSIONS: tuple[str, ...] = (".apng", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm")
IMG_EXTENSIONS += (".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
# More than a full-frame camera takes (61 million). Decoding and converting needs up to 15 bytes a pixel: 1 GB.
MAX_PIXELS = 2**26
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # Pillow's limit; here it is an error
TILE_WIDTH, TILE_LENGTH = 322, 323  # tags of TIFF 6.0, section 15
BITS, PHOTOMETRIC = 258, 262  # tags of TIFF 6.0, section 8
WHITE_IS_ZERO = 0


def load_image(path: Path, shape: Sequence[int], dark_background: bool, center: bool) -> tuple[Tensor, list[str]]:
    """Read an image file of any size and mode as uint8 ``(C, H, W)``. Also return what was done to it.

    Args:
        path: the file. Transparent parts become white.
        shape: ``(C, H, W)`` of the data set.
        dark_background: the data set shows bright objects on black. An image with a bright border is inverted.
        center: crop to the object, scale it to 20/28 of the size, and move its center of mass to the middle, as MNIST's
            authors did (http://yann.lecun.com/exdb/mnist). An image that already has the right size is left unchanged.

    Raises:
        ValueError: the file is not an image, is too large, does not say which of its numbers is white, or shows no
            object to crop to.
    """
    channels, height, width = shape
    image, size = _decode(path, None if center else 4 * max(height, width))
    notes = []
    if image.mode == "RGBA" and np.asarray(image.getchannel("A")).min() < 255:
        notes.append("transparent parts made white")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if center and image.size != (width, height):
        found = find_ink(image.convert("RGB"))
        if found is None:
            raise ValueError(f"{printable(str(path))}: no digit found, the sheet is blank")
        ink, is_dark = found
        notes += [*(["inverted"] if is_dark else []), f"{size} cropped and centered"]
        pixels = torch.from_numpy(np.array(_center(ink, width)))
        return pixels.expand(channels, -1, -1).contiguous(), notes
    converted = image.convert("L" if channels == 1 else "RGB")
    if dark_background and _has_bright_border(converted):
        converted = ImageOps.invert(converted)
        notes.append("inverted")
    if converted.size != (width, height):
        notes.append(f"{size} resized")
        converted = ImageOps.pad(_fit(converted, width, height), (width, height))
    pixels = torch.from_numpy(np.array(converted)).view(height, width, channels)
    return pixels.permute(2, 0, 1).contiguous(), notes


def _decode(path: Path, draft_size: int | None) -> tuple[Image.Image, str]:
    """Return an image in mode L, RGB or RGBA, and its size in the file as ``width x height``.

    Args:
        path: the file.
        draft_size: decode a JPEG at a half to an eighth of its size, with sides of at least this many pixels. For a
            photo that takes a seventh of the time.
    """
    try:
        if not path.is_file():  # opening a FIFO waits for a writer
            raise ValueError("not a regular file")
        with Image.open(path, formats=FORMATS) as opened:
            size = f"{opened.width} x {opened.height}"
            if draft_size:
                opened.draft(None, (draft_size, draft_size))
            _check_size(opened)
            deep = opened.format in ("PNG", "TIFF") and "16" in str([tile[3] for tile in opened.tile])
            ImageOps.exif_transpose(opened, in_place=True)
            image: Image.Image = opened
            if image.mode.startswith(("I", "F")):
                image = _to_8_bits(image)
            elif deep and image.mode.startswith("RGB"):  # Pillow keeps the upper 8 of 16 bits
                _check_not_dark(np.asarray(image.convert("RGB")), 15, 255)
            plain = image.mode in ("L", "RGB") and "transparency" not in image.info
            return image.copy() if plain else image.convert("RGBA"), size
    except UnidentifiedImageError as error:
        raise ValueError(printable(f"{path} is not an image")) from error
    except Exception as error:  # Pillow's decoders raise anything
        raise ValueError(printable(f"{path} is not an image: {error}")) from error


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Return an image of 16-bit or floating-point numbers in mode L, which convert() would clip.

    Raises:
        ValueError: the file does not say which number is white.
    """
    values = np.asarray(image)
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    if image.mode == "F":
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"its numbers go from {low:g} to {high:g}, and 0 is black and 1 white in such a file")
        scaled = (values * 255).round()
    elif image.mode == "I" and isinstance(image, TiffImageFile):
        raise ValueError(
            "its numbers are signed or have 32 bits, which does not say which one is white; save 8 or 16 bits"
        )
    elif (bits := tags.get(BITS, (16,))[0]) < 16:
        scaled = (values.astype(np.float32) * (255 / (2**bits - 1))).round()
    else:
        _check_not_dark(values, 4095, 65535)
        scaled = values // 257
    scaled = scaled.astype(np.uint8)
    return Image.fromarray(255 - scaled if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else scaled)


def _check_not_dark(values: np.ndarray, highest: int, white: int) -> None:
    """Raise ValueError for an image of 16 bits that uses 12 of them, and would be nearly black."""
    if 0 < values.max() <= highest:
        raise ValueError(
            f"its numbers end at {values.max()}, where {white} is white, which is nearly black: are they of 12 bits? "
            "save 8 bits, or scale them to 16"
        )


def _has_bright_border(image: Image.Image) -> bool:
    pixels = np.asarray(image.convert("L"))
    return bool(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).mean() > 127)


def _check_size(image: Image.Image) -> None:
    """Raise ValueError for an image that would take too much memory, before any of it is decoded."""
    sizes = [image.size]
    if isinstance(image, TiffImageFile):  # a tile is decoded as a whole, and may be larger than the image
        sizes.append((image.tag_v2.get(TILE_WIDTH, 0), image.tag_v2.get(TILE_LENGTH, 0)))
    for width, height in sizes:
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width} x {height} is more than {MAX_PIXELS:,} pixels")


def _fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scale to fit, keeping the proportions and at least one pixel. ImageOps.contain rounds a thin image to zero."""
    scale = min(width / image.width, height / image.height)
    size = max(1, round(scale * image.width)), max(1, round(scale * image.height))
    return image.resize(size, Image.Resampling.LANCZOS)


def _center(image: Image.Image, size: int) -> Image.Image:
    """Crop to what is not black, scale that to 20/28 of the size, and move its center of mass to the middle."""
    cropped = _fit(image.crop(image.getbbox()), size * 20 // 28, size * 20 // 28)
    weights = np.asarray(cropped, np.float64)
    rows, columns = np.indices(weights.shape)
    left = round(size / 2 - 0.5 - (weights * columns).sum() / weights.sum())
    top = round(size / 2 - 0.5 - (weights * rows).sum() / weights.sum())
    canvas = Image.new("L", (size, size))
    canvas.paste(cropped, (min(max(left, 0), size - cropped.width), min(max(top, 0), size - cropped.height)))
    return canvas
