"""Reading image files: images as 8-bit RGB, label files as the numbers they hold."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import EpsImagePlugin, Image, ImageOps
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

# A picture runs no program: Pillow would hand whatever holds PostScript to Ghostscript.
EpsImagePlugin.gs_binary = False
# What Pillow raises on files that are missing, truncated, or no images at all.
READ_ERRORS = (
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
# 16 bits of which less than a quarter of the range is used are taken for 10, 12 or 14 bits.
_SIXTEEN_BITS_FROM = 2**14
# A float image may leave 0 to 1 by this much, by rounding.
_SLACK = 1e-3


def read_rgb(path: str | Path) -> NDArray[np.uint8]:
    """Reads an image as a viewer would show it: (H, W, 3) uint8 RGB.

    EXIF orientation is applied, transparent pixels are laid on white, one channel becomes grey and
    other depths become 8 bits, see `eight_bits`. Of an animation, the first frame is taken.

    Raises:
        ValueError: if the file is missing or no complete image, or its values have no known range;
            the message names it.
    """
    try:
        with Image.open(path) as image:
            return np.array(to_rgb(image))
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ValueError(
            f"cannot read image file {path}: it has more than {limit:,} "
            "pixels; make it smaller, or cut it into parts"
        ) from error
    except READ_ERRORS as error:
        raise ValueError(f"cannot read image file {path}: {error}") from error


def read_values(path: str | Path) -> NDArray:
    """Reads a label file as it is: its numbers, or the indices of its palette.

    Returns:
        (H, W), or (H, W, C) if it holds colours, of the file's dtype; EXIF orientation is applied.

    Raises:
        ValueError: if the file is missing or no complete image, has several frames, or Pillow would
            give other numbers than those in it; the message names it.
    """
    try:
        with Image.open(path) as image:
            frames, kind = getattr(image, "n_frames", 1), _raw_mode(image)
            if frames > 1:
                raise ValueError(f"it has {frames} frames; a label file has one")
            if kind in ("L;2", "L;4"):
                raise ValueError(
                    f"it is grey of {kind[2]} bits, which are scaled when they are read; "
                    "save it with 8 bits"
                )
            if kind.endswith((";I", ";IR")):
                raise ValueError(
                    "its 0 means white, so that its numbers are turned around when they are read; "
                    "save it with 0 as black"
                )
            _load(image)
            return np.array(ImageOps.exif_transpose(image))
    except READ_ERRORS as error:
        raise ValueError(f"cannot read label file {path}: {error}") from error


def picture_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an image as `read_rgb` returns it, from the file's header alone.

    Raises:
        ValueError: if the file cannot be read; the message names it.
    """
    try:
        with Image.open(path) as image:
            return _size(image)
    except READ_ERRORS as error:
        raise ValueError(f"cannot read image file {path}: {error}") from error


def check_image(path: str | Path) -> tuple[int, int]:
    """As `picture_size`; an image of another depth than 8 bits is read, and so is its range.

    Raises:
        ValueError: as `read_rgb`, for the images that are read.
    """
    try:
        with Image.open(path) as image:
            size = _size(image)
            if _is_deep(image):
                to_rgb(image)
            return size
    except READ_ERRORS as error:
        raise ValueError(f"cannot read image file {path}: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as one of mode RGB, as `read_rgb` describes it.

    Raises:
        ValueError: if its values have no known range.
    """
    kind = _raw_mode(image)
    _load(image)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(eight_bits(np.asarray(image))).convert("RGB")
    if ";16" in kind:
        # Pillow keeps the upper 8 of 16 bits.
        colours = np.asarray(image)[..., : 3 if image.mode.startswith("RGB") else 1]
        highest = 256 * int(colours.max(initial=0)) + 255
        if highest < _SIXTEEN_BITS_FROM:
            raise ValueError(
                f"its 16 bits hold no value above {highest} of 65535, which would be nearly black; "
                "scale it to 8 bits, or to the whole range"
            )
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def eight_bits(values: NDArray) -> NDArray[np.uint8]:
    """Values of any range as 8 bits: integers in 0..255 as they are, others by their range.

    Known are integers in 0..65535 that go beyond 16383, as 10, 12 and 14 bits do not, and floats in
    0..1 or, beyond 16, in 0..255.

    Raises:
        ValueError: on any other range, or a value that is not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are NaN or infinite")
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    floating = np.issubdtype(values.dtype, np.floating)
    scale = 0.0
    if floating and -_SLACK <= low and high <= 1 + _SLACK:
        scale = 255.0
    elif low >= 0 and high <= 255 and (not floating or high >= 16):
        scale = 1.0
    elif low >= 0 and not floating and _SIXTEEN_BITS_FROM <= high <= 65535:
        scale = 1 / 257
    if not scale:
        known = "0 to 1 and 0 to 255" if floating else "0 to 255 and 16 bits used beyond 16383"
        raise ValueError(
            f"its values are {low:g} to {high:g} ({values.dtype}), and {known} are known; scale "
            "it to 8 bits"
        )
    return np.clip(np.round(values * scale), 0, 255).astype(np.uint8)


def _load(image: Image.Image) -> None:
    """Loads the values; a grey TIFF that is turned comes out of Pillow 13 scrambled without this.

    Pillow maps an uncompressed file into memory by the size that it has when it is turned.
    """
    name = getattr(image, "filename", "")
    if not isinstance(image, TiffImageFile) or not name:
        image.load()
        return
    image.filename = ""  # what has no name is not mapped
    try:
        image.load()
    finally:
        image.filename = name


def _size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    if isinstance(image, TiffImageFile):
        # Pillow turns these by itself, and some versions of it also the size in the header.
        width, height = image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]
        turned = image.tag_v2.get(_EXIF_ORIENTATION) in _TURNED
    else:
        turned = image.getexif().get(_EXIF_ORIENTATION) in _TURNED
    return (width, height) if turned else (height, width)


def _raw_mode(image: Image.Image) -> str:
    """How the values lie in the file, as Pillow's decoders call it; before it is loaded."""
    tiles = getattr(image, "tile", None)
    kind = tiles[0][3] if tiles else ""
    kind = kind[0] if isinstance(kind, tuple) and kind else kind
    return kind if isinstance(kind, str) else ""


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith(("I", "F")) or ";16" in _raw_mode(image)
