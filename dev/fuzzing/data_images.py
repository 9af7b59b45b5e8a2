"""Images of every kind in files and in memory, for dev/fuzz_data.py."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from alignzeg.data.input_images import as_rgb
from alignzeg.data.pictures import check_image, read_rgb
from fuzzing.data_lists import ReadCase

# What is made of (H, W, 3) uint8 colours: the thing, and the image that it shows; None: refuse.
_Made = tuple[Any, NDArray | None]


def _grey(rgb: NDArray) -> NDArray:
    values = rgb[..., 0].copy()
    values.flat[0], values.flat[-1] = 255, 0  # the whole range, so that the depth is clear
    return values


def _three(grey: NDArray) -> NDArray:
    return np.stack([grey] * 3, -1)


def _on_white(rgb: NDArray, alpha: NDArray) -> NDArray:
    share = alpha[..., None] / 255
    return np.round(rgb * share + 255 * (1 - share)).astype(np.uint8)


def _alpha(rgb: NDArray) -> NDArray:
    return np.where(np.arange(rgb.shape[1]) % 2, 255, 0).astype(np.uint8)[None].repeat(len(rgb), 0)


def _rgba(rgb: NDArray) -> NDArray:
    return np.dstack([rgb, _alpha(rgb)])


def _with(values: NDArray, value: float) -> NDArray:
    values = values.copy()
    values.flat[0] = value
    return values


MEMORY: dict[str, Callable[[NDArray], _Made]] = {
    "array": lambda x: (x, x),
    "array, not contiguous": lambda x: (x[:, ::-1], x[:, ::-1]),
    "array, read only": lambda x: (
        np.broadcast_to(x[:1, :1], x.shape),
        np.broadcast_to(x[:1, :1], x.shape),
    ),
    "grey": lambda x: (_grey(x), _three(_grey(x))),
    "grey, 1 channel": lambda x: (_grey(x)[..., None], _three(_grey(x))),
    "alpha": lambda x: (_rgba(x), _on_white(x, _alpha(x))),
    "int64": lambda x: (x.astype(np.int64), x),
    "uint16": lambda x: (_three(_grey(x)).astype(np.uint16) * 257, _three(_grey(x))),
    "12 bits": lambda x: (_grey(x).astype(np.uint16) * 16, None),
    "float": lambda x: (x / 255, x),
    "float16": lambda x: ((x / 255).astype(np.float16), x),
    "bool": lambda x: (x[..., 0] > 99, _three(np.where(x[..., 0] > 99, 255, 0))),
    "float 0..255": lambda x: (_with(x.astype(np.float32), 200), None),
    "normalised": lambda x: (_with(x / 127 - 1, -1), None),
    "NaN": lambda x: (_with(x / 255, np.nan), None),
    "negative": lambda x: (_with(x.astype(np.int32), -1), None),
    "complex": lambda x: (x.astype(np.complex64), None),
    "text": lambda x: (x.astype(str), None),
    "channels first": lambda x: (x.transpose(2, 0, 1), None),
    "5 channels": lambda x: (np.dstack([x, x[..., :2]]), None),
    "2 channels": lambda x: (x[..., :2], None),
    "batch": lambda x: (x[None], None),
    "empty": lambda x: (x[:0], None),
    "nested list": lambda x: (x.tolist(), None),
    "nothing": lambda x: (None, None),  # noqa: ARG005 (whatever the colours are)
    "number": lambda x: (len(x), None),
    "tensor CHW": lambda x: (torch.from_numpy(x).permute(2, 0, 1), x),
    "tensor HWC": lambda x: (torch.from_numpy(x), x),
    "tensor, grey": lambda x: (torch.from_numpy(_grey(x)), _three(_grey(x))),
    "tensor, 1 channel": lambda x: (torch.from_numpy(_grey(x))[None], _three(_grey(x))),
    "tensor, float": lambda x: (torch.from_numpy(x).permute(2, 0, 1) / 255, x),
    "tensor, bfloat16": lambda x: ((torch.from_numpy(x) > 99).bfloat16(), np.where(x > 99, 255, 0)),
    "tensor, gradient": lambda x: ((torch.from_numpy(x) / 255).requires_grad_(), x),
    "tensor, alpha": lambda x: (
        torch.from_numpy(_rgba(x)).permute(2, 0, 1),
        _on_white(x, _alpha(x)),
    ),
    "tensor, normalised": lambda x: (torch.from_numpy(_with(x / 127 - 1, -1)), None),
    "tensor, ambiguous": lambda x: (torch.from_numpy(x[:3]).permute(0, 1, 2)[:, :5], None),
    "tensor, batch": lambda x: (torch.from_numpy(x).permute(2, 0, 1)[None], None),
    "PIL": lambda x: (Image.fromarray(x), x),
    "PIL L": lambda x: (Image.fromarray(_grey(x)), _three(_grey(x))),
    "PIL RGBA": lambda x: (Image.fromarray(_rgba(x)), _on_white(x, _alpha(x))),
    "PIL 1": lambda x: (Image.fromarray(_grey(x) > 99), _three(np.where(_grey(x) > 99, 255, 0))),
    "PIL 16": lambda x: (Image.fromarray(_grey(x).astype(np.uint16) * 257), _three(_grey(x))),
    "PIL F": lambda x: (Image.fromarray((_grey(x) / 255).astype(np.float32)), _three(_grey(x))),
    "PIL F signed": lambda x: (Image.fromarray(_grey(x).astype(np.float32) - 128), None),
}


def _pil(suffix: str, **options: Any) -> Callable[[Path, NDArray], tuple[Path, NDArray]]:
    def save(folder: Path, values: NDArray) -> tuple[Path, NDArray]:
        Image.fromarray(values).save(folder / f"image{suffix}", **options)
        return folder / f"image{suffix}", values

    return save


_TURNS = {1: 0, 3: 2, 6: -1, 8: 1}


def _turned(suffix: str) -> Callable[[Path, NDArray, random.Random], tuple[Path, NDArray | None]]:
    def save(folder: Path, rgb: NDArray, rng: random.Random) -> tuple[Path, NDArray | None]:
        path, tag = folder / f"image{suffix}", rng.choice(list(_TURNS))
        exif = Image.Exif()
        exif[0x0112] = tag
        options = {"tiffinfo": {0x0112: tag}} if suffix == ".tif" else {"exif": exif}
        Image.fromarray(rgb).save(path, **options)
        return path, np.rot90(rgb, _TURNS[tag])

    return save


def _deep(
    make: Callable[[NDArray], NDArray], suffix: str, fits: bool
) -> Callable[[Path, NDArray, random.Random], tuple[Path, NDArray | None]]:
    def save(
        folder: Path,
        rgb: NDArray,
        rng: random.Random,  # noqa: ARG001
    ) -> tuple[Path, NDArray | None]:
        path, grey = folder / f"image{suffix}", _grey(rgb)
        Image.fromarray(make(grey)).save(path)
        return path, _three(grey) if fits else None

    return save


def _colour16(
    factor: int, suffix: str
) -> Callable[[Path, NDArray, random.Random], tuple[Path, NDArray | None]]:
    """Pillow writes no colours of 16 bits; OpenCV does."""

    def save(
        folder: Path,
        rgb: NDArray,
        rng: random.Random,  # noqa: ARG001
    ) -> tuple[Path, NDArray | None]:
        path, rgb = folder / f"image{suffix}", _with(rgb, 255)
        cv2.imwrite(str(path), rgb[..., ::-1].astype(np.uint16) * factor)
        return path, rgb if factor == 257 else None

    return save


FILES: dict[str, Callable[[Path, NDArray, random.Random], tuple[Path, NDArray | None]]] = {
    "png": lambda f, x, _: _pil(".png")(f, x),
    "tiff": lambda f, x, _: _pil(".tif", compression="tiff_lzw")(f, x),
    "bmp": lambda f, x, _: _pil(".bmp")(f, x),
    "webp": lambda f, x, _: _pil(".webp", lossless=True)(f, x),
    "png, alpha": lambda f, x, _: (_pil(".png")(f, _rgba(x))[0], _on_white(x, _alpha(x))),
    "png, grey": lambda f, x, _: (_pil(".png")(f, _grey(x))[0], _three(_grey(x))),
    "png, turned": _turned(".png"),
    "tiff, turned": _turned(".tif"),
    "png 16": _deep(lambda x: x.astype(np.uint16) * 257, ".png", True),
    "tiff 16": _deep(lambda x: x.astype(np.uint16) * 257, ".tif", True),
    "png 16 with 8 bits": _deep(lambda x: x.astype(np.uint16), ".png", True),
    "png 10 bits": _deep(lambda x: x.astype(np.uint16) * 4, ".png", False),
    "png 12 bits": _deep(lambda x: x.astype(np.uint16) * 16, ".png", False),
    "tiff 14 bits": _deep(lambda x: x.astype(np.uint16) * 64, ".tif", False),
    "float 0..1": _deep(lambda x: (x / 255).astype(np.float32), ".tif", True),
    "float 0..255": _deep(lambda x: x.astype(np.float32), ".tif", True),
    "float signed": _deep(lambda x: (x.astype(np.float32) - 128) * 8, ".tif", False),
    "float wide": _deep(lambda x: x.astype(np.float32) * 99, ".tif", False),
    "float NaN": _deep(lambda x: _with((x / 255).astype(np.float32), np.nan), ".tif", False),
    "float beyond 1": _deep(lambda x: (x / 128).astype(np.float32), ".tif", False),
    "int32": _deep(lambda x: x.astype(np.int32) * 257, ".tif", True),
    "int32 wide": _deep(lambda x: x.astype(np.int32) * 9999, ".tif", False),
    "int32 signed": _deep(lambda x: x.astype(np.int32) - 128, ".tif", False),
    "colours, 16 bits": _colour16(257, ".png"),
    "colours, 12 bits": _colour16(16, ".png"),
    "colours, 8 of 16 bits": _colour16(1, ".png"),
    "tiff colours, 12 bits": _colour16(16, ".tif"),
}


def image_case(folder: Path, rng: random.Random) -> ReadCase:
    """One image, in a file or in memory."""
    size = (rng.randrange(6, 20), rng.randrange(6, 20), 3)
    rgb = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, size).astype(np.uint8)
    what = rng.choice((*MEMORY, *FILES))
    if what in MEMORY:
        given, expected = MEMORY[what](rgb)
        return ReadCase(f"in memory: {what}", lambda: as_rgb(given), expected, close)
    path, expected = FILES[what](folder, rgb, rng)

    def read() -> NDArray:
        size, found = check_image(path), read_rgb(path)
        if size != found.shape[:2]:
            raise RuntimeError(f"size {size} by the header, {found.shape} when it is read")
        return found

    return ReadCase(f"file: {what}", read, expected, close)


def close(found: NDArray, right: NDArray) -> bool:
    """Whether two images are the same but for rounding."""
    same = found.shape == right.shape and found.dtype == np.uint8
    return same and int(np.abs(found.astype(int) - right.astype(int)).max()) <= 1
