"""Detectron2's colour augmentation by tables: the same values from the same random numbers."""

from __future__ import annotations

import random

import cv2
import numpy as np
from detectron2.projects.point_rend import ColorAugSSDTransform
from numpy.typing import NDArray

_VALUES = np.arange(256, dtype=np.uint8)
# Hues that OpenCV gives 8-bit images: half degrees.
_HUES = 180


class ColorJitter(ColorAugSSDTransform):
    """Random brightness, contrast, saturation and hue of RGB images, as SSD.

    A value of 8 bits has 256 outcomes: these are computed, and looked up for every pixel. Images
    and random numbers drawn are those of Detectron2's `ColorAugSSDTransform`, to the bit.

    Source: SSD (arXiv 1512.02325), by Detectron2.
    """

    def __init__(self) -> None:
        super().__init__(img_format="RGB")

    def apply_image(self, img: NDArray[np.uint8], interp: str | None = None) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB to the same shape; `interp` means nothing here."""
        del interp
        img = self.brightness(img)
        if random.randrange(2):
            return self.hue(self.saturation(self.contrast(img)))
        return self.contrast(self.hue(self.saturation(img)))

    def convert(
        self, img: NDArray[np.uint8], alpha: float = 1, beta: float = 0
    ) -> NDArray[np.uint8]:
        """Values times alpha plus beta, in 0 to 255."""
        table = super().convert(_VALUES, alpha, beta)
        return cv2.LUT(np.ascontiguousarray(img), table).astype(np.uint8, copy=False)

    def saturation(self, img: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Scales the saturation, in half of the cases."""
        if not random.randrange(2):
            return img
        alpha = random.uniform(self.saturation_low, self.saturation_high)
        return _by_channel(img, 1, super().convert(_VALUES, alpha=alpha))

    def hue(self, img: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Shifts the hue, in half of the cases."""
        if not random.randrange(2):
            return img
        shift = random.randint(-self.hue_delta, self.hue_delta)
        return _by_channel(img, 0, ((_VALUES.astype(int) + shift) % _HUES).astype(np.uint8))


def _by_channel(
    img: NDArray[np.uint8], channel: int, table: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """The image with one channel of hue, saturation and value replaced by a table."""
    tables = np.stack([_VALUES] * 3, axis=-1)[:, None]
    tables[:, 0, channel] = table
    parts = cv2.LUT(cv2.cvtColor(np.ascontiguousarray(img), cv2.COLOR_RGB2HSV), tables)
    return cv2.cvtColor(parts, cv2.COLOR_HSV2RGB).astype(np.uint8, copy=False)
