"""Drawn predictions: bounded, legible, and with a legend in the colours that are seen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import REPOSITORY
from matplotlib import font_manager
from PIL import Image

from alignzeg import fonts
from alignzeg.fonts import font
from alignzeg.inference import Prediction
from alignzeg.structures import Vocabulary
from alignzeg.visualize import LONGEST_SIDE, display_size

WORDS = Vocabulary(("grass", "sky", "red ball"), (True, True, False))


def predicted(height: int, width: int) -> Prediction:
    labels = (np.arange(width) * 3 // width).astype(np.uint8)[None].repeat(height, 0)
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Prediction(labels, WORDS, image)


@pytest.mark.parametrize(
    "size", [(1, 3000), (3000, 1), (10, 1000), (1, 1), (100, 100), (5000, 7), (3000, 4000)]
)
def test_overlays_of_any_shape_are_bounded(size: tuple[int, int]) -> None:
    image = predicted(*size).overlay()
    assert image.height <= max(LONGEST_SIDE, 500)
    assert image.width <= LONGEST_SIDE + 1200


def test_small_images_are_enlarged_and_large_ones_shrunk_in_shape() -> None:
    assert display_size(100, 150, 384) == (400, 600)
    assert display_size(1, 3000, 384) == (1, LONGEST_SIDE)
    assert display_size(10, 1000, 384) == (20, 2000)
    assert display_size(3000, 6000, 384) == (1024, 2048)
    assert display_size(500, 500, 384) == (500, 500)


def test_the_legend_shows_the_colours_of_the_regions() -> None:
    height, width = 90, 120
    labels = np.zeros((height, width), dtype=np.uint8)
    labels[:, 60:] = 2
    image = np.full((height, width, 3), (200, 120, 40), dtype=np.uint8)
    prediction = Prediction(labels, WORDS, image)
    drawn = np.asarray(prediction.overlay())
    factor = display_size(height, width, 384)[0] // height
    regions = {tuple(drawn[5, 5]), tuple(drawn[5, 100 * factor])}
    panel = drawn[:, factor * width :].reshape(-1, 3)
    colors, counts = np.unique(panel, axis=0, return_counts=True)
    swatches = {tuple(color) for color in colors[np.argsort(-counts)][1:3]}
    assert swatches == regions


def test_a_strip_keeps_its_whole_legend() -> None:
    names = tuple(f"name {i}" for i in range(7))
    labels = (np.arange(700) * 7 // 700).astype(np.uint8)[None]
    image = np.zeros((1, 700, 3), dtype=np.uint8)
    overlay = Prediction(labels, Vocabulary(names, (True,) * 7), image).overlay()
    assert overlay.height >= 7 * 12


# ------------------------------------------------------------------------------------------ letters
def test_letters_that_no_font_has_are_named_and_a_font_is_asked_for(monkeypatch, caplog) -> None:
    monkeypatch.setattr(fonts, "_system_fonts", lambda: (font_manager.findfont("DejaVu Sans"),))
    monkeypatch.delenv(fonts.FONT_VARIABLE, raising=False)
    for cache in (fonts._file_for, fonts._hint, fonts.font):
        cache.cache_clear()
    plain = "Wiese, луг, λιβάδι"
    assert font(20, plain).spelled(plain) == plain
    assert "8349" in font(20).spelled("\u8349")
    # Two letters of which the font has none are drawn apart.
    grass, ground = font(20).getmask("\u8349"), font(20).getmask("\u5730")
    assert grass.getbbox() is not None and bytes(grass) != bytes(ground)
    assert font(20).getlength("\u8349") == font(20).getlength("U+8349 ")
    assert "ALIGNZEG_FONT=FILE" in caplog.text


def test_a_font_can_be_given(monkeypatch, tmp_path) -> None:
    ours = font_manager.findfont("STIXGeneral")
    only = fonts._letters(ours) - fonts._letters(font_manager.findfont("DejaVu Sans"))
    letter = sorted(only)[0]
    monkeypatch.setattr(fonts, "_system_fonts", lambda: ())
    monkeypatch.setenv(fonts.FONT_VARIABLE, ours)
    fonts._file_for.cache_clear()
    fonts.font.cache_clear()
    try:
        assert font(20, letter).path == ours
        assert font(20, letter).spelled(letter) == letter
        monkeypatch.setenv(fonts.FONT_VARIABLE, str(tmp_path / "none.ttf"))
        fonts._file_for.cache_clear()
        fonts.font.cache_clear()
        assert font(20, letter).spelled(letter) != letter
    finally:
        fonts._file_for.cache_clear()
        fonts.font.cache_clear()


MEASURED = """
import json, resource, sys
import numpy as np
from alignzeg.inference import Prediction
from alignzeg.structures import Vocabulary
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
labels = np.zeros((4000, 6000), dtype=np.uint8)
labels[2000:] = 1
image = np.zeros((4000, 6000, 3), dtype=np.uint8)
Prediction(labels, Vocabulary(("a", "b"), (True, True)), image).save(sys.argv[1], "x")
print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))
"""


def test_a_large_answer_is_written_in_little_memory(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=REPOSITORY,
        check=True,
    )
    assert json.loads(done.stdout) < 500  # MiB beside the libraries
    assert Image.open(tmp_path / "x_labels.png").size == (6000, 4000)
