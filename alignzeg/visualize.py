"""Label maps as pictures: palette, overlay, legend. Shared by prediction and report."""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from matplotlib import font_manager
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

# What is drawn where nothing is named: a neutral grey that no class gets.
UNNAMED_COLOR = (38, 40, 46)
# Successive hues are this share of the circle apart, so that neighbours in the list differ most.
_GOLDEN_SHARE = 0.6180339887
_TONES = ((0.62, 0.95), (0.80, 0.72), (0.42, 0.98), (0.95, 0.88), (0.55, 0.62))


def palette(count: int) -> NDArray[np.uint8]:
    """Colours of class ids 0 to count - 1, the same for every call: (count, 3) RGB."""
    colors = [
        colorsys.hsv_to_rgb((0.02 + i * _GOLDEN_SHARE) % 1.0, *_TONES[i % len(_TONES)])
        for i in range(count)
    ]
    return np.round(255 * np.array(colors, dtype=np.float64).reshape(-1, 3)).astype(np.uint8)


def colorize(labels: NDArray, colors: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W) class ids to (H, W, 3) RGB; ids without a colour become `UNNAMED_COLOR`."""
    table = np.concatenate([colors, np.array([UNNAMED_COLOR], dtype=np.uint8)])
    return table[np.minimum(labels, len(colors)).astype(np.int64)]


def boundaries(labels: NDArray) -> NDArray[np.bool_]:
    """(H, W) true on pixels whose right or lower neighbour has another label."""
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return edge


def blend(
    picture: NDArray[np.uint8], labels: NDArray, colors: NDArray[np.uint8], opacity: float = 0.55
) -> NDArray[np.uint8]:
    """The picture with its label map laid over it and a thin line around every region.

    Args:
        picture: (H, W, 3) RGB.
        labels: (H, W) class ids.
        colors: see `palette`.
        opacity: of the label map, 0 to 1.

    Raises:
        ValueError: if picture and labels differ in size.
    """
    if picture.shape[:2] != labels.shape:
        raise ValueError(f"picture of {picture.shape[:2]} pixels, labels of {labels.shape}")
    colored = colorize(labels, colors)
    mixed = (1 - opacity) * picture + opacity * colored
    mixed[boundaries(labels)] = 255
    return np.round(mixed).astype(np.uint8)


@lru_cache(maxsize=8)
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which Matplotlib ships and which covers most alphabets."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)


def enlarge(picture: NDArray[np.uint8], shorter_side: int) -> NDArray[np.uint8]:
    """Repeats pixels until the shorter side has at least this many."""
    factor = max(1, -(-shorter_side // max(1, min(picture.shape[:2]))))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def with_legend(
    picture: NDArray[np.uint8],
    entries: Sequence[tuple[str, tuple[int, int, int]]],
    text_size: int = 0,
) -> Image.Image:
    """The picture with a white panel of colour swatches and texts at its right.

    Args:
        picture: (H, W, 3) RGB.
        entries: texts and their colours, from the top; what does not fit is counted in a last line.
        text_size: in pixels; 0 chooses one for the picture's height.
    """
    height, width = picture.shape[:2]
    size = text_size or int(np.clip(height / 28, 12, 40))
    line, margin = round(1.6 * size), size
    room = max(1, (height - 2 * margin) // line)
    shown = list(entries)
    if len(shown) > room:
        hidden = len(shown) - room + 1
        shown = [*shown[: room - 1], (f"and {hidden} more", UNNAMED_COLOR)]
    face = font(size)
    text_width = max((int(face.getlength(text)) for text, _ in shown), default=0)
    panel = 2 * margin + round(1.6 * size) + text_width
    canvas = Image.new("RGB", (width + panel, height), (255, 255, 255))
    canvas.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for row, (text, color) in enumerate(shown):
        x, y = width + margin, margin + row * line
        draw.rounded_rectangle((x, y, x + size, y + size), radius=size // 5, fill=tuple(color))
        middle = y + size / 2
        draw.text((x + 1.6 * size, middle), text, fill=(25, 27, 31), font=face, anchor="lm")
    return canvas


def png_data_uri(picture: NDArray[np.uint8] | Image.Image) -> str:
    """A picture as text that an HTML page can hold."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
