"""Images that are handed over in memory: whatever kind they are, as 8-bit RGB."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from alignzeg.data.pictures import eight_bits, read_rgb, to_rgb

_CHANNELS = (1, 3, 4)
_KNOWN = (
    "an image is a file name, the bytes of a file, a file object, a PIL image, an array (H, W), "
    "(H, W, 1), (H, W, 3) or (H, W, 4), or a tensor, also with the channels first"
)


def as_rgb(given: Any) -> NDArray[np.uint8]:
    """An image of any kind as (H, W, 3) uint8 RGB.

    Channels are taken as RGB or RGBA; transparent pixels are laid on white. What cv2.imread returns
    is BGR, which the numbers do not show: turn it around first, `array[..., ::-1]`.

    Args:
        given: a file name; the bytes of an image file, or a file object opened to read these; a PIL
            image of any mode; an array (H, W), (H, W, 1), (H, W, 3) or
            (H, W, 4); a tensor of these shapes, or with the channels first. Integers are 0..255,
            or 16 bits as in `eight_bits`; floats are 0..1; bool is black and white.

    Raises:
        ValueError: on anything else; the message names the shape, dtype or range.
    """
    if isinstance(given, (str, os.PathLike)):
        path = os.fspath(given)
        if str(path).startswith(("http://", "https://")):
            raise ValueError(f"{path} is an address; download the image and give the file")
        return read_rgb(path)
    if isinstance(given, (bytes, bytearray, memoryview)) or hasattr(given, "read"):
        return _from_file(given)
    if isinstance(given, Image.Image):
        try:
            return np.array(to_rgb(given))
        except (ValueError, OSError) as error:
            raise ValueError(f"cannot use the PIL image of mode {given.mode}: {error}") from error
    if isinstance(given, torch.Tensor):
        return _from_array(_tensor_values(given))
    if isinstance(given, np.ndarray):
        return _from_array(np.asarray(given))
    raise ValueError(f"{_KNOWN}; got {type(given).__name__}")


def _from_file(given: Any) -> NDArray[np.uint8]:
    """An image from the bytes of its file, or from what reads them."""
    content = given
    if hasattr(given, "read"):
        name = getattr(given, "name", "") or type(given).__name__
        try:
            content = given.read()
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read the file object {name}: {error}") from error
        if isinstance(content, str):
            raise ValueError(f"the file object {name} gives text; open it with mode 'rb'")
        if not content:
            raise ValueError(f"the file object {name} is at its end; go back: .seek(0)")
    try:
        return read_rgb(io.BytesIO(content))
    except ValueError as error:
        raise ValueError(f"{len(content)} bytes are no image file that can be read") from error


def _tensor_values(tensor: torch.Tensor) -> NDArray:
    """The tensor as an array with its channels last."""
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()
    if tensor.ndim == 3 and tensor.shape[0] in _CHANNELS:
        if tensor.shape[2] in _CHANNELS:
            raise ValueError(
                f"a tensor of shape {tuple(tensor.shape)} may have its channels first or last; "
                "give it as an array, which has them last"
            )
        tensor = tensor.permute(1, 2, 0)
    return tensor.numpy()


def _from_array(values: NDArray) -> NDArray[np.uint8]:
    shape, dtype = values.shape, values.dtype
    if values.ndim not in (2, 3) or 0 in shape or (values.ndim == 3 and shape[2] not in _CHANNELS):
        first = values.ndim == 3 and shape[0] in _CHANNELS
        hint = "; move the channels last: array.transpose(1, 2, 0)" if first else ""
        raise ValueError(f"{_KNOWN}; got {dtype} of shape {shape}{hint}")
    if dtype.kind == "b":
        values = np.where(values, np.uint8(255), np.uint8(0))
    elif dtype.kind == "f":
        values = _from_unit(values)
    elif dtype.kind in "iu":
        try:
            values = eight_bits(values)
        except ValueError as error:
            raise ValueError(f"cannot use the {dtype} image of shape {shape}: {error}") from error
    else:
        raise ValueError(f"an image holds numbers; got {dtype} of shape {shape}")
    channels = 1 if values.ndim == 2 else shape[2]
    if channels == 1:
        values = values.reshape(shape[:2])
    return np.array(to_rgb(Image.fromarray(np.ascontiguousarray(values))))


def _from_unit(values: NDArray) -> NDArray[np.uint8]:
    """Floats in 0..1 as 8 bits; no other range, as what is in memory is often normalised."""
    low, high = float(values.min()), float(values.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(
            f"a float image must be in 0 to 1, not normalised; this one has values {low:g} to "
            f"{high:g}, shape {values.shape}"
        )
    return eight_bits(values)
