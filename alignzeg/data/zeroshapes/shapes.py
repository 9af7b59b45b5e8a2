"""The shapes of things and of clutter: outlines, colours, and the share of a pixel they cover."""

from __future__ import annotations

import cv2
import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 36, 40),
    "green": (48, 205, 62),
    "blue": (44, 84, 236),
    "yellow": (246, 220, 40),
    "purple": (158, 48, 196),
    "white": (244, 244, 244),
}

_SUPERSAMPLE = 4


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


def coverage_of(
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


def clutter_coverage(rng: np.random.Generator, size: int) -> np.ndarray:
    """A scribble or an irregular blob: (size, size) float32 in 0..1."""
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
