"""What a prediction writes: files, sheets and their names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alignzeg.inference import Prediction, ProposalSet
from alignzeg.inference.sources import distinct_stems
from alignzeg.structures import Vocabulary


def hand_made() -> Prediction:
    labels = np.array([[0, 0, 1, 1], [0, 0, 255, 1]], dtype=np.uint8)
    masks = np.stack([labels == 0, labels == 1]).astype(np.float16)
    proposals = ProposalSet(
        masks,
        np.array([0, 1]),
        np.array([0.9, 0.8], np.float32),
        np.array([0.7, np.nan], np.float32),
    )
    vocabulary = Vocabulary(("red star", "brick", "grass"), (False, True, True))
    return Prediction(labels, vocabulary, np.full((2, 4, 3), 90, np.uint8), proposals)


def test_files(tmp_path: Path) -> None:
    prediction = hand_made()
    files = prediction.save(tmp_path / "new", "a")
    assert sorted(path.name for path in files) == sorted(
        ["a_overlay.png", "a_labels.png", "a.json", "a_proposals.npz", "a_proposals.png"]
    )
    index = Image.open(tmp_path / "new" / "a_labels.png")
    assert index.mode == "P"
    assert (np.array(index) == prediction.labels).all()
    colors = np.array(index.convert("RGB"))
    assert len({tuple(color) for color in colors.reshape(-1, 3).tolist()}) == 3
    summary = json.loads((tmp_path / "new" / "a.json").read_text())
    assert summary["classes"] == [
        {"id": 0, "name": "red star", "seen": False, "pixels": 4, "share": 0.5},
        {"id": 1, "name": "brick", "seen": True, "pixels": 3, "share": 0.375},
        {"id": 2, "name": "grass", "seen": True, "pixels": 0, "share": 0.0},
    ]
    assert summary["none_of_these"]["pixels"] == 1
    overlay = Image.open(tmp_path / "new" / "a_overlay.png")
    assert overlay.height == 384
    assert overlay.width > 768
    stored = np.load(tmp_path / "new" / "a_proposals.npz")
    assert stored["names"].tolist() == ["red star", "brick"]
    assert Image.open(tmp_path / "new" / "a_proposals.png").width > 96


def test_sheet_without_proposals() -> None:
    made = hand_made()
    with pytest.raises(ValueError, match="ask for some: proposals="):
        Prediction(made.labels, made.vocabulary, made.image).proposal_sheet()


def test_distinct_stems() -> None:
    images = ["x.png", "X.jpg", "x_2.png", "x.gif", "y.png"]
    stems = distinct_stems(images)
    assert stems[0] == "x"
    assert len({stem.lower() for stem in stems}) == 5
    assert distinct_stems(["only.png"]) == ["only"]
    assert stems[2] == "x_2"
