"""Colours of classes: apart also without the sight of green or red, and true to their names."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.color import deltaE_ciede2000, rgb2lab

from alignzeg.colors import UNNAMED_COLOR, class_colors, palette
from alignzeg.data.zeroshapes import COLOURS, class_names

# Viénot, Brettel and Mollon 1999, from linear RGB to the answers of the eye's three cones; without
# a kind of cone, its answer is guessed from the others.
CONES = np.array(
    [[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]]
)
WITHOUT_GREEN = np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]])
WITHOUT_RED = np.array([[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]])


def lab_as_seen(colors: NDArray[np.uint8], cones: NDArray) -> NDArray:
    """CIELAB of (n, 3) RGB colours for an eye with these cones."""
    share = colors / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ (np.linalg.inv(CONES) @ cones @ CONES).T, 0, 1)
    return rgb2lab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055))


def least_difference(colors: NDArray[np.uint8], cones: NDArray) -> float:
    lab = lab_as_seen(colors, cones)
    gaps = deltaE_ciede2000(lab[:, None], lab[None])
    return float(gaps[np.triu_indices(len(colors), 1)].min())


@pytest.mark.parametrize("cones", [np.eye(3), WITHOUT_GREEN, WITHOUT_RED], ids=["all", "d", "p"])
def test_ten_classes_differ_for_every_kind_of_sight(cones: NDArray) -> None:
    few = np.concatenate([palette(10), np.array([UNNAMED_COLOR], dtype=np.uint8)])
    assert least_difference(palette(10), cones) >= 15
    assert least_difference(few, cones) >= 10
    names = ("grass", "sky", "road", "car", "dog", "cat", "sofa", "tree", "wall", "boat")
    assert least_difference(class_colors(names), cones) >= 15


def test_the_colours_stay_when_more_classes_come() -> None:
    assert (palette(200)[:42] == palette(42)).all()
    for count in (64, 200):
        assert len({tuple(color) for color in palette(count).tolist()}) >= min(count, 64)
    assert palette(900).shape == (900, 3)


def hue(color: list[int]) -> float:
    return 360 * colorsys.rgb_to_hsv(*(value / 255 for value in color))[0]


def test_a_class_named_after_a_colour_has_it() -> None:
    names = class_names()
    colors = class_colors(names)
    assert len({tuple(color) for color in colors.tolist()}) == len(names)
    for name, color in zip(names, colors.tolist(), strict=True):
        word = name.split()[0]
        if word == "white":
            assert max(color) - min(color) < 10 and min(color) > 200
        elif word in COLOURS:
            apart = abs(hue(color) - hue(list(COLOURS[word]))) % 360
            assert min(apart, 360 - apart) <= 30, (name, color)


def test_shades_of_one_name_can_be_told_apart() -> None:
    shades = class_colors([f"green {shape}" for shape in ("circle", "square", "star", "ring")])
    assert least_difference(shades, WITHOUT_GREEN) >= 10


def test_lists_of_any_kind_have_colours() -> None:
    many = [f"red thing {i}" for i in range(200)] + ["black", "Grey sky", "white"]
    assert class_colors(many).shape == (203, 3)
    assert class_colors([]).shape == (0, 3)
