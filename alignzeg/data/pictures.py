"""Reading image files: images as 8-bit RGB, label files as the numbers they hold.

This file and what it imports need numpy and Pillow only, as `projects/onnx/predict.py` reads
images with it where there is no PyTorch.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alignzeg.data.color_profiles import in_srgb
from alignzeg.data.picture_files import (
    beyond_colour,
    file_name,
    has_alpha,
    load,
    open_picture,
    raw_mode,
    say_several,
    size_in_header,
    unreadable,
    upright,
    warn,
)

# 16 bits of which less than a quarter of the range is used are taken for 10, 12 or 14 bits.
_SIXTEEN_BITS_FROM = 2**14
# A float image may leave 0 to 1 by this much, by rounding.
_SLACK = 1e-3


def read_rgb(path: str | Path | IO[bytes]) -> NDArray[np.uint8]:
    """Reads an image as a viewer would show it: (H, W, 3) uint8 RGB.

    EXIF orientation is applied, transparent pixels are laid on white, one channel becomes grey,
    colours of a colour profile become sRGB's, and other depths become 8 bits, see `eight_bits`. Of
    several frames the first is taken. What of these is damaged, or is dropped, is said in one line.

    Args:
        path: a file name, or a binary file object.

    Raises:
        ValueError: if the file is missing or no complete image, its values have no known range, or
            it is of a kind that is not read; the message names it.
    """
    name = file_name(path)
    try:
        with open_picture(path) as image:
            rgb = np.array(to_rgb(image, name))
            say_several(image, name)
            return rgb
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ValueError(
            f"cannot read image file {name}: it has more than {limit:,} "
            "pixels; make it smaller, or cut it into parts"
        ) from error
    except Exception as error:  # noqa: BLE001 (Pillow raises anything on a damaged file)
        raise unreadable(path, error) from error


def read_values(path: str | Path) -> NDArray:
    """Reads a label file as it is: its numbers, or the indices of its palette.

    Returns:
        (H, W), or (H, W, C) if it holds colours, of the file's dtype; EXIF orientation is applied.

    Raises:
        ValueError: if the file is missing or no complete image, has several frames, or Pillow would
            give other numbers than those in it; the message names it.
    """
    try:
        with open_picture(path) as image:
            frames, kind = getattr(image, "n_frames", 1), raw_mode(image)
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
            load(image)
            return np.array(upright(image, str(path)))
    except Exception as error:  # noqa: BLE001
        raise ValueError(f"cannot read label file {path}: {error}") from error


def picture_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an image as `read_rgb` returns it, from the file's header alone.

    Raises:
        ValueError: if the file cannot be read; the message names it.
    """
    try:
        with open_picture(path) as image:
            return size_in_header(image, str(path))
    except Exception as error:  # noqa: BLE001
        raise unreadable(path, error) from error


def check_image(path: str | Path) -> tuple[int, int]:
    """As `picture_size`; an image of another depth than 8 bits is read, and so is its range.

    Raises:
        ValueError: as `read_rgb`, for the images that are read.
    """
    try:
        with open_picture(path) as image:
            size = size_in_header(image, str(path))
            if _is_deep(image):
                to_rgb(image, str(path))
            return size
    except Exception as error:  # noqa: BLE001
        raise unreadable(path, error) from error


def to_rgb(image: Image.Image, name: str = "the image") -> Image.Image:
    """An image of any mode as one of mode RGB, as `read_rgb` describes it; `name` is for warnings.

    Raises:
        ValueError: if its values have no known range.
    """
    kind, (alpha, bands) = raw_mode(image), beyond_colour(image)
    load(image)
    profile = image.info.get("icc_profile")
    image = upright(image, name)
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(eight_bits(np.asarray(image)))
    elif ";16" in kind:
        # Pillow keeps the upper 8 of 16 bits.
        colours = np.asarray(image)[..., : 3 if image.mode.startswith("RGB") else 1]
        highest = 256 * int(colours.max(initial=0)) + 255
        if highest < _SIXTEEN_BITS_FROM:
            raise ValueError(
                f"its 16 bits hold no value above {highest} of 65535, which would be nearly black; "
                "scale it to 8 bits, or to the whole range"
            )
    if bands:
        warn(f"{name}: {bands} of its bands are neither colour nor transparency, and left out")
    if alpha and has_alpha(image):
        image = image.convert("RGBA")
        shown = in_srgb(image.convert("RGB"), profile, name)
        shown.putalpha(image.getchannel("A"))
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, shown).convert("RGB")
    return in_srgb(image, profile, name)


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


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith(("I", "F")) or ";16" in raw_mode(image)
