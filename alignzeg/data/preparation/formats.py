"""Official label formats in, label files out: palette PNG, .mat, run-length masks, 16-bit TIFF."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as run_length
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from alignzeg.data.pictures import read_values


def read_index_image(path: str) -> NDArray:
    """(H, W) values of a one-channel or palette image, not its colours.

    Raises:
        ValueError: if the file cannot be read or holds colours.
    """
    values = read_values(path)
    if values.ndim != 2:
        raise ValueError(
            f"label file {path} holds colours, shape {values.shape}; it must hold class ids "
            "(one channel, or a palette): take the file of the official archive"
        )
    return values


def read_matlab(path: str, *fields: str) -> NDArray:
    """(H, W) label map of a MATLAB v5 file, found by following field names.

    Raises:
        ValueError: if the file cannot be read, is of MATLAB 7.3, or lacks a field.
    """
    try:
        value: Any = loadmat(path, variable_names=[fields[0]])[fields[0]]
        for field in fields[1:]:
            value = value[field][0, 0]  # a MATLAB structure is an array of one record
    except NotImplementedError as error:
        raise ValueError(
            f"{path} is a MATLAB 7.3 file; the official ones are of version 5: unpack the official "
            "archive anew, or save it with '-v7'"
        ) from error
    except (KeyError, IndexError) as error:
        raise ValueError(f"{path} does not hold {'.'.join(fields)}: {error}") from error
    except (OSError, ValueError, TypeError, MatReadError) as error:
        message = f"cannot read {path}: {error or 'no MATLAB file'}"
        raise ValueError(message) from error
    values = np.asarray(value)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"{path}: {'.'.join(fields)} has shape {values.shape}, not (H, W)")
    return values


def paint(size: tuple[int, int], annotations: Sequence[tuple[int, Any]]) -> NDArray[np.uint16]:
    """(H, W) map of COCO's run-length masks, each painted over those before it; 0 elsewhere.

    Raises:
        ValueError: if a mask is unreadable or of another size.
    """
    canvas = np.zeros(size, np.uint16)
    for value, given in annotations:
        try:
            plain = isinstance(given["counts"], list)
            mask = run_length.decode(run_length.frPyObjects(given, *size) if plain else given)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"a mask of category {value} is unreadable: {error}") from error
        if mask.shape != size:
            raise ValueError(f"a mask of category {value} is {mask.shape}, the image {size}")
        canvas[mask.astype(bool)] = value
    return canvas


def apply_table(values: NDArray, table: NDArray, path: str) -> NDArray:
    """Looks up every value; `path` is for the message.

    Raises:
        ValueError: if a value is outside the table.
    """
    if values.dtype == table.dtype == np.uint8 and len(table) == 256:
        return cv2.LUT(values, table)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= len(table):
        raise ValueError(
            f"{path} holds the values {low} to {high}; official ones are 0 to {len(table) - 1}"
        )
    return table[values]


def encode_png(labels: NDArray[np.uint8]) -> bytes:
    """A grey PNG with the ids as they are."""
    done, data = cv2.imencode(".png", np.ascontiguousarray(labels))
    if not done:
        raise ValueError(f"OpenCV cannot write a PNG of {labels.dtype} {labels.shape}")
    return data.tobytes()


def encode_tiff(labels: NDArray[np.uint16]) -> bytes:
    """A 16-bit TIFF, deflated."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(labels)).save(stream, "TIFF", compression="tiff_deflate")
    return stream.getvalue()
