"""The textures of stuff: one function each, (rng, size) -> (size, size, 3) float32 RGB."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np


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
