"""Reading picture files: pictures as 8-bit RGB, label files as the numbers they hold."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from detectron2.data.detection_utils import read_image
from numpy.typing import NDArray
from PIL import Image, ImageOps

# What Pillow raises on files that are missing, truncated, or no pictures at all.
_READ_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_EXIF_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)


def read_rgb(path: str | Path) -> NDArray[np.uint8]:
    """Reads a picture as a viewer would show it: (H, W, 3) uint8 RGB.

    EXIF orientation is applied, transparent pixels are laid on white, one channel becomes grey and
    16 bits become 8. Of an animation, the first frame is taken.

    Raises:
        ValueError: if the file is missing or no complete picture; the message names it.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except _READ_ERRORS as error:
        raise ValueError(f"cannot read image file {path}: {error}") from error


def read_values(path: str | Path) -> NDArray:
    """Reads a label file as it is: its numbers, or the indices of its palette.

    Returns:
        (H, W), or (H, W, C) if it holds colours, of the file's dtype; EXIF orientation is applied.

    Raises:
        ValueError: if the file is missing or no complete picture; the message names it.
    """
    try:
        return read_image(path)
    except _READ_ERRORS as error:
        raise ValueError(f"cannot read label file {path}: {error}") from error


def picture_size(path: str | Path) -> tuple[int, int]:
    """Height and width of a picture as `read_rgb` returns it, from the file's header alone.

    Raises:
        ValueError: if the file cannot be read; the message names it.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_EXIF_ORIENTATION) in _TURNED
    except _READ_ERRORS as error:
        raise ValueError(f"cannot read image file {path}: {error}") from error
    return (width, height) if turned else (height, width)


def as_rgb(array: NDArray) -> NDArray[np.uint8]:
    """Checks a picture given as an array.

    Raises:
        ValueError: if it is not (H, W, 3) uint8.
    """
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise ValueError(
            f"a picture must be (H, W, 3) uint8 RGB; got {array.dtype} of shape {array.shape}"
        )
    return np.ascontiguousarray(array)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_eight_bits(np.asarray(image))).convert("RGB")
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _to_eight_bits(values: NDArray) -> NDArray[np.uint8]:
    """Grey values of more than 8 bits: 0..65535 is the full range unless nothing exceeds 255."""
    values = np.nan_to_num(values.astype(np.float64))
    if values.max(initial=0) > 255:
        values = values / 257
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
