#!/usr/bin/env python3
"""Draws docs/method.svg, the figure of README and docs/architecture.md."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).resolve().parent.parent
FROZEN, LEARNED, OURS, DATA = "#cfe2f3", "#fde9c9", "#d9ead3", "#f3f3f3"
# Name -> centre, width, text, colour; units are hundredths of the figure's width.
BOXES: dict[str, tuple[float, float, float, str, str]] = {
    "image": (7, 30, 11, "image", DATA),
    "encoder": (25, 37, 16, "image encoder", LEARNED),
    "vlm": (25, 23, 16, "frozen VLM\nimages", FROZEN),
    "names": (7, 7, 11, "class names", DATA),
    "text": (25, 7, 16, "frozen VLM\ntext", FROZEN),
    "proposals": (46, 37, 17, "mutually refined\nproposals (MRPE)", LEARNED),
    "embeds": (66, 23, 16, "embedding of\neach proposal", LEARNED),
    "synthetic": (46, 7, 17, "synthetic features,\nbackgrounds (GEPC)", OURS),
    "scores": (66, 7, 16, "class scores", LEARNED),
    "indicator": (87, 23, 19, "indicator: is it of\na class not seen? (PBC)", OURS),
    "labels": (87, 7, 19, "label map of seen\nand unseen classes", DATA),
}
ARROWS = (
    ("image", "encoder"),
    ("image", "vlm"),
    ("names", "text"),
    ("encoder", "proposals"),
    ("vlm", "proposals"),
    ("vlm", "embeds"),
    ("proposals", "embeds"),
    ("embeds", "scores"),
    ("text", "synthetic"),
    ("synthetic", "scores"),
    ("embeds", "indicator"),
    ("scores", "labels"),
    ("indicator", "labels"),
)
HEIGHT = 8.0
LEGEND = (
    (FROZEN, "frozen"),
    (LEARNED, "learned from masks of seen classes"),
    (OURS, "against the bias"),
)


def edge(name: str, towards: str) -> tuple[float, float]:
    """Where an arrow between two boxes touches the first."""
    x, y, width, *_ = BOXES[name]
    other_x, other_y, other_width, *_ = BOXES[towards]
    if abs(other_x - x) < (width + other_width) / 2:
        return x, y + (HEIGHT / 2 if other_y > y else -HEIGHT / 2)
    return x + (width / 2 if other_x > x else -width / 2), y


def draw(axes: Axes) -> None:
    """Puts boxes, arrows and legend into the axes."""
    for x, y, width, text, color in BOXES.values():
        axes.add_patch(
            FancyBboxPatch(
                (x - width / 2, y - HEIGHT / 2),
                width,
                HEIGHT,
                boxstyle="round,pad=0,rounding_size=1",
                facecolor=color,
                edgecolor="#555555",
            )
        )
        axes.text(x, y, text, ha="center", va="center", fontsize=9)
    for start, end in ARROWS:
        axes.add_patch(
            FancyArrowPatch(
                edge(start, end),
                edge(end, start),
                arrowstyle="-|>",
                mutation_scale=9,
                color="#555555",
            )
        )
    for place, (color, text) in enumerate(LEGEND):
        x = 62 + (0, 9, 0)[place] if place < 2 else 62
        y = 40 if place < 2 else 36.5
        axes.add_patch(FancyBboxPatch((x, y), 2, 1.6, boxstyle="square,pad=0", facecolor=color))
        axes.text(x + 3, y + 0.8, text, va="center", fontsize=8)
    axes.set(xlim=(0, 100), ylim=(1, 43), aspect="equal")
    axes.axis("off")


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "method.svg")
    output = parser.parse_args().output
    # Text stays text, and the same figure gives the same bytes.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "alignzeg"})
    figure = Figure(figsize=(10, 4.3), facecolor="white")
    draw(figure.add_axes((0, 0, 1, 1)))
    figure.savefig(output, metadata={"Date": None})


if __name__ == "__main__":
    main()
