"""The picture of the trade-off between seen and unseen classes."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from alignzeg.evaluation.calibration import Setting
from alignzeg.evaluation.tradeoff import draw, front, save_tradeoff


def setting(seen: float | None, unseen: float | None, gamma: float = 0.0) -> Setting:
    both = None if seen is None or unseen is None else 2 * seen * unseen / (seen + unseen)
    return Setting(gamma, 0.5, 0.0, 0.0, seen, unseen, both)


@pytest.mark.parametrize("count", [1, 2, 60])
def test_the_front_is_what_no_other_point_beats(count: int):
    points = np.random.default_rng(count).integers(0, 12, (count, 2)).astype(float)
    expected = {
        (x, y)
        for x, y in points.tolist()
        if not any((a >= x and b > y) or (a > x and b >= y) for a, b in points.tolist())
    }
    found = front(points)
    assert {(x, y) for x, y in found.tolist()} == expected
    assert found[:, 0].tolist() == sorted(x for x, _ in expected)


def test_the_picture_says_what_it_shows(tmp_path: Path):
    settings = [setting(80.0 - g, 20.0 + 2 * g, g) for g in range(12)] + [setting(70, None)]
    save_tradeoff(tmp_path / "a.png", settings, settings[0], settings[7])
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (1024, 768)
        assert len(set(image.convert("RGB").getdata())) > 50
    save_tradeoff(tmp_path / "a.svg", settings, settings[0], settings[7])
    ElementTree.parse(tmp_path / "a.svg")
    axes = draw(settings, settings[0], settings[7]).axes[0]
    labels = axes.get_legend_handles_labels()[1]
    assert "no correction: 80.0, 20.0" in labels and "best hIoU: 73.0, 34.0" in labels
    levels = [text.get_text() for text in axes.texts]
    assert levels and all(text.startswith("hIoU ") for text in levels)


def test_without_unseen_classes_it_says_so(tmp_path: Path):
    only = setting(70.0, None)
    axes = draw([only], only, only).axes[0]
    assert [text.get_text() for text in axes.texts] == ["no pseudo-unseen class is shown"]
    save_tradeoff(tmp_path / "a.pdf", [only], only, only)
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
