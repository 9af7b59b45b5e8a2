"""Images are read as a viewer shows them, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alignzeg.data.pictures import read_rgb


def test_images_are_read_as_a_viewer_shows_them(tmp_path: Path) -> None:
    base = np.zeros((2, 3, 3), np.uint8)
    base[0, 0] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(base).save(tmp_path / "turned.png", exif=exif)
    turned = read_rgb(tmp_path / "turned.png")
    assert turned.shape == (3, 2, 3)
    assert turned[0, 1].tolist() == [255, 0, 0]
    clear = np.zeros((2, 2, 4), np.uint8)
    clear[0, 0] = (10, 20, 30, 255)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    assert read_rgb(tmp_path / "clear.png")[0].tolist() == [[10, 20, 30], [255, 255, 255]]
    Image.fromarray(np.array([[7, 200]], np.uint8)).save(tmp_path / "grey.png")
    assert read_rgb(tmp_path / "grey.png").tolist() == [[[7] * 3, [200] * 3]]
    Image.fromarray(np.array([[0, 65535, 257 * 100]], np.uint16)).save(tmp_path / "deep.png")
    assert read_rgb(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 255, 100]


@pytest.mark.parametrize("broken", ["missing", "text", "truncated", "folder"])
def test_unreadable_image(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "p.png"
    if broken == "text":
        path.write_text("hello")
    elif broken == "truncated":
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:3000])
    elif broken == "folder":
        path.mkdir()
    with pytest.raises(ValueError, match=r"p\.png"):
        read_rgb(path)
