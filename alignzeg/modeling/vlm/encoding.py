"""One pass over images: what goes into it, and what comes out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

# A strip costs a network no more than this many squares.
_MOST_SQUARES = 4
_KEPT: ContextVar[bool] = ContextVar("kept", default=False)


@contextmanager
def keeping_size() -> Iterator[None]:
    """Inside it `resized` leaves images as they are: the caller has resized them."""
    token = _KEPT.set(True)
    try:
        yield
    finally:
        _KEPT.reset(token)


@dataclass(frozen=True)
class EncodedImage:
    """One pass over a batch of images, from which dense features and regions are both read.

    Attributes:
        dense: (B, D, Hv, Wv) features of places in the text space, not normalised.
        states: what enters each of the last blocks, each (B, 1+P, W); empty unless regions are
            read by MaskGuidedTokens.
        features: (B, C, Hv, Wv) before they were mapped to the text space, not normalised; None
            where the network has no such map.
    """

    dense: Tensor
    states: tuple[Tensor, ...] = ()
    features: Tensor | None = None


def resized(
    image: Tensor, side: int, unit: tuple[int, int], interpolation: str = "bicubic"
) -> Tensor:
    """Images at the resolution that a network reads, aspect kept.

    Args:
        image: (B, 3, H, W) RGB in 0..255.
        side: the shorter side, in pixels; less for strips, whose area is at most that of 4 squares
            of this side and whose longer side is at most 16 times as long.
        unit: rows and columns of pixels that the sides must be multiples of.
        interpolation: "bicubic" or "bilinear".

    Returns:
        (B, 3, h, w) float32 in 0..255.

    Raises:
        ValueError: if the shape is not (B, 3, H, W).
    """
    if image.ndim != 4 or image.shape[1] != 3:
        raise ValueError(f"images must be (B, 3, H, W) RGB in 0..255; got {tuple(image.shape)}")
    if _KEPT.get():
        return image.float()
    size = resized_to((image.shape[2], image.shape[3]), side, unit)
    image = image.float()
    if size == tuple(image.shape[-2:]):
        return image
    image = F.interpolate(image, size=size, mode=interpolation, align_corners=False, antialias=True)
    return image.clamp(0, 255)


def resized_to(size: tuple[int, int], side: int, unit: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns that `resized` makes of an image of `size`; arguments as there."""
    short, long = sorted(size)
    scale = min(
        side / short,
        side * (_MOST_SQUARES / (short * long)) ** 0.5,
        side * _MOST_SQUARES**2 / long,
    )
    rows, columns = (
        max(1, round(length * scale / step)) * step for length, step in zip(size, unit, strict=True)
    )
    return rows, columns


def check_masks(mask_logits: Tensor, dense: Tensor) -> None:
    """Refuses masks that are not (B, Q, h, w) with the B of (B, D, Hv, Wv) features.

    Raises:
        ValueError: naming both shapes.
    """
    if mask_logits.ndim != 4 or mask_logits.shape[0] != dense.shape[0]:
        raise ValueError(
            f"mask_logits must be ({dense.shape[0]}, Q, h, w); got {tuple(mask_logits.shape)}"
        )
