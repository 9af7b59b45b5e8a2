"""Image files as Pillow opens them, with what it takes amiss or fails at put right."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from PIL import EpsImagePlugin, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import EXTRASAMPLES, IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from alignzeg.data.picture_kinds import how_to_convert, is_raw

logger = logging.getLogger(__name__)

# A picture runs no program: Pillow would hand whatever holds PostScript to Ghostscript.
EpsImagePlugin.gs_binary = False

_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = (5, 6, 7, 8)
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
# What a TIFF calls its bands beyond colour where they are transparency; 999 is Corel's.
_ALPHA = (1, 2, 999)
# The first image of a camera's raw file, which is a TIFF, is a small preview.
_SUBFILE, _SUB_IMAGES, _DNG_VERSION = 254, 330, 50706
# Parts of a PNG that a picture is shown by; others, such as texts, may be damaged.
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_SHOWN = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"iCCP", b"eXIf")
# A warning about the same file is given once, not in every epoch.
warn = lru_cache(maxsize=10_000)(logger.warning)


def file_name(path: Any) -> str:
    """What messages call a file, or a file object."""
    return str(path) if isinstance(path, (str, Path)) else str(getattr(path, "name", "the image"))


def unreadable(path: str | Path | IO[bytes], error: Exception) -> ValueError:
    """The error that names an image, the reason, and what to do where that is known."""
    hint = "" if is_raw(path) else how_to_convert(path, isinstance(error, UnidentifiedImageError))
    return ValueError(f"cannot read image file {file_name(path)}: {error}{hint and '; '}{hint}")


def open_picture(path: str | Path | IO[bytes]) -> Image.Image:
    """Opens an image; damaged parts of a PNG that say nothing of its pixels are left out."""
    preview = f"only a preview of a camera's raw data could be read; {how_to_convert('x.dng')}"
    if is_raw(path):
        raise ValueError(preview)
    try:
        image = Image.open(path)
    except (SyntaxError, ValueError, OSError, struct.error, zlib.error):
        content = _png(path)
        if not content:
            raise
        image = Image.open(io.BytesIO(_shown_parts(content)))
        warn(f"{file_name(path)}: parts of the file beside its pixels are damaged, and left out")
    if isinstance(image, TiffImageFile):
        tags = image.tag_v2
        if _DNG_VERSION in tags or (tags.get(_SUBFILE) == 1 and _SUB_IMAGES in tags):
            image.close()
            raise ValueError(preview)
    return image


def _png(source: str | Path | IO[bytes]) -> bytes:
    """The content of a PNG file; nothing if it is none."""
    if isinstance(source, (str, Path)):
        with open(source, "rb") as file:
            return _png(file)
    source.seek(0)
    start = source.read(len(_PNG))
    return start + source.read() if start == _PNG else b""


def _shown_parts(png: bytes) -> bytes:
    """A PNG file without the parts that a picture is not shown by, and without damaged ones."""
    kept, place = [_PNG], len(_PNG)
    while place + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, place)
        kind, chunk = png[place + 4 : place + 8], png[place : place + 12 + length]
        whole = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        # A damaged part of the pixels is left for the reader to refuse.
        if kind in _PNG_SHOWN and (whole or kind[:1].isupper()):
            kept.append(chunk)
        place += 12 + length
    return b"".join(kept)


def _orientation(image: Image.Image, name: str) -> int:
    """How an image is turned, 1 to 8 as in EXIF; 1 where its EXIF is too damaged to tell."""
    try:
        found: Any = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception as error:  # noqa: BLE001 (what viewers show must not fail here)
        warn(f"{name}: its EXIF data are damaged ({error}); it is taken as it lies")
        return 1
    found = found[0] if isinstance(found, tuple) and found else found
    return int(found) if isinstance(found, (int, float)) and found in _TURNS else 1


def upright(image: Image.Image, name: str) -> Image.Image:
    """The image turned as its EXIF says. ImageOps.exif_transpose fails on odd values of others."""
    turn = _TURNS.get(_orientation(image, name))
    return image if turn is None else image.transpose(turn)


def has_alpha(image: Image.Image) -> bool:
    """Whether some pixels may be transparent."""
    return "transparency" in image.info or image.mode in _WITH_ALPHA


def beyond_colour(image: Image.Image) -> tuple[bool, int]:
    """Whether the last channel may be transparency, and how many bands are neither.

    Pillow takes a TIFF's fourth band for transparency, such as near infrared, if it does not say.
    """
    file = getattr(image, "fp", None)
    if image.format == "JPEG2000" and image.mode in _WITH_ALPHA and file:
        file.seek(0)
        said = b"cdef" in file.read(2**16)  # the box that says what channels are
        return said, int(not said)
    if not isinstance(image, TiffImageFile):
        return True, 0
    extra = image.tag_v2.get(EXTRASAMPLES, ())
    extra = extra if isinstance(extra, tuple) else (extra,)
    if not extra and image.mode in _WITH_ALPHA:
        extra = (0,)
    alpha = bool(extra) and extra[0] in _ALPHA and image.mode in _WITH_ALPHA
    return alpha, len(extra) - alpha


def say_several(image: Image.Image, name: str) -> None:
    """Says that an image has several frames, but of a camera's JPEG, whose others are previews."""
    try:
        several = image.format != "MPO" and getattr(image, "is_animated", False)
    except Exception:  # noqa: BLE001 (a damaged second frame does not matter)
        several = True
    if several:
        warn(f"{name}: it holds several frames or pages; the first is taken")


def load(image: Image.Image) -> None:
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


def size_in_header(image: Image.Image, name: str) -> tuple[int, int]:
    """Height and width of an image as it is shown, before it is loaded."""
    width, height = image.size
    if isinstance(image, TiffImageFile):
        # Pillow turns these by itself, and some versions of it also the size in the header.
        width, height = image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]
        turned = image.tag_v2.get(_EXIF_ORIENTATION) in _TURNED
    else:
        turned = _orientation(image, name) in _TURNED
    return (width, height) if turned else (height, width)


def raw_mode(image: Image.Image) -> str:
    """How the values lie in the file, as Pillow's decoders call it; before it is loaded."""
    tiles = getattr(image, "tile", None)
    kind = tiles[0][3] if tiles else ""
    kind = kind[0] if isinstance(kind, tuple) and kind else kind
    return kind if isinstance(kind, str) else ""
