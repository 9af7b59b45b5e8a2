"""One scene: textures below, things and clutter on top of each other, light over everything."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alignzeg.data.zeroshapes.names import class_names, stuff_names, thing_names
from alignzeg.data.zeroshapes.shapes import COLOURS, OUTLINES, clutter_coverage, coverage_of
from alignzeg.data.zeroshapes.textures import TEXTURES
from alignzeg.structures import IGNORE_LABEL

SPLIT_STREAMS = {"train": 0, "val": 1, "clip": 2, "clip_eval": 3, "calib": 4}
"""Independent random streams; the "clip" ones make and judge the tiny CLIP, never the data set."""

_MIN_VISIBLE = 0.65
_TRIES = 12


@dataclass(frozen=True)
class Thing:
    """One visible object of a scene.

    Attributes:
        name: its class name, "<colour> <shape>".
        box: (x0, y0, x1, y1) of the visible pixels, in pixels, the end excluded.
        area: visible pixels.
        center: (x, y) of the box, in pixels.
    """

    name: str
    box: tuple[int, int, int, int]
    area: int
    center: tuple[float, float]


@dataclass(frozen=True)
class Scene:
    """One rendered scene.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        label: (H, W) uint8 class ids in the order of the split file, 255 where nothing has a name.
            Unseen classes are labelled here; hiding them from training is the mapper's work.
        things: the objects, back to front.
    """

    image: np.ndarray
    label: np.ndarray
    things: tuple[Thing, ...]


def scene_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """The generator of one scene: the same three values give the same scene everywhere.

    Raises:
        ValueError: if the split is unknown.
    """
    if split not in SPLIT_STREAMS:
        raise ValueError(f"unknown split {split!r}: choose one of {sorted(SPLIT_STREAMS)}")
    return np.random.default_rng([seed, SPLIT_STREAMS[split], index])


def _paint_stuff(
    rng: np.random.Generator, size: int, names: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Two or three textures, divided by straight or wavy bands."""
    count = int(rng.choice([2, 3], p=[0.6, 0.4]))
    chosen = rng.choice(len(names), count, replace=False)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    across = np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]
    along = -np.sin(angle) * axis[None, :] + np.cos(angle) * axis[:, None]
    if rng.random() < 0.6:
        across = across + rng.uniform(0.02, 0.08) * np.sin(
            along * rng.uniform(5, 14) + rng.uniform(0, 6.28)
        )
    cuts = (
        [rng.uniform(-0.2, 0.2)]
        if count == 2
        else [rng.uniform(-0.3, -0.12), rng.uniform(0.12, 0.3)]
    )
    region = np.zeros((size, size), np.int64)
    for cut in cuts:
        region += across > cut
    image = np.empty((size, size, 3), np.float32)
    label = np.empty((size, size), np.uint8)
    for index, choice in enumerate(chosen):
        inside = region == index
        texture = TEXTURES[names[choice]](rng, size) * rng.uniform(0.88, 1.12) + rng.normal(
            0, 5, 3
        ).astype(np.float32)
        image[inside] = texture[inside]
        label[inside] = class_names().index(names[choice])
    return image, label


def _shaded(
    rng: np.random.Generator, rgb: np.ndarray, center: np.ndarray, radius: float, size: int
) -> np.ndarray:
    """The colour with a slight gradient across the object: (size, size, 3) float32."""
    axis = np.arange(size, dtype=np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.cos(angle) * (axis[None, :] - center[0]) + np.sin(angle) * (
        axis[:, None] - center[1]
    )
    shade = 1 + np.float32(rng.uniform(0.04, 0.14)) * slope / np.float32(radius)
    return shade[..., None] * rgb


def _blend(image: np.ndarray, coverage: np.ndarray, colour: np.ndarray) -> None:
    image += coverage[..., None] * (colour - image)


def _paint_thing(
    rng: np.random.Generator,
    image: np.ndarray,
    owner: np.ndarray,
    areas: dict[int, int],
    number: int,
) -> str | None:
    """Place one thing on top of the scene; None if no place leaves everything visible enough."""
    size = image.shape[0]
    names = thing_names()
    name = names[int(rng.integers(len(names)))]
    colour, shape = name.split()
    for _ in range(_TRIES):
        radius = rng.uniform(17, 28) * size / 128
        center = rng.uniform(0.15, 0.85, 2) * size
        coverage = coverage_of(OUTLINES[shape], center, radius, rng.uniform(0, 2 * np.pi), size)
        mask = coverage >= 0.5
        left = np.bincount(owner[~mask], minlength=number)
        if all(left[other] >= _MIN_VISIBLE * area for other, area in areas.items()):
            break
    else:
        return None
    rgb = np.array(COLOURS[colour], np.float32) * np.float32(rng.uniform(0.86, 1.04))
    _blend(
        image,
        coverage,
        _shaded(rng, rgb + rng.normal(0, 6, 3).astype(np.float32), center, radius, size),
    )
    owner[mask] = number
    areas[number] = int(mask.sum())
    return name


def _paint_clutter(
    rng: np.random.Generator, image: np.ndarray, owner: np.ndarray, areas: dict[int, int]
) -> None:
    """One grey, black or brownish mark without a name; left out if it would hide a thing."""
    size = image.shape[0]
    coverage = clutter_coverage(rng, size)
    mask = coverage >= 0.5
    left = np.bincount(owner[~mask], minlength=2 + max(areas, default=0))
    if any(left[other] < _MIN_VISIBLE * area for other, area in areas.items()):
        return
    tone = rng.uniform(15, 150) + rng.normal(0, 8, 3)
    _blend(image, coverage, tone.astype(np.float32))
    owner[mask] = 1


def _light(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Uneven light over the image, colour cast and sensor noise; returns uint8."""
    size = image.shape[0]
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    slope_x, slope_y = rng.uniform(-0.08, 0.08, 2).astype(np.float32)
    gain = np.float32(rng.uniform(0.88, 1.08)) + slope_x * axis[None, :] + slope_y * axis[:, None]
    cast = rng.uniform(0.96, 1.04, 3).astype(np.float32)
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(3, 8))
    return np.clip(image * gain[..., None] * cast + noise, 0, 255).astype(np.uint8)


def render_scene(
    rng: np.random.Generator, size: int = 128, things: tuple[int, int] = (2, 5)
) -> Scene:
    """Render one scene.

    Args:
        rng: the only source of randomness.
        size: side of the square image in pixels, >= 32; textures and things scale with it.
        things: fewest and most things; one that finds no place is left out.

    Returns:
        The scene; edges in the image are antialiased, masks are exact: a pixel belongs to the
        topmost shape that covers at least half of it. At least 65 % of every thing inside the
        image is visible.

    Raises:
        ValueError: if the size is below 32.
    """
    if size < 32:
        raise ValueError(f"size is {size}: scenes need at least 32 pixels a side")
    image, label = _paint_stuff(rng, size, stuff_names())
    owner = np.zeros((size, size), np.int64)  # 0 stuff, 1 clutter, 2.. things
    areas: dict[int, int] = {}
    names: dict[int, str] = {}
    jobs = ["thing"] * int(rng.integers(things[0], things[1] + 1)) + ["clutter"] * int(
        rng.integers(1, 4)
    )
    for job in rng.permutation(jobs):
        if job == "clutter":
            _paint_clutter(rng, image, owner, areas)
            continue
        number = 2 + len(names)
        name = _paint_thing(rng, image, owner, areas, number)
        if name is not None:
            names[number] = name
    label[owner == 1] = IGNORE_LABEL
    visible = []
    for number, name in names.items():
        mask = owner == number
        label[mask] = class_names().index(name)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        visible.append(Thing(name, box, int(mask.sum()), middle))
    return Scene(_light(rng, image), label, tuple(visible))
