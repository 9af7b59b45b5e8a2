"""The embedded data set: deterministic, exact, compositional, written once."""

from __future__ import annotations

import json
import runpy
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import REPOSITORY

from alignzeg.data.zeroshapes import (
    COLOURS,
    OUTLINES,
    SPLIT_FILE,
    TEXTURES,
    class_names,
    render_scene,
    scene_rng,
    stuff_names,
    thing_names,
    write_dataset,
)

SPLIT = json.loads(SPLIT_FILE.read_text())
SCENES = [render_scene(scene_rng(3, "val", index)) for index in range(40)]


def test_names_are_what_the_renderer_can_draw() -> None:
    assert len(set(SPLIT["classes"])) == len(SPLIT["classes"]) == 42
    assert set(thing_names()) == {f"{c} {s}" for c in COLOURS for s in OUTLINES}
    assert set(stuff_names()) == set(TEXTURES)
    assert len(COLOURS) >= 6
    assert len(OUTLINES) >= 6
    assert len(TEXTURES) >= 6


@pytest.mark.parametrize(("group", "things", "stuff"), [("unseen", 8, 1), ("pseudo_unseen", 6, 1)])
def test_held_out_names_are_spread(group: str, things: int, stuff: int) -> None:
    held = SPLIT[group]
    assert set(held) <= set(SPLIT["classes"])
    pairs = [name.split() for name in held if " " in name]
    assert (len(pairs), len(held) - len(pairs)) == (things, stuff)
    for part, known in ((0, COLOURS), (1, OUTLINES)):
        assert max(Counter(pair[part] for pair in pairs).values()) <= 2
        left = [n.split()[part] for n in thing_names() if n not in SPLIT["unseen"]]
        assert set(left) == set(known), "each colour and each shape is seen elsewhere"


def test_calibration_names_are_seen() -> None:
    assert not set(SPLIT["unseen"]) & set(SPLIT["pseudo_unseen"])


def test_same_three_values_same_scene() -> None:
    first, again = (render_scene(scene_rng(1, "train", 5)) for _ in range(2))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.label, again.label)
    assert first.things == again.things
    for other in ((2, "train", 5), (1, "val", 5), (1, "train", 6), (1, "clip", 5)):
        assert not np.array_equal(first.image, render_scene(scene_rng(*other)).image)


def test_scenes_keep_their_promises() -> None:
    for scene in SCENES:
        assert scene.image.shape == (128, 128, 3)
        assert scene.image.dtype == scene.label.dtype == np.uint8
        present = set(np.unique(scene.label).tolist())
        assert present <= {*range(42), 255}
        stuff = {class_names()[i] for i in present if i != 255} & set(stuff_names())
        assert 1 <= len(stuff) <= 3
        assert 1 <= len(scene.things) <= 5
        assert {thing.name for thing in scene.things} <= {
            class_names()[i] for i in present if i < 255
        }
    clutter = np.mean([(scene.label == 255).mean() for scene in SCENES])
    assert 0.005 < clutter < 0.1
    assert np.mean([len(scene.things) for scene in SCENES]) > 2.5
    assert np.mean([len(set(np.unique(s.label)) & set(range(36, 42))) for s in SCENES]) > 1.8


def test_things_describe_the_label() -> None:
    for scene in SCENES:
        for name in {thing.name for thing in scene.things}:
            mask = scene.label == class_names().index(name)
            same = [thing for thing in scene.things if thing.name == name]
            assert mask.sum() == sum(thing.area for thing in same)
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert columns[0] == min(thing.box[0] for thing in same)
            assert rows[-1] + 1 == max(thing.box[3] for thing in same)


def test_mask_and_image_agree_at_edges() -> None:
    """Inside a mask the image has the thing's colour up to the last pixel row, not beyond."""
    hue_error = []
    for scene in SCENES:
        for thing in scene.things:
            colour = np.array(COLOURS[thing.name.split()[0]], float)
            inside = (scene.label == class_names().index(thing.name)).astype(np.uint8)
            core = cv2.erode(inside, np.ones((3, 3), np.uint8), borderValue=0).astype(bool)
            if core.any():
                hue_error.append(np.abs(scene.image[core].mean(0) - colour).mean())
    assert np.median(hue_error) < 30


@pytest.mark.parametrize("size", [64, 192])
def test_size_scales_everything(size: int) -> None:
    scenes = [render_scene(scene_rng(0, "val", index), size) for index in range(12)]
    assert scenes[0].image.shape == (size, size, 3)
    share = np.mean([thing.area for scene in scenes for thing in scene.things]) / size**2
    assert 0.02 < share < 0.15


def test_too_small_and_unknown_split_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 32"):
        render_scene(np.random.default_rng(0), 16)
    with pytest.raises(ValueError, match="unknown split 'test'"):
        scene_rng(0, "test", 0)


def read_all(root: Path) -> dict[str, tuple[bytes, int]]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files
    }


def test_writing_is_idempotent_and_atomic(tmp_path: Path) -> None:
    assert write_dataset(tmp_path, "val", 6, workers=1) == 6
    before = read_all(tmp_path)
    assert write_dataset(tmp_path, "val", 6, workers=1) == 0
    assert read_all(tmp_path) == before
    assert not [name for name in before if "writing" in name]
    (tmp_path / "zeroshapes/images/val/00003.png").unlink()
    assert write_dataset(tmp_path, "val", 6, workers=1) == 1
    after = read_all(tmp_path)
    assert {name: data for name, (data, _) in after.items()} == {
        name: data for name, (data, _) in before.items()
    }


def test_other_arguments_replace_the_split(tmp_path: Path) -> None:
    write_dataset(tmp_path, "val", 4, size=64, workers=1)
    write_dataset(tmp_path, "train", 2, size=64, workers=1)
    first = read_all(tmp_path)
    assert write_dataset(tmp_path, "val", 3, size=64, workers=1) == 0
    assert len(list((tmp_path / "zeroshapes/images/val").glob("*.png"))) == 3
    assert write_dataset(tmp_path, "val", 3, size=64, seed=9, workers=1) == 3
    now = read_all(tmp_path)
    key = "zeroshapes/images/val/00000.png"
    assert now[key][0] != first[key][0]
    assert now["zeroshapes/images/train/00000.png"] == first["zeroshapes/images/train/00000.png"]


def test_files_hold_the_scene(tmp_path: Path) -> None:
    write_dataset(tmp_path, "train", 2, workers=1)
    scene = render_scene(scene_rng(0, "train", 1))
    image = cv2.imread(str(tmp_path / "zeroshapes/images/train/00001.png"))
    label = cv2.imread(
        str(tmp_path / "zeroshapes/annotations/train/00001.png"), cv2.IMREAD_UNCHANGED
    )
    assert np.array_equal(image[..., ::-1], scene.image)
    assert np.array_equal(label, scene.label)
    ids = {class_names().index(name) for name in SPLIT["unseen"]}
    many = [render_scene(scene_rng(0, "train", index)).label for index in range(30)]
    assert any(ids & set(np.unique(label).tolist()) for label in many), "unseen labels are written"


def test_workers_give_the_same_files(tmp_path: Path) -> None:
    write_dataset(tmp_path / "one", "val", 60, size=32, workers=1)
    write_dataset(tmp_path / "two", "val", 60, size=32, workers=2)
    one, two = read_all(tmp_path / "one"), read_all(tmp_path / "two")
    assert {name: data for name, (data, _) in one.items()} == {n: d for n, (d, _) in two.items()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("test", 3), "unknown split"),
        (("val", 0), "at least one scene"),
        (("val", 3, 8), "32 pixels"),
    ],
)
def test_bad_requests(tmp_path: Path, arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_dataset(tmp_path, *arguments)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    script = REPOSITORY / "datasets" / "prepare_zeroshapes.py"
    main = runpy.run_path(str(script))["main"]
    words = ["--root", str(tmp_path), "--train", "3", "--val", "2", "--size", "32"]
    monkeypatch.setattr(sys, "argv", ["prepare_zeroshapes.py", *words])
    assert main() == 0
    assert "3 written now" in capsys.readouterr().out
    assert main() == 0
    assert "0 written now" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["prepare_zeroshapes.py", *words, "--size", "5"])
    assert main() == 2
    assert "at least 32" in capsys.readouterr().err
