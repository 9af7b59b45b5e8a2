"""Regions of the pixels without a human label, as pure functions. R regions, H x W pixels."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from skimage.measure import label as connected
from skimage.segmentation import felzenszwalb
from torch import Tensor

# Proposals brought to full size at once.
_AT_ONCE = 16


def superpixel_regions(
    image: NDArray[np.uint8], hidden: NDArray[np.bool_], scale: float, min_area: int
) -> NDArray[np.bool_]:
    """Connected areas of hidden pixels, whole, and the superpixels in them.

    Args:
        image: (H, W, 3) RGB.
        hidden: (H, W), pixels without a human label.
        scale: of the superpixels; more makes them larger.
        min_area: pixels that a region needs.

    Returns:
        (R, H, W), none of them twice, each connected.

    Source: superpixels of Felzenszwalb and Huttenlocher (IJCV 2004).
    """
    segments = felzenszwalb(image, scale=scale, sigma=0.8, min_size=min_area)
    areas = connected(hidden, connectivity=1)
    pieces = connected(np.where(hidden, segments + 1, 0), connectivity=1)
    found: dict[bytes, NDArray[np.bool_]] = {}
    for parts in (areas, pieces):
        sizes = np.bincount(parts.ravel())
        for number in np.flatnonzero(sizes >= max(min_area, 1)):
            if number:
                region = parts == number
                found.setdefault(np.packbits(region).tobytes(), region)
    return np.stack(list(found.values())) if found else np.zeros((0, *hidden.shape), dtype=bool)


def proposal_regions(
    mask_logits: Tensor, hidden: NDArray[np.bool_], min_share: float, min_area: int
) -> NDArray[np.bool_]:
    """The hidden part of mask proposals that lie mostly on hidden pixels.

    Args:
        mask_logits: (Q, h, w) of the whole image.
        hidden: (H, W), pixels without a human label.
        min_share: of a mask's pixels that must be hidden, in [0, 1].
        min_area: hidden pixels that a region needs.

    Returns:
        (R, H, W).
    """
    kept = []
    for part in mask_logits.float().split(_AT_ONCE) if len(mask_logits) else ():
        full = F.interpolate(part[None], hidden.shape, mode="bilinear", align_corners=False)[0]
        masks = (full > 0).cpu().numpy()
        inside = masks & hidden
        areas = inside.sum((1, 2))
        enough = (areas >= max(min_area, 1)) & (areas >= min_share * masks.sum((1, 2)))
        kept.append(inside[enough])
    return np.concatenate(kept) if kept else np.zeros((0, *hidden.shape), dtype=bool)
