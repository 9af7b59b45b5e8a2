"""Label maps as images: overlay and legend. Shared by prediction and report."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from alignzeg.colors import UNNAMED_COLOR
from alignzeg.fonts import font

# Longest side of a drawn overlay in pixels; larger images are shown smaller.
LONGEST_SIDE = 2048
# Beside an image that has room for fewer lines, the legend is taller: it shows up to so many.
_TOO_FEW_LINES, _STRIP_LINES = 2, 8


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
    image: NDArray[np.uint8], labels: NDArray, colors: NDArray[np.uint8], opacity: float = 0.55
) -> NDArray[np.uint8]:
    """The image with its label map laid over it and a thin line around every region.

    Args:
        image: (H, W, 3) RGB.
        labels: (H, W) class ids.
        colors: (n, 3) RGB, see `alignzeg.colors`.
        opacity: of the label map, 0 to 1.

    Raises:
        ValueError: if image and labels differ in size.
    """
    if image.shape[:2] != labels.shape:
        raise ValueError(f"image of {image.shape[:2]} pixels, labels of {labels.shape}")
    colored = colorize(labels, colors)
    mixed = np.round((1 - opacity) * image + opacity * colored).astype(np.uint8)
    mixed[boundaries(labels)] = 255
    return mixed


def display_size(height: int, width: int, shorter_side: int) -> tuple[int, int]:
    """Height and width at which an image is drawn.

    Small ones are enlarged by a whole factor until the shorter side has `shorter_side` pixels or
    the longer one nears `LONGEST_SIDE`; those whose longer side exceeds that are made smaller.
    """
    short, long = sorted((height, width))
    if long > LONGEST_SIDE:
        scale = LONGEST_SIDE / long
        return max(1, round(height * scale)), max(1, round(width * scale))
    factor = max(1, min(-(-shorter_side // short), LONGEST_SIDE // long))
    return height * factor, width * factor


def resized(values: NDArray, size: tuple[int, int]) -> NDArray:
    """An image or a label map at another size: whole pixels repeated, or left out evenly."""
    rows, columns = (
        (np.arange(new) * old // new) for new, old in zip(size, values.shape[:2], strict=True)
    )
    return values[rows][:, columns]


def shrunk(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """An image at another height and width; averaged where it shrinks, repeated where it grows."""
    if size[0] >= image.shape[0]:
        return resized(image, size)
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BOX))


def shown_colors(
    drawn: NDArray[np.uint8], labels: NDArray, ids: Sequence[int]
) -> list[tuple[int, int, int]]:
    """What each class looks like in what `blend` drew: the mean colour of its pixels but lines.

    One that is all lines is white, as these are.
    """
    lines = boundaries(labels)
    found = []
    for label in ids:
        pixels = drawn[(labels == label) & ~lines]
        mean = pixels.mean(axis=0) if len(pixels) else np.full(3, 255.0)
        red, green, blue = (int(value) for value in np.round(mean))
        found.append((red, green, blue))
    return found


def with_legend(
    image: NDArray[np.uint8],
    entries: Sequence[tuple[str, tuple[int, int, int]]],
    text_size: int = 0,
) -> Image.Image:
    """The image with a white panel of colour swatches and texts at its right.

    Args:
        image: (H, W, 3) RGB.
        entries: texts and their colours, from the top; what does not fit is counted in a last line.
            Beside a strip the panel is taller than the image.
        text_size: in pixels; 0 chooses one for the image's height.
    """
    height, width = image.shape[:2]
    size = text_size or int(np.clip(height / 28, 12, 40))
    line, margin = round(1.6 * size), size
    strip = (height - 2 * margin) // line < _TOO_FEW_LINES
    room = _STRIP_LINES if strip else (height - 2 * margin) // line
    shown = list(entries)
    if len(shown) > room:
        hidden = len(shown) - room + 1
        shown = [*shown[: room - 1], (f"and {hidden} more", UNNAMED_COLOR)]
    faces = [font(size, text) for text, _ in shown]
    texts = zip(faces, shown, strict=True)
    text_width = max((int(face.getlength(text)) for face, (text, _) in texts), default=0)
    panel = 2 * margin + round(1.6 * size) + text_width
    tall = max(height, 2 * margin + line * len(shown)) if strip else height
    canvas = Image.new("RGB", (width + panel, tall), (255, 255, 255))
    canvas.paste(Image.fromarray(image), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for row, (text, color) in enumerate(shown):
        x, y = width + margin, margin + row * line
        draw.rounded_rectangle((x, y, x + size, y + size), radius=size // 5, fill=tuple(color))
        middle = y + size / 2
        draw.text((x + 1.6 * size, middle), text, fill=(25, 27, 31), font=faces[row], anchor="lm")
    return canvas


def png_data_uri(image: NDArray[np.uint8] | Image.Image) -> str:
    """An image as text that an HTML page can hold."""
    drawn = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    drawn.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
