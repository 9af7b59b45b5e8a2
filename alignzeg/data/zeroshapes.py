"""The embedded data set: procedural scenes with exact masks and compositional class names.

A scene is two or three stuff regions (textures), two to five overlapping things ("red star") and
some grey clutter that no class names. Class names live in `splits/zeroshapes.json` alone; this
module parses them: "<colour> <shape>" is a thing, one word is a texture. Everything follows from
`(seed, split, index)`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

IGNORE_LABEL = 255
SPLIT_FILE = Path(__file__).parent / "splits" / "zeroshapes.json"
SPLIT_STREAMS = {"train": 0, "val": 1, "clip": 2, "clip_eval": 3, "calib": 4}
"""Independent random streams; the "clip" ones make and judge the tiny CLIP, never the data set."""
DEFAULT_COUNTS = {"train": 1200, "val": 200, "calib": 100}

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 36, 40),
    "green": (48, 205, 62),
    "blue": (44, 84, 236),
    "yellow": (246, 220, 40),
    "purple": (158, 48, 196),
    "white": (244, 244, 244),
}

_SUPERSAMPLE = 4
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


@lru_cache(maxsize=1)
def class_names() -> tuple[str, ...]:
    """All class names, in the order of their ids."""
    return tuple(json.loads(SPLIT_FILE.read_text(encoding="utf-8"))["classes"])


def thing_names() -> list[str]:
    """The names made of a colour and a shape."""
    return [name for name in class_names() if " " in name]


def stuff_names() -> list[str]:
    """The names of textures."""
    return [name for name in class_names() if " " not in name]


def scene_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """The generator of one scene: the same three values give the same scene everywhere.

    Raises:
        ValueError: if the split is unknown.
    """
    if split not in SPLIT_STREAMS:
        raise ValueError(f"unknown split {split!r}: choose one of {sorted(SPLIT_STREAMS)}")
    return np.random.default_rng([seed, SPLIT_STREAMS[split], index])


# ------------------------------------------------------------------------------ textures
def _rotated_grid(
    rng: np.random.Generator, size: int, tilt: float
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in 1/128 of the side, shifted at random and tilted by at most `tilt` radians."""
    axis = np.arange(size, dtype=np.float32) * np.float32(128 / size)
    angle = rng.uniform(-tilt, tilt)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    dx, dy = rng.uniform(0, 128, 2).astype(np.float32)
    x, y = axis[None, :], axis[:, None]
    return x * cos - y * sin + dx + 256, x * sin + y * cos + dy + 256


def _smooth_noise(rng: np.random.Generator, size: int, cells_x: int, cells_y: int) -> np.ndarray:
    grid = rng.standard_normal((cells_y, cells_x), dtype=np.float32)
    return cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)


def _mix(low: tuple[int, int, int], high: tuple[int, int, int], amount: np.ndarray) -> np.ndarray:
    """Linear blend of two RGB colours; `amount` (H, W) in 0..1 -> (H, W, 3) float32."""
    low_rgb, high_rgb = np.array(low, np.float32), np.array(high, np.float32)
    return low_rgb + np.clip(amount, 0, 1)[..., None] * (high_rgb - low_rgb)


def _grass(rng: np.random.Generator, size: int) -> np.ndarray:
    x, y = _rotated_grid(rng, size, 0.3)
    sway = 2.0 * np.sin(y * 0.35 + 0.2 * x)
    blades = 0.5 + 0.5 * np.sin(x * 1.5 + sway)
    return _mix((22, 62, 18), (86, 122, 40), 0.7 * blades + 0.15 * _smooth_noise(rng, size, 40, 20))


def _brick(rng: np.random.Generator, size: int) -> np.ndarray:
    x, y = _rotated_grid(rng, size, 0.15)
    row = np.floor(y / 9)
    column = (x + 9 * (row % 2)) % 18
    mortar = ((y % 9) < 1.7) | (column < 1.7)
    amount = np.where(mortar, 1.0, 0.12 + 0.08 * _smooth_noise(rng, size, 16, 32))
    return _mix((128, 58, 42), (192, 180, 166), amount.astype(np.float32))


def _water(rng: np.random.Generator, size: int) -> np.ndarray:
    x, y = _rotated_grid(rng, size, 0.25)
    waves = 0.5 + 0.5 * np.sin(y * 0.62 + 1.8 * np.sin(x * 0.11))
    return _mix((18, 88, 104), (108, 186, 190), waves**3 + 0.08 * _smooth_noise(rng, size, 24, 24))


def _sand(rng: np.random.Generator, size: int) -> np.ndarray:
    grain = rng.standard_normal((size, size), dtype=np.float32)
    amount = 0.5 + 0.16 * grain + 0.12 * _smooth_noise(rng, size, 6, 6)
    return _mix((176, 150, 104), (232, 212, 168), amount)


def _wood(rng: np.random.Generator, size: int) -> np.ndarray:
    x, y = _rotated_grid(rng, size, 0.25)
    warp = 3.0 * _smooth_noise(rng, size, 3, 5)
    rings = 0.5 + 0.5 * np.sin((x + warp) * 0.75)
    plank = ((x % 40) < 1.5).astype(np.float32)
    amount = 0.75 * rings + 0.1 * _smooth_noise(rng, size, 60, 4) - plank
    del y
    return _mix((84, 46, 16), (172, 116, 62), amount)


def _checkerboard(rng: np.random.Generator, size: int) -> np.ndarray:
    x, y = _rotated_grid(rng, size, 0.4)
    squares = (np.floor(x / 9) + np.floor(y / 9)) % 2
    return _mix((52, 52, 58), (176, 176, 180), squares.astype(np.float32))


TEXTURES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "grass": _grass,
    "brick": _brick,
    "water": _water,
    "sand": _sand,
    "wood": _wood,
    "checkerboard": _checkerboard,
}


# ------------------------------------------------------------------------------ shapes
def _star(points: int, inner: float) -> np.ndarray:
    angles = np.pi * np.arange(2 * points) / points
    radii = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=1)


def _cross(arm: float) -> np.ndarray:
    a, b = arm, 0.96
    quarter = [
        (-a, -b),
        (a, -b),
        (a, -a),
        (b, -a),
        (b, a),
        (a, a),
        (a, b),
        (-a, b),
        (-a, a),
        (-b, a),
        (-b, -a),
        (-a, -a),
    ]
    return np.array(quarter)


def _regular(sides: int, phase: float) -> np.ndarray:
    angles = 2 * np.pi * np.arange(sides) / sides + phase
    return np.stack([np.sin(angles), -np.cos(angles)], axis=1)


OUTLINES: dict[str, tuple[np.ndarray, ...]] = {
    "circle": (_regular(48, 0.0) * 0.9,),
    "square": (_regular(4, np.pi / 4) * 1.08,),
    "triangle": (_regular(3, 0.0) * 1.08,),
    "star": (_star(5, 0.40) * 1.12,),
    "cross": (_cross(0.29),),
    "ring": (_regular(48, 0.0), _regular(48, 0.0) * 0.52),
}
"""Outlines in units of the radius; a second outline is a hole."""


def _coverage(
    outlines: tuple[np.ndarray, ...], center: np.ndarray, radius: float, angle: float, size: int
) -> np.ndarray:
    """Share of every pixel that the shape covers: (size, size) float32 in 0..1."""
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]]) * radius
    low = np.floor(center - 1.3 * radius).astype(int).clip(0, size - 1)
    high = np.ceil(center + 1.3 * radius).astype(int).clip(1, size)
    width, height = (high - low).clip(1)
    fine = np.zeros((height * _SUPERSAMPLE, width * _SUPERSAMPLE), np.uint8)
    for value, outline in zip((255, 0), outlines, strict=False):
        points = (outline @ turn + center - low) * _SUPERSAMPLE
        cv2.fillPoly(fine, [np.round(points * 16 - 8).astype(np.int32)], value, shift=4)
    full = np.zeros((size, size), np.float32)
    small = cv2.resize(fine, (int(width), int(height)), interpolation=cv2.INTER_AREA)
    full[low[1] : low[1] + height, low[0] : low[0] + width] = small / np.float32(255)
    return full


def _clutter_coverage(rng: np.random.Generator, size: int) -> np.ndarray:
    """A scribble or an irregular blob, (size, size) float32 in 0..1."""
    scale = size / 128
    canvas = np.zeros((size, size), np.uint8)
    center = rng.uniform(0.05, 0.95, 2) * size
    if rng.random() < 0.6:
        steps = rng.normal(0, 9 * scale, (int(rng.integers(4, 8)), 2)).cumsum(axis=0)
        thickness = max(1, round(rng.uniform(2.5, 5) * scale))
        points = np.round((center + steps) * 16).astype(np.int32)
        cv2.polylines(canvas, [points], False, 255, thickness, cv2.LINE_AA, shift=4)
    else:
        count = int(rng.integers(9, 14))
        radii = rng.uniform(4, 13, count) * scale
        angles = 2 * np.pi * np.arange(count) / count
        points = center + np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
        cv2.fillPoly(canvas, [np.round(points * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    return canvas / np.float32(255)


# ------------------------------------------------------------------------------ scenes
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
        coverage = _coverage(OUTLINES[shape], center, radius, rng.uniform(0, 2 * np.pi), size)
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
    coverage = _clutter_coverage(rng, size)
    mask = coverage >= 0.5
    left = np.bincount(owner[~mask], minlength=2 + max(areas, default=0))
    if any(left[other] < _MIN_VISIBLE * area for other, area in areas.items()):
        return
    tone = rng.uniform(15, 150) + rng.normal(0, 8, 3)
    _blend(image, coverage, tone.astype(np.float32))
    owner[mask] = 1


def _light(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Uneven light over the picture, colour cast and sensor noise; returns uint8."""
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
        size: side of the square picture in pixels, >= 32; textures and things scale with it.
        things: fewest and most things; one that finds no place is left out.

    Returns:
        The scene; edges in the image are antialiased, masks are exact: a pixel belongs to the
        topmost shape that covers at least half of it. At least 65 % of every thing inside the
        picture is visible.

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


# ------------------------------------------------------------------------------ writing
def _write_atomically(path: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    with os.fdopen(handle, "wb") as stream:
        stream.write(data)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)


def _encode(array: np.ndarray) -> bytes:
    done, data = cv2.imencode(".png", array, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert done
    return data.tobytes()


def _write_range(root: str, split: str, indices: range, size: int, seed: int) -> int:
    """Write some scenes; those whose two files exist are skipped. Returns how many were written."""
    cv2.setNumThreads(1)
    images = Path(root) / "zeroshapes" / "images" / split
    labels = Path(root) / "zeroshapes" / "annotations" / split
    written = 0
    for index in indices:
        image_path, label_path = images / f"{index:05d}.png", labels / f"{index:05d}.png"
        if image_path.exists() and label_path.exists():
            continue
        scene = render_scene(scene_rng(seed, split, index), size)
        _write_atomically(image_path, _encode(np.ascontiguousarray(scene.image[..., ::-1])))
        _write_atomically(label_path, _encode(scene.label))
        written += 1
    return written


def write_dataset(
    root: str | Path,
    split: str,
    count: int | None = None,
    size: int = 128,
    seed: int = 0,
    workers: int = 2,
) -> int:
    """Write one split as ``<root>/zeroshapes/{images,annotations}/<split>/NNNNN.png``.

    Files appear atomically. What exists and came from the same arguments is kept; other arguments,
    or another version of the split file, rewrite the split. A smaller count removes the surplus.

    Args:
        root: the data-set root (``DETECTRON2_DATASETS``).
        split: "train" or "val".
        count: scenes; None means 1200 for train and 200 for val.
        size: side in pixels.
        seed: any integer >= 0.
        workers: processes; 1 renders in this process.

    Returns:
        The number of scenes written now; 0 when everything was there.

    Raises:
        ValueError: for an unknown split, a count below 1 or a size below 32.
    """
    if split not in DEFAULT_COUNTS:
        raise ValueError(f"unknown split {split!r}: choose one of {sorted(DEFAULT_COUNTS)}")
    count = DEFAULT_COUNTS[split] if count is None else count
    if count < 1:
        raise ValueError(f"count is {count}: write at least one scene")
    if size < 32:
        raise ValueError(f"size is {size}: scenes need at least 32 pixels a side")
    base = Path(root) / "zeroshapes"
    folders = [base / kind / split for kind in ("images", "annotations")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    stamp_path = base / f"{split}.json"
    stamp = json.dumps({"format": 3, "size": size, "seed": seed, "classes": class_names()}).encode()
    fresh = stamp_path.exists() and stamp_path.read_bytes() == stamp
    for folder in folders:
        for path in folder.glob("*.png"):
            if not fresh or int(path.stem) >= count:
                path.unlink()
    if not fresh:
        _write_atomically(stamp_path, stamp)
    chunks = [range(start, min(start + 50, count)) for start in range(0, count, 50)]
    if workers <= 1 or len(chunks) == 1:
        return sum(_write_range(str(root), split, chunk, size, seed) for chunk in chunks)
    with ProcessPoolExecutor(workers) as pool:
        jobs = [pool.submit(_write_range, str(root), split, chunk, size, seed) for chunk in chunks]
        return sum(job.result() for job in jobs)
