"""Training pairs of the tiny CLIP: pictures, irregular crops on the patch grid, and captions.

A crop is a window laid without regard to any outline; its caption names what dominates in it, as a
human captioner would. Captions come from the renderer, which knows what is visible; no mask enters
the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from alignzeg.data.zeroshapes import class_names, render_scene, scene_rng

CLUTTER = "clutter"
TEMPLATES = (
    "a photo of a {}.",
    "{}",
    "a {}.",
    "a picture of a {}.",
    "there is a {} in the scene.",
    "a cropped photo of a {}.",
)
STYLES = ("full", "shape", "colour")
_MAX_THINGS = 7


@dataclass(frozen=True)
class Pool:
    """Pre-rendered scenes (S of them, a grid of G x G patches, K names).

    Attributes:
        images: (S, H, W, 3) uint8.
        counts: (S, G, G, K+1) uint8, what a captioner sees in each patch; the last column is
            clutter.
        things: (S, 7, 3) float32, x, y, radius as shares of the side; radius 0 where there is none.
    """

    images: np.ndarray
    counts: np.ndarray
    things: np.ndarray


def _render_range(
    seed: int, indices: range, patch: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    cv2.setNumThreads(1)
    names = len(class_names())
    images, counts, things = [], [], []
    for index in indices:
        scene = render_scene(scene_rng(seed, "clip", index), things=(3, _MAX_THINGS))
        grid = scene.label.shape[0] // patch
        blocks = np.minimum(scene.label, names).reshape(grid, patch, grid, patch)
        flat = blocks.transpose(0, 2, 1, 3).reshape(grid * grid, patch * patch).astype(np.int64)
        offsets = np.arange(grid * grid)[:, None] * (names + 1)
        hist = np.bincount((flat + offsets).ravel(), minlength=grid * grid * (names + 1))
        places = np.zeros((_MAX_THINGS, 3), np.float32)
        for row, thing in enumerate(scene.things[:_MAX_THINGS]):
            x0, y0, x1, y1 = thing.box
            places[row] = (*thing.center, max(x1 - x0, y1 - y0) / 2)
        images.append(scene.image)
        counts.append(hist.reshape(grid, grid, names + 1).astype(np.uint8))
        things.append(places / scene.label.shape[0])
    return np.stack(images), np.stack(counts), np.stack(things)


def render_pool(seed: int, indices: range, patch: int = 8) -> Pool:
    """Render training pictures, those of the stream "clip" with these indices."""
    return Pool(*_render_range(seed, indices, patch))


def augment(
    rng: np.random.Generator, pool: Pool, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flip and turn pictures: images (B,H,W,3) float32, counts (B,G,G,K+1), things (B,7,3)."""
    images, counts, things = [], [], []
    for index in chosen:
        image, count, place = pool.images[index], pool.counts[index], pool.things[index].copy()
        if rng.random() < 0.5:
            image, count = image[:, ::-1], count[:, ::-1]
            place[:, 0] = 1 - place[:, 0]
        if rng.random() < 0.5:
            image, count = image[::-1], count[::-1]
            place[:, 1] = 1 - place[:, 1]
        if rng.random() < 0.3:
            image, count = image.transpose(1, 0, 2), count.transpose(1, 0, 2)
            place = place[:, [1, 0, 2]]
        images.append(image)
        counts.append(count)
        things.append(place)
    stacked = np.stack(images).astype(np.float32)
    stacked *= rng.uniform(0.9, 1.1, (len(chosen), 1, 1, 1)).astype(np.float32)
    stacked += rng.normal(0, 5, (len(chosen), 1, 1, 3)).astype(np.float32)
    return stacked.clip(0, 255), np.stack(counts), np.stack(things)


def draw_windows(
    rng: np.random.Generator, things: np.ndarray, grid: int, candidates: int
) -> np.ndarray:
    """Irregular windows: superellipses of random place, size, turn and aspect with a wavy border.

    Args:
        rng: randomness.
        things: (B, 7, 3) places; about two windows in three are laid around one with a random
            margin and a random offset, the others anywhere at any scale. Their outline never
            enters.
        grid: patches a side.
        candidates: windows per picture.

    Returns:
        (B, candidates, G*G) bool.
    """
    batch = things.shape[0]
    around = rng.random((batch, candidates)) < 0.65
    pick = rng.integers(0, _MAX_THINGS, (batch, candidates))
    place = np.take_along_axis(things, pick[..., None], axis=1)
    around &= place[..., 2] > 0
    radius = np.where(around, place[..., 2], 0.15)
    free_center = rng.uniform(0, 1, (batch, candidates, 2))
    near_center = place[..., :2] + rng.normal(0, 0.18, (batch, candidates, 2)) * radius[..., None]
    center = np.where(around[..., None], near_center, free_center)
    free_scale = np.exp(rng.uniform(np.log(0.08), np.log(0.45), (batch, candidates)))
    scale = np.where(
        around, radius * rng.uniform(0.75, 1.5, (batch, candidates)) + 0.01, free_scale
    )
    aspect = np.exp(rng.normal(0, 0.2, (batch, candidates)) * np.where(around, 1.0, 2.0))
    angle = rng.uniform(0, np.pi, (batch, candidates))
    power = np.exp(rng.uniform(np.log(1.0), np.log(6.0), (batch, candidates)))
    axis = ((np.arange(grid) + 0.5) / grid).astype(np.float32)
    dx = (np.tile(axis, grid) - center[..., :1]).astype(np.float32)
    dy = (np.repeat(axis, grid) - center[..., 1:]).astype(np.float32)
    cos, sin = (
        np.cos(angle)[..., None].astype(np.float32),
        np.sin(angle)[..., None].astype(np.float32),
    )
    u = np.abs(cos * dx + sin * dy) / (scale * aspect)[..., None].astype(np.float32)
    v = np.abs(cos * dy - sin * dx) / (scale / aspect)[..., None].astype(np.float32)
    power = power[..., None].astype(np.float32)
    distance = (u**power + v**power) ** (1 / power)
    waves = rng.integers(2, 6, (batch, candidates, 1)).astype(np.float32)
    phase = rng.uniform(0, 6.28, (batch, candidates, 1)).astype(np.float32)
    height = rng.uniform(0, 0.3, (batch, candidates, 1)).astype(np.float32)
    return distance < 1 + height * np.sin(waves * np.arctan2(dy, dx) + phase)


def caption_windows(
    rng: np.random.Generator,
    windows: np.ndarray,
    counts: np.ndarray,
    is_thing: np.ndarray,
    keep: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose windows in which one name dominates.

    Args:
        rng: randomness.
        windows: (B, C, P) bool candidates.
        counts: (B, P, K+1) pixels of each name in each patch.
        is_thing: (K+1,) bool.
        keep: windows kept per picture.

    Returns:
        Windows (B, keep, P) bool and names (B, keep) int64, -1 where no window was good enough.
    """
    seen = windows.astype(np.float32) @ counts.astype(np.float32)  # (B, C, K+1)
    total = counts.astype(np.float32).sum(axis=1)[:, None].clip(1)
    whole = seen.sum(axis=-1).clip(1)
    thing_pixels = seen * is_thing
    top_thing = thing_pixels.argmax(axis=-1)
    top_area = np.take_along_axis(thing_pixels, top_thing[..., None], -1)[..., 0]
    complete = np.take_along_axis(seen / total, top_thing[..., None], -1)[..., 0] > 0.6
    others = thing_pixels.sum(axis=-1) - top_area
    names_thing = (top_area > 0.28 * whole) & (others < 0.35 * top_area) & complete
    stuff_pixels = seen * ~is_thing
    top_stuff = stuff_pixels.argmax(axis=-1)
    stuff_area = np.take_along_axis(stuff_pixels, top_stuff[..., None], -1)[..., 0]
    bar = np.where(top_stuff == is_thing.size - 1, 0.3, 0.6)
    names_stuff = (
        (stuff_area > bar * whole) & (thing_pixels.sum(axis=-1) < 0.15 * whole) & (whole > 64)
    )
    name = np.where(names_thing, top_thing, np.where(names_stuff, top_stuff, -1))
    rank = rng.random(name.shape) + np.where(names_thing, 0.5, 0.0) - np.where(name < 0, 10.0, 0.0)
    order = np.argsort(-rank, axis=1)[:, :keep]
    return np.take_along_axis(windows, order[..., None], 1), np.take_along_axis(name, order, 1)


@dataclass(frozen=True)
class Batch:
    """Pictures with their crops and captions.

    Attributes:
        images: (B, H, W, 3) float32 RGB in 0..255.
        windows: (B, W, P) bool crops on the patch grid.
        names: (B, W) index of the dominating name (clutter last), -1 for a crop without a caption.
        captions: a caption per whole picture.
    """

    images: np.ndarray
    windows: np.ndarray
    names: np.ndarray
    captions: list[str]


def draw_batch(rng: np.random.Generator, pool: Pool, pictures: int, windows: int) -> Batch:
    """Draw pictures, and for each the best of three times as many windows as are kept."""
    is_thing = np.array([" " in name for name in class_names()] + [False])
    chosen = rng.choice(len(pool.images), pictures, replace=False)
    images, counts, things = augment(rng, pool, chosen)
    candidates = draw_windows(rng, things, counts.shape[1], 3 * windows)
    flat = counts.reshape(pictures, -1, counts.shape[-1])
    kept, names = caption_windows(rng, candidates, flat, is_thing, windows)
    return Batch(images, kept, names, whole_captions(rng, counts))


def whole_captions(rng: np.random.Generator, counts: np.ndarray) -> list[str]:
    """A caption per picture: up to three things, largest first, and the largest texture."""
    labels = class_names()
    captions = []
    for area in counts.astype(np.int64).sum(axis=(1, 2))[:, : len(labels)]:
        order = [labels[index] for index in np.argsort(-area) if area[index] > 0]
        things = [name for name in order if " " in name][: int(rng.integers(1, 4))]
        stuff = [name for name in order if " " not in name][:1]
        captions.append(
            " and ".join(f"a {name}" for name in things) + f" on {stuff[0] if stuff else 'ground'}"
        )
    return captions


def say(name: str, style: str) -> str | None:
    """What a captioner of that style calls a name; None if the style has no word for it."""
    colour, _, shape = name.partition(" ")
    if style == "full":
        return name
    if style == "shape":
        return shape or name
    return f"{colour} thing" if shape else None
