"""What the page shows: overlays whose regions say their name, areas, proposals."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alignzeg.colors import class_colors
from alignzeg.structures import Vocabulary
from alignzeg.visualize import blend, display_size, resized, shown_colors, shrunk

NONE = "none of these"
# Regions below these shares of the image are not outlined, and not named in the picture.
_LEAST_REGION, _LEAST_NAMED = 0.0004, 0.012
# Side of a proposal's picture, and shorter side of an overlay, in pixels.
_TILE, _SIDE = 220, 480
# Width of a letter as a share of the size of the text.
_LETTER = 0.62


def overlay(image: NDArray[np.uint8], labels: NDArray, vocabulary: Vocabulary) -> str:
    """An SVG of the image under its label map; each region says its class when it is pointed at.

    The image is (H, W, 3) RGB; ids beyond the vocabulary are none of the classes.
    """
    height, width = labels.shape
    drawn = _drawn(image, labels, vocabulary)
    parts = [
        f'<svg class="overlay" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(", ".join(_present(labels, vocabulary)), quote=True)}">'
        f'<image href="{_uri(drawn)}" width="{width}" height="{height}"/>'
    ]
    size = max(width, height) / 30
    regions, texts = [], []
    for name, share, path, spot in _regions(labels, vocabulary):
        said = escape(f"{name}, {100 * share:.0f} %" if share >= 0.005 else name)
        regions.append(f'<path class="region" d="{path}"><title>{said}</title></path>')
        if share >= _LEAST_NAMED:
            half = min(_LETTER * size * len(name), width) / 2
            x = min(max(spot[0], half), width - half)
            y = min(max(spot[1], size), height - size)
            texts.append(
                f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size:.1f}">{escape(name)}</text>'
            )
    return "".join([*parts, *regions, *texts, "</svg>"])


def _drawn(image: NDArray[np.uint8], labels: NDArray, vocabulary: Vocabulary) -> NDArray[np.uint8]:
    """The image under its label map; small ones are enlarged, so that lines are thin."""
    height, width = labels.shape
    size = display_size(height, width, _SIDE)
    return blend(shrunk(image, size), resized(labels, size), class_colors(vocabulary.names))


def _present(labels: NDArray, vocabulary: Vocabulary) -> list[str]:
    return [_name(int(i), vocabulary) for i in np.unique(labels)]


def _name(label: int, vocabulary: Vocabulary) -> str:
    return vocabulary.names[label] if label < len(vocabulary) else NONE


def _regions(
    labels: NDArray, vocabulary: Vocabulary
) -> list[tuple[str, float, str, tuple[float, float]]]:
    """Name, share, outline and a place inside of every connected region, the largest first."""
    found = []
    for label in np.unique(labels).tolist():
        mask = np.pad((labels == label).astype(np.uint8), 1)
        count, places, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
        for i in range(1, count):
            share = stats[i, cv2.CC_STAT_AREA] / labels.size
            if share < _LEAST_REGION:
                continue
            x, y, w, h = stats[i, :4]
            part = np.pad((places[y : y + h, x : x + w] == i).astype(np.uint8), 1)
            outlines, _ = cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_TC89_L1)
            corner = np.array([x - 2, y - 2])
            path = "".join(
                "M" + "L".join(f"{a} {b}" for a, b in line[:, 0] + corner) + "Z"
                for line in outlines
            )
            depth = cv2.distanceTransform(part, cv2.DIST_L2, 3)
            inside = np.unravel_index(int(depth.argmax()), depth.shape)
            spot = (float(inside[1] + corner[0]), float(inside[0] + corner[1]))
            found.append((_name(label, vocabulary), float(share), path, spot))
    return sorted(found, key=lambda region: -region[1])


def areas(image: NDArray[np.uint8], before: NDArray, after: NDArray, vocabulary: Vocabulary) -> str:
    """A table of the share of every class without and with the correction; also the legend.

    Its colours are those that the regions have in the overlay.
    """
    rows = []
    ids = sorted(set(np.unique(before).tolist()) | set(np.unique(after).tolist()))
    shares = {i: tuple(float((labels == i).mean()) for labels in (before, after)) for i in ids}
    both = np.concatenate([before, after])
    drawn = blend(np.concatenate([image, image]), both, class_colors(vocabulary.names))
    colors = dict(zip(ids, shown_colors(drawn, both, ids), strict=True))
    for i in sorted(ids, key=lambda i: -shares[i][1]):
        tag = "" if i >= len(vocabulary) or vocabulary.seen[i] else ' <em class="tag">unseen</em>'
        cells = "".join(f"<td>{100 * share:.1f} %</td>" for share in shares[i])
        rows.append(
            f'<tr><th><i style="background:#{"{:02x}{:02x}{:02x}".format(*colors[i])}"></i>'
            f"{escape(_name(i, vocabulary))}{tag}</th>{cells}</tr>"
        )
    return (
        '<table class="areas"><thead><tr><th>share of the image</th><td>before</td><td>after</td>'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def tiles(pictures: Sequence[tuple[NDArray[np.uint8], str, str]]) -> str:
    """Proposals side by side, each a picture with two lines of text."""
    figures = "".join(
        f'<figure><img src="{_uri(picture)}" alt="{escape(name, quote=True)}">'
        f"<figcaption><b>{escape(name)}</b> {escape(more)}</figcaption></figure>"
        for picture, name, more in pictures
    )
    return (
        "<h3>Proposals with the highest scores, after correction</h3>"
        f'<div class="tiles">{figures}</div>'
    )


def tile(
    image: NDArray[np.uint8], mask: NDArray[np.float32], color: Sequence[int]
) -> NDArray[np.uint8]:
    """(h, w) probabilities of one proposal, lit in an RGB image in a class's colour."""
    scale = _TILE / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX), np.float32)
    alpha = cv2.resize(mask, size, interpolation=cv2.INTER_LINEAR)[..., None]
    lit, dimmed = 0.7 * small + 0.3 * np.asarray(color), 0.25 * small + 0.75 * 235
    return np.round(alpha * lit + (1 - alpha) * dimmed).astype(np.uint8)


def _uri(image: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
