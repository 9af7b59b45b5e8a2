"""Mask proposals of one image, and a sheet that shows the surest of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from alignzeg.fonts import font

_TILE = 192
_COLUMNS = 4
_LINE = 22


@dataclass(frozen=True)
class ProposalSet:
    """Mask proposals of one image, the surest first.

    Attributes:
        masks: (n, h, w) float16 mask probabilities at a quarter of the network's input size.
        classes: (n,) int64 best class of each.
        scores: (n,) float32 probability of that class, 0 to 1.
        unseen: (n,) float32 probability of "not a class seen in training", NaN without an
            indicator.
    """

    masks: NDArray[np.float16]
    classes: NDArray[np.int64]
    scores: NDArray[np.float32]
    unseen: NDArray[np.float32]


def proposal_sheet(
    proposals: ProposalSet,
    image: NDArray[np.uint8],
    names: Sequence[str],
    colors: NDArray[np.uint8],
    count: int,
) -> Image.Image:
    """At most `count` of the surest proposals, each cut out of the image under class and score."""
    count = min(count, len(proposals.scores))
    columns = max(1, min(_COLUMNS, count))
    scale = _TILE / max(image.shape[:2])
    height, width = max(1, round(image.shape[0] * scale)), max(96, round(image.shape[1] * scale))
    sheet = Image.new("RGB", (columns * width, -(-count // columns) * (height + _LINE)), "white")
    draw = ImageDraw.Draw(sheet)
    small = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    for i in range(count):
        x, y = (i % columns) * width, (i // columns) * (height + _LINE)
        label = proposals.classes[i]
        sheet.paste(_tile(small, proposals.masks[i], colors[label]), (x, y + _LINE))
        caption = f"{names[label]}  {proposals.scores[i]:.2f}"
        face = font(13, caption)
        draw.text((x + 4, y + _LINE / 2), caption, fill=(25, 27, 31), font=face, anchor="lm")
    return sheet


def _tile(
    image: NDArray[np.uint8], mask: NDArray[np.float16], color: NDArray[np.uint8]
) -> Image.Image:
    size = (image.shape[1], image.shape[0])
    grey = Image.fromarray(np.round(255 * mask.astype(np.float32)))
    alpha = np.asarray(grey.resize(size, Image.Resampling.BILINEAR))[..., None] / 255
    dimmed = 0.25 * image + 0.75 * 255
    lit = 0.75 * image + 0.25 * color
    return Image.fromarray(np.round(alpha * lit + (1 - alpha) * dimmed).astype(np.uint8))
