"""A label map laid over its image, with the names of the regions on them and a legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from alignzeg.fonts import font
from alignzeg.visualize import blend, display_size, resized, shown_colors, shrunk, with_legend

# Overlays of small images are enlarged to this shorter side in pixels, for a legible legend.
_OVERLAY_SIDE = 384
# Regions with a smaller share of the image get no name, and a class gets so many names at most.
_NAMED_SHARE, _NAMES_PER_CLASS = 0.004, 3
_OUTLINE = (20, 22, 26)


@dataclass(frozen=True)
class OverlayStyle:
    """How an overlay looks.

    Attributes:
        opacity: of the label map, 0 to 1.
        grey: whether the image beneath is grey, so that no colour is taken for a class.
        names: whether the regions bear their names.
        side_by_side: whether the image itself stands at the left.
        legend: whether a panel at the right lists the classes.

    Raises:
        ValueError: if the opacity is no number from 0 to 1.
    """

    opacity: float = 0.55
    grey: bool = True
    names: bool = True
    side_by_side: bool = False
    legend: bool = True

    def __post_init__(self) -> None:
        known = isinstance(self.opacity, (int, float)) and not isinstance(self.opacity, bool)
        if not known or not 0 <= self.opacity <= 1:
            raise ValueError(f"opacity is {self.opacity!r}; it must be a number from 0 to 1")


def draw_overlay(
    image: NDArray[np.uint8],
    labels: NDArray,
    colors: NDArray[np.uint8],
    names: Sequence[str],
    legend: Sequence[tuple[str, int]],
    style: OverlayStyle,
) -> Image.Image:
    """An image under its label map.

    Args:
        image: (H, W, 3) RGB.
        labels: (H, W) class ids; those beyond `names` are "none of these".
        colors: (n, 3) RGB of the classes.
        names: of the n classes.
        legend: texts and the class ids that they are about, from the top.
        style: what to draw.

    Returns:
        At the size of `display_size`, at most 2048 pixels a side, and wider by the legend and by
        the image at its left. The legend's colours are those that the regions have in it.
    """
    height, width = labels.shape
    size = display_size(height, width, _OVERLAY_SIDE)
    shown, labels = shrunk(image, size), resized(labels, size)
    beneath = as_grey(shown) if style.grey else shown
    drawn = blend(beneath, labels, colors, style.opacity)
    swatches = shown_colors(drawn, labels, [label for _, label in legend])
    if style.names:
        drawn = with_names(drawn, labels, names)
    if style.side_by_side:
        drawn = np.concatenate([shown, np.full((size[0], 4, 3), 255, np.uint8), drawn], axis=1)
    if not style.legend:
        return Image.fromarray(drawn)
    entries = [(text, swatch) for (text, _), swatch in zip(legend, swatches, strict=True)]
    return with_legend(drawn, entries)


def as_grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) RGB without its colours."""
    return np.asarray(Image.fromarray(image).convert("L").convert("RGB"))


def with_names(
    image: NDArray[np.uint8], labels: NDArray, names: Sequence[str]
) -> NDArray[np.uint8]:
    """An (H, W, 3) image with the name of its class on every region that has room for it."""
    height, width = labels.shape
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    size = int(np.clip(min(height, width) / 24, 11, 34))
    outline, margin = max(1, size // 10), size // 2
    taken: list[tuple[float, float, float, float]] = []
    for label, column, row, radius in places(labels, len(names)):
        face = font(size, names[label])
        x0, y0, x1, y1 = draw.textbbox((0, 0), names[label], font=face, anchor="mm")
        # Text may reach beyond a round region, but not be much larger than it.
        if radius < 0.6 * size or x1 - x0 > 6 * radius or x1 - x0 > width:
            continue
        # Inside the image, with a margin.
        x = float(np.clip(column, margin - x0, max(margin - x0, width - margin - x1)))
        y = float(np.clip(row, margin - y0, max(margin - y0, height - margin - y1)))
        box = (x + x0 - 3, y + y0 - 3, x + x1 + 3, y + y1 + 3)
        if any(_overlap(box, other) for other in taken):
            continue
        taken.append(box)
        draw.text(
            (x, y),
            names[label],
            font=face,
            anchor="mm",
            fill=(255, 255, 255),
            stroke_width=outline,
            stroke_fill=_OUTLINE,
        )
    return np.asarray(canvas)


def places(labels: NDArray, count: int) -> list[tuple[int, int, int, float]]:
    """Where names stand: class, x, y and the radius of the largest circle there, largest first.

    A place is a pixel of a connected region that lies farthest from its border and from that of
    the image, to 3 %.

    Ids from `count` on have no name.
    """
    least = max(1.0, _NAMED_SHARE * labels.size)
    found = []
    for label in np.unique(labels):
        if label >= count:
            continue
        mask = (labels == label).astype(np.uint8)
        _, regions, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        areas = stats[1:, cv2.CC_STAT_AREA]
        for part in np.argsort(-areas, kind="stable")[:_NAMES_PER_CLASS]:
            if areas[part] < least:
                break
            left, top, width, height = stats[part + 1, :4]
            window = regions[top : top + height, left : left + width] == part + 1
            inside = np.pad(window, 1).astype(np.uint8)
            distance = cv2.distanceTransform(inside, cv2.DIST_L2, 5)[1:-1, 1:-1]
            y, x = _middle(distance)
            found.append((int(label), int(left + x), int(top + y), float(distance[y, x])))
    return sorted(found, key=lambda place: -place[3])


def _middle(distance: NDArray) -> tuple[int, int]:
    """Row and column about as far inside as any, in the middle where there are many such."""
    rows, columns = np.nonzero(distance >= 0.97 * distance.max())
    away = (rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2
    best = int(away.argmin())
    return int(rows[best]), int(columns[best])


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
