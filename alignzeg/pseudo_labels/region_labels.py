"""What a region shows, how sure that is, and a map of the regions that are sure enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Logits of a mask that is certain; the VLM asks only for more or less than one half.
_CERTAIN = 20.0
# Pixels of masks that are floating-point numbers at once.
_PIXELS_AT_ONCE = 2**25


@dataclass(frozen=True)
class Thresholds:
    """When a region is believed.

    Attributes:
        confidence: least probability of its name, in [0, 1].
        margin: least lead of that over the second name, in [0, 1].
        min_area: pixels.
        flips: whether the mirrored image must give the same name; the probabilities are then the
            mean of both.

    Raises:
        ValueError: if one of them is out of its range.
    """

    confidence: float = 0.9
    margin: float = 0.2
    min_area: int = 32
    flips: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.confidence <= 1 and 0 <= self.margin <= 1 and self.min_area >= 1):
            raise ValueError(
                "pseudo-labels need a confidence and a margin in [0, 1] and an area of 1 pixel or "
                f"more; got {self.confidence}, {self.margin} and {self.min_area}"
            )


@torch.no_grad()
def name_probs(
    vlm: Any, image: Tensor, regions: Tensor, text: Tensor, mirror: bool = False
) -> Tensor:
    """Probabilities of names for the regions of one image, by the frozen VLM in one pass.

    Memory does not grow with the number of regions: a few at a time become masks of logits.

    Args:
        vlm: see `VLM_REGISTRY`.
        image: (3, H, W) RGB in 0..255.
        regions: (R, H, W) bool, R >= 1, on any device.
        text: (K, D) unit-length prototypes of the names.
        mirror: whether image and regions are looked at in the mirror.

    Returns:
        (R, K) softmax of the scaled cosines.
    """
    encoded = vlm.encode_image((image.flip(-1) if mirror else image)[None])
    found = []
    for part in regions.split(max(1, _PIXELS_AT_ONCE // (image.shape[1] * image.shape[2]))):
        part = part.to(image.device)
        logits = torch.where(part.flip(-1) if mirror else part, _CERTAIN, -_CERTAIN)
        found.append(vlm.embed_regions(encoded, logits[None])[0])
    embeds = torch.cat(found)
    return (vlm.logit_scale * embeds @ text.T).softmax(dim=-1)


def choose(
    probs: Tensor, mirrored: Tensor | None, wanted: Tensor, thresholds: Thresholds
) -> tuple[Tensor, Tensor]:
    """The name of each region that is sure enough.

    Args:
        probs: (R, K).
        mirrored: (R, K), the same of the mirrored image; None: not asked.
        wanted: (K,) bool, names that may be given; a region whose best name is another gets none.
        thresholds: see there; the area is not looked at here.

    Returns:
        (R,) int64 name, -1 for none; (R,) confidence in [0, 1].
    """
    mean = probs if mirrored is None else (probs + mirrored) / 2
    first_two = mean.topk(min(2, mean.shape[1]), dim=1)
    confidence, names = first_two.values[:, 0], first_two.indices[:, 0]
    second = first_two.values[:, 1] if mean.shape[1] > 1 else torch.zeros_like(confidence)
    sure = (confidence >= thresholds.confidence) & (confidence - second >= thresholds.margin)
    if mirrored is not None:
        sure &= probs.argmax(1) == mirrored.argmax(1)
    return torch.where(sure & wanted[names], names, -1), confidence


def paint(
    regions: NDArray[np.bool_], names: NDArray[np.int64], confidence: NDArray[np.floating]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Regions as maps; where they overlap, the surest is on top.

    Args:
        regions: (R, H, W).
        names: (R,), below 0 for a region that is left out.
        confidence: (R,) in [0, 1].

    Returns:
        (H, W) name, -1 where there is none, and (H, W) confidence, 0 there.
    """
    size = regions.shape[1:]
    labels, sureness = np.full(size, -1, dtype=np.int64), np.zeros(size)
    # A stable order: equal confidences do not depend on the machine.
    for index in np.argsort(confidence, kind="stable"):
        if names[index] >= 0:
            labels[regions[index]] = names[index]
            sureness[regions[index]] = confidence[index]
    return labels, sureness
