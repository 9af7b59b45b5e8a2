"""Commands on a tiny but real model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from predict_cases import CLASSES, scene

from alignzeg.__main__ import main
from alignzeg.inference.video import write_video


@pytest.fixture
def ask(tiny_weights: Path, tmp_path: Path):
    """Runs the command on the given words; results go to `out`."""

    def run(*words: object) -> int:
        common = ["--weights", tiny_weights, "--classes", CLASSES, "--output", tmp_path / "out"]
        return main(["predict", *map(str, [*words, *common])])

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with five scenes, one of them a folder deeper, and a text."""
    folder = tmp_path / "photos"
    for i, name in enumerate(("a.png", "b.png", "c.jpg", "d.png", "deep/e.png")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene(i)).save(path)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Five frames of one colour each, 48 x 64 pixels, 5 a second."""
    path = tmp_path / "clip.mp4"
    write_video(path, [np.full((48, 64, 3), 40 * i + 20, np.uint8) for i in range(5)], 5)
    return path
