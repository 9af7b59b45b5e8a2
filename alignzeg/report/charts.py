"""Line charts as inline SVG; colours are classes of the style sheet, so they follow dark mode."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

# Size of the drawing in its own units; it is scaled to the width of its column.
_WIDTH, _HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 12, 12, 36


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        label: shown when pointed at.
        style: CSS classes, such as "run0 dashed".
        points: (x, y), x ascending.
    """

    label: str
    style: str
    points: Sequence[tuple[float, float]]


def line_chart(
    series: Sequence[Series],
    title: str,
    x_label: str = "iteration",
    y_range: tuple[float, float] | None = None,
    marks: bool = False,
) -> str:
    """Draws lines over a light grid.

    Later lines lie on top; those without points are skipped. By default the y axis covers the
    values from 0 up. Screen readers read the title.

    Returns:
        SVG text, or an empty text if there is nothing to draw.
    """
    series = [line for line in series if line.points]
    if not series:
        return ""
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points]
    low, high = y_range or (min(0.0, *ys), max(ys))
    y_ticks = ticks(low, high)
    low, high = min(low, y_ticks[0]), max(high, y_ticks[-1])
    frame = _Frame(min(0, *xs), max(*xs, 1), low, high if high > low else low + 1)
    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{html.escape(title)}">'
    ]
    parts += [_grid_line(frame, value) for value in y_ticks]
    parts += [
        f'<text class="tick" x="{frame.x(value):.1f}" y="{_HEIGHT - 20}" '
        f'text-anchor="middle">{value:g}</text>'
        for value in ticks(frame.x_low, frame.x_high, 5)
        if value <= frame.x_high
    ]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="axis" x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">'
        f"{html.escape(x_label)}</text>"
    )
    parts += [_line(frame, line, marks) for line in series]
    return "".join([*parts, "</svg>"])


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers that cover a range.

    The first is at most `low`, the last at least `high`.
    """
    if high <= low:
        high = low + 1
    raw = (high - low) / count
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


@dataclass(frozen=True)
class _Frame:
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _grid_line(frame: _Frame, value: float) -> str:
    y = frame.y(value)
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    )


def _line(frame: _Frame, line: Series, marks: bool) -> str:
    spots = [(frame.x(x), frame.y(y)) for x, y in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    label = html.escape(line.label)
    drawn = [
        f'<polyline class="line {line.style}" points="{path}"><title>{label}</title></polyline>'
    ]
    if marks or len(spots) == 1:
        drawn += [
            f'<circle class="dot {line.style}" cx="{x:.1f}" cy="{y:.1f}" r="3.2">'
            f"<title>{label}: {value:.1f} at {at:g}</title></circle>"
            for (x, y), (at, value) in zip(spots, line.points, strict=True)
        ]
    return "".join(drawn)
