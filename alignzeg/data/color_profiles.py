"""Colours of an image's profile as sRGB, which is what networks are trained on."""

from __future__ import annotations

import io
import logging
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

logger = logging.getLogger(__name__)

# A profile that moves no colour by more, of 255, is sRGB in other words: nothing is changed then.
_SAME_COLOUR = 3
_warn = lru_cache(maxsize=10_000)(logger.warning)


def in_srgb(image: Image.Image, profile: bytes | None, name: str) -> Image.Image:
    """An image without transparency as RGB, by its ICC profile where that is not sRGB.

    A profile that is damaged, or of another kind of colours, is left aside with a warning, which
    calls the image by `name`.
    """
    if image.mode == "LAB":  # Pillow cannot convert it without
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(lab, srgb, "LAB", "RGB").apply(image)
    mode = image.mode if image.mode in ("L", "CMYK") else "RGB"
    try:
        transform = _to_srgb(profile, mode) if profile else None
    except Exception as error:  # noqa: BLE001 (ImageCms raises what a profile leads it to)
        reason = str(error) or type(error).__name__
        _warn(f"{name}: its colour profile cannot be used ({reason}); it is taken for sRGB")
        transform = None
    return image.convert("RGB") if transform is None else transform.apply(image.convert(mode))


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> Any:
    """What turns colours of a profile into sRGB; None where they are sRGB's already.

    Raises:
        Exception: whatever ImageCms raises, if the profile is damaged or not of this mode.
    """
    given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    transform = ImageCms.buildTransform(given, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode == "CMYK":
        return transform
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    probe = Image.fromarray(cube if mode == "RGB" else levels[None])
    before = np.asarray(probe.convert("RGB"), np.int16)
    moved = abs(np.asarray(transform.apply(probe), np.int16) - before).max()
    return None if moved <= _SAME_COLOUR else transform
