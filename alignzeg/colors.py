"""Colours of classes, told apart also by readers who see two primary colours instead of three."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from skimage.color import deltaE_ciede2000, rgb2lab

# What is drawn where nothing is named: a neutral grey that no class gets.
UNNAMED_COLOR = (38, 40, 46)
# Simulated sight on linear RGB: all three primary colours, without green, without red.
# Source: Machado, Oliveira and Fernandes 2009, severity 1.
_WITHOUT_GREEN = [
    [0.367322, 0.860646, -0.227968],
    [0.280085, 0.672501, 0.047413],
    [-0.011820, 0.042940, 0.968881],
]
_WITHOUT_RED = [
    [0.152286, 1.052583, -0.204868],
    [0.114503, 0.786281, 0.099216],
    [-0.003882, -0.048116, 1.051998],
]
_SIGHTS = np.array([np.eye(3), _WITHOUT_GREEN, _WITHOUT_RED])
# Names of colours, with their hue in degrees, and how far a shade may lie from it; without a hue,
# the range of grey values, 0 to 1.
_HUES = {
    "red": (358, 8),
    "orange": (28, 6),
    "brown": (24, 8),
    "yellow": (52, 6),
    "green": (125, 25),
    "cyan": (182, 8),
    "turquoise": (176, 8),
    "blue": (222, 14),
    "purple": (280, 12),
    "violet": (272, 12),
    "pink": (330, 12),
    "magenta": (305, 8),
}
_GREYS = {"white": (0.86, 0.98), "grey": (0.45, 0.75), "gray": (0.45, 0.75), "black": (0.02, 0.12)}
_BROWN_VALUES = (0.3, 0.4, 0.5)
# So many colours are chosen to differ most; later ones go round the hues.
_CHOSEN = 64
# Successive later hues are this share of the circle apart.
_GOLDEN_SHARE = 0.6180339887
_TONES = ((0.62, 0.95), (0.80, 0.72), (0.42, 0.98), (0.95, 0.88), (0.55, 0.62))


def palette(count: int) -> NDArray[np.uint8]:
    """Colours of class ids 0 to count - 1, the same for every call: (count, 3) RGB.

    The first ten differ by at least 15 (CIEDE2000), also without the sight of red or of green.
    """
    chosen = _spread(min(count, _CHOSEN))
    later = [
        colorsys.hsv_to_rgb((0.02 + i * _GOLDEN_SHARE) % 1.0, *_TONES[i % len(_TONES)])
        for i in range(_CHOSEN, count)
    ]
    rest = np.round(255 * np.array(later, dtype=np.float64).reshape(-1, 3)).astype(np.uint8)
    return np.concatenate([chosen, rest])


def class_colors(names: Sequence[str]) -> NDArray[np.uint8]:
    """Colours of classes by name: (len(names), 3) RGB.

    A name with the name of a colour in it, such as "green triangle", gets a shade of it; the
    others get those of the palette that are left.
    """
    return _by_name(tuple(names)).copy()


@lru_cache(maxsize=16)
def _by_name(names: tuple[str, ...]) -> NDArray[np.uint8]:
    words = [_color_word(name) for name in names]
    if not any(words):
        return palette(len(names))
    result = np.zeros((len(names), 3), dtype=np.uint8)
    taken = np.empty((0, len(_SIGHTS), 3))
    for word in sorted({word for word in words if word}):
        places = [i for i, found in enumerate(words) if found == word]
        shades = _shades(word)
        result[places] = shades[_farthest(_seen(shades), len(places), taken)]
        taken = np.concatenate([taken, _seen(result[places])])
    places = [i for i, found in enumerate(words) if not found]
    if places:
        free = palette(max(_CHOSEN, 2 * len(places)))
        result[places] = free[_farthest(_seen(free), len(places), taken)]
    return result


def _color_word(name: str) -> str:
    """The colour that a name says, or nothing."""
    found = [word for word in name.lower().split() if word in _HUES or word in _GREYS]
    return found[0] if found else ""


def _shades(word: str) -> NDArray[np.uint8]:
    """(n, 3) RGB colours that one would call by this name."""
    if word in _GREYS:
        low, high = _GREYS[word]
        greys = np.linspace(low, high, 16)
        return np.round(255 * np.stack([greys, greys, greys], axis=1)).astype(np.uint8)
    hue, width = _HUES[word]
    values = _BROWN_VALUES if word == "brown" else (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    shades = [
        colorsys.hsv_to_rgb((hue + shift) % 360 / 360, saturation, value)
        for shift in (0, -width, width, -width / 2, width / 2)
        for saturation in (1.0, 0.85, 0.7, 0.55)
        for value in values
    ]
    return np.round(255 * np.array(shades)).astype(np.uint8)


@lru_cache(maxsize=1)
def _grid() -> NDArray[np.uint8]:
    """Colours to choose from: no greys, neither as dark as what is unnamed nor as pale as lines."""
    steps = np.linspace(0, 255, 9).round()
    colors = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    lightness, *ab = np.moveaxis(rgb2lab(colors / 255), -1, 0)
    return colors[(lightness > 28) & (lightness < 90) & (np.hypot(*ab) >= 22)].astype(np.uint8)


@lru_cache(maxsize=64)
def _spread(count: int) -> NDArray[np.uint8]:
    unlike = np.array([UNNAMED_COLOR, (255, 255, 255)], dtype=np.uint8)
    return _grid()[_farthest(_seen(_grid()), count, _seen(unlike))]


def _seen(colors: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(n, sights, 3) CIELAB of (n, 3) RGB colours, as each kind of sight has them."""
    share = colors / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    sights = np.clip(np.einsum("sij,nj->nsi", _SIGHTS, linear), 0, 1)
    encoded = np.where(sights <= 0.0031308, 12.92 * sights, 1.055 * sights ** (1 / 2.4) - 0.055)
    return rgb2lab(encoded)


def _farthest(candidates: NDArray, count: int, taken: NDArray) -> list[int]:
    """Indices of candidates, one after the other the least like all before and those taken."""
    nearest = np.full(len(candidates), np.inf)
    for other in taken:
        nearest = np.minimum(nearest, _difference(candidates, other))
    chosen: list[int] = []
    for _ in range(count):
        best = int(nearest.argmax())
        chosen.append(best)
        nearest = np.minimum(nearest, _difference(candidates, candidates[best]))
        # Where there are more names than colours, they are given out again.
        if nearest.max() <= 0:
            nearest[:] = np.inf
    return chosen


def _difference(colors: NDArray, one: NDArray) -> NDArray:
    """(n,) least CIEDE2000 over all kinds of sight."""
    return deltaE_ciede2000(colors, one[None]).min(axis=1)
