"""Scenes and results of `alignzeg predict`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignzeg.data.zeroshapes import render_scene, scene_rng

CLASSES = "red star, brick, sofa; couch"


def scene(i: int, size: int = 40) -> NDArray[np.uint8]:
    return render_scene(scene_rng(3, "val", i), size).image


def index(folder: Path) -> dict[str, dict[str, object]]:
    rows = json.loads((folder / "out" / "predictions.json").read_text())["images"]
    return {Path(row["image"]).name: row for row in rows}
