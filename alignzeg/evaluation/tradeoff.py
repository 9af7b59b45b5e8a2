"""The trade-off between seen and unseen classes as a picture: sIoU against uIoU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from alignzeg.files import atomic_write

# Settings whose hIoU lies so many points below the best may fall outside of the picture.
_SHOWN = 15.0


class Scored(Protocol):
    """What has scores in percent; see `alignzeg.evaluation.calibration.Setting`."""

    @property
    def scores(self) -> tuple[float | None, float | None, float | None]:
        """sIoU, uIoU and hIoU."""


def front(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The points (n, 2) that no other one beats in both values, by their first value."""
    order = np.lexsort((-points[:, 1], -points[:, 0]))
    kept, best = [], -np.inf
    for x, y in points[order]:
        if y > best:
            kept.append((x, y))
            best = y
    return np.array(kept[::-1]).reshape(-1, 2)


def save_tradeoff(
    path: str | Path, settings: Sequence[Scored], uncorrected: Scored, chosen: Scored
) -> None:
    """Draws every setting, those that no other beats as a line, and lines of equal hIoU.

    The end of the path, PNG, SVG or PDF, decides the format. Settings without sIoU or uIoU are left
    out.
    """
    figure = draw(settings, uncorrected, chosen)
    kind = Path(path).suffix.lower().lstrip(".")

    def write(file: IO[bytes]) -> None:
        figure.savefig(file, format=kind, dpi=160)

    atomic_write(path, write)


def draw(settings: Sequence[Scored], uncorrected: Scored, chosen: Scored) -> Figure:
    """The picture that `save_tradeoff` writes."""
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel("sIoU, seen classes, percent")
    axes.set_ylabel("uIoU, pseudo-unseen classes, percent")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    points = _points([*settings, uncorrected])
    if not len(points):
        axes.text(
            0.5, 0.5, "no pseudo-unseen class is shown", transform=axes.transAxes, ha="center"
        )
        return figure
    low, high = _limits(points)
    marked = _points([uncorrected, chosen])
    low, high = _around(low, high, marked if len(marked) else points)
    _contours(axes, low, high)
    seen, unseen = points.T
    axes.scatter(seen, unseen, s=9, color="#8b95a5", linewidths=0, label="settings", zorder=2)
    best = front(points)
    axes.plot(*best.T, color="#0f7b6c", linewidth=1.8, label="none better in both", zorder=3)
    marks = (("no correction", uncorrected, "s", "#1b1f27"), ("best hIoU", chosen, "o", "#c05c1e"))
    for name, setting, marker, color in marks:
        for spot in _points([setting]):
            label = f"{name}: {spot[0]:.1f}, {spot[1]:.1f}"
            axes.scatter(spot[0], spot[1], s=64, marker=marker, color=color, label=label, zorder=4)
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(low[1], high[1])
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _points(settings: Sequence[Scored]) -> NDArray[np.float64]:
    """(n, 2) sIoU and uIoU of those that have both."""
    pairs = [setting.scores[:2] for setting in settings if None not in setting.scores[:2]]
    return np.array(pairs, dtype=np.float64).reshape(-1, 2)


def _limits(points: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
    """What is shown of the plane: points near the best and a margin, within 0 to 100."""
    harmonic = 2 * points.prod(1) / np.maximum(points.sum(1), 1e-9)
    near = points[harmonic >= harmonic.max() - _SHOWN]
    low, high = near.min(0), near.max(0)
    margin = np.maximum(0.08 * (high - low), 1.0)
    return np.maximum(low - margin, 0), np.minimum(high + margin, 100)


def _around(low: NDArray, high: NDArray, marked: NDArray) -> tuple[NDArray, NDArray]:
    """The limits, widened so that the marked points lie inside."""
    return np.minimum(low, marked.min(0) - 1), np.maximum(high, marked.max(0) + 1)


def _contours(axes: Any, low: NDArray, high: NDArray) -> None:
    """Lines of equal hIoU behind the points, labelled."""
    seen, unseen = np.meshgrid(*(np.linspace(a, b, 160) for a, b in zip(low, high, strict=True)))
    total = seen + unseen
    harmonic = np.where(total > 0, 2 * seen * unseen / np.where(total > 0, total, 1), 0)
    span = harmonic.max() - harmonic.min()
    step = next(s for s in (0.5, 1, 2, 5, 10, 20) if span / s <= 8 or s == 20)
    levels = np.arange(np.ceil(harmonic.min() / step), harmonic.max() / step) * step
    if not len(levels):
        return
    lines = axes.contour(seen, unseen, harmonic, levels, colors="#c3c9d2", linewidths=0.9, zorder=1)
    axes.clabel(lines, fmt="hIoU %g", fontsize=8)
