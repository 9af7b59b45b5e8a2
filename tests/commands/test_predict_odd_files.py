"""`alignzeg predict` on other kinds, odd names and cut videos beside good pictures."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from predict_cases import index, scene

from alignzeg.inference.sources import distinct_stems
from alignzeg.inference.video import Frames, write_video


def test_kinds_that_are_not_read_are_one_line(ask, photos: Path, tmp_path: Path, capsys, caplog):
    for name in ("IMG_1.HEIC", "b.dng", "scan.dcm"):
        (photos / name).write_bytes(b"not read here")
    assert ask(photos) == 2
    said = capsys.readouterr().err.splitlines()
    (line,) = [line for line in said if line.startswith("skipped: ")]
    assert "3 of kinds that are not read: IMG_1.HEIC, b.dng, scan.dcm" in line
    assert "3 of 8 files could not be read, the others are done" in said[-1]
    assert "no pictures, passed over: 1, such as" in caplog.text and "notes.txt" in caplog.text
    rows = index(tmp_path)
    assert rows["a.png"]["result"] and rows["b.dng"]["result"] is None
    assert "develop it" in rows["b.dng"]["error"]
    assert ask(photos / "IMG_1.HEIC") == 2
    assert "convert it, as with: heif-convert" in capsys.readouterr().err


def test_names_that_a_disk_refuses_are_made_shorter(ask, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    names = ["m" * 240, "m" * 239 + "n", "猫" * 82, "z", "z.", "con"]
    for i, name in enumerate(names):
        (folder / name[:1]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene(i % 3)).save(folder / name[:1] / f"{name}.png")
    if sys.platform == "linux":
        Image.fromarray(scene(0)).save(os.fsdecode(os.fsencode(folder) + b"/\xff.png"), "PNG")
    assert ask(folder) == 0
    count = len(names) + (sys.platform == "linux")
    out = tmp_path / "out"
    stored = json.loads((out / "predictions.json").read_text())["images"]
    assert len({row["result"] for row in stored}) == count == len([*out.rglob("*_labels.png")])
    assert all((out / row["result"]).is_file() for row in stored)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*_labels.png")}
    assert ask(folder) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*_labels.png")} == before


def test_one_name_that_cannot_be_written_does_not_end_the_others(
    ask, photos: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """As on file systems that take shorter names; the length is the disk's own here."""
    monkeypatch.setattr("alignzeg.inference.sources._LONGEST", 250)
    (photos / "a.png").rename(photos / f"{'m' * 248}.png")
    assert ask(photos) == 2
    assert "mmm_overlay.png': File name too long" in capsys.readouterr().err
    assert len([*(tmp_path / "out").rglob("*_labels.png")]) == 4


def test_frames_of_a_video_get_no_names_of_pictures() -> None:
    assert distinct_stems(["clip.mp4", "clip/000000.png", "x.png", "x/1.png"]) == [
        *("clip_2", "clip/000000", "x", "x/1")
    ]
    assert distinct_stems(["aux.png", "b .png", "c..png"]) == ["aux_", "b", "c"]


@pytest.fixture
def motion(tmp_path: Path) -> Path:
    """Twelve frames, each a JPEG of its own, in an AVI file."""
    path = tmp_path / "motion.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48))
    noise = np.random.default_rng(0)
    for _ in range(12):
        writer.write(noise.integers(0, 255, (48, 64, 3)).astype(np.uint8))
    writer.release()
    return path


def test_a_cut_video_is_said_and_not_done(ask, motion: Path, tmp_path: Path, capsys) -> None:
    whole = motion.read_bytes()
    assert Frames(str(motion)).missing == 0
    motion.write_bytes(whole[: len(whole) // 2])
    frames = Frames(str(motion))
    read = len([*frames])
    assert frames.missing == 12 - read > 2
    some = Frames(str(motion), limit=2)
    assert len([*some]) == 2 and some.missing == 0
    for _ in range(2):  # the second call does not take it for done
        assert ask(motion) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"motion.avi says it has {12 - read} more frames than could be read" in error
    row = index(tmp_path)["motion.avi"]
    assert row["result"] == "motion.json" and "cut or damaged" in row["error"]
    assert len(json.loads((tmp_path / "out" / "motion.json").read_text())["frames"]) == read
    motion.write_bytes(whole)
    assert ask(motion) == 0
    assert len(json.loads((tmp_path / "out" / "motion.json").read_text())["frames"]) == 12


def test_bad_frames_within_a_video_are_counted(motion: Path) -> None:
    data = bytearray(motion.read_bytes())
    places = [i for i in range(len(data) - 4) if data[i : i + 4] == b"00dc"][:12]
    for place in places[4:8]:
        data[place + 8 : place + 600] = bytes(592)
    motion.write_bytes(data)
    frames = Frames(str(motion))
    read = len([*frames])
    assert read < 12 and frames.missing == 12 - read


def test_overlays_are_of_a_kind_that_browsers_show(tmp_path: Path, monkeypatch, caplog) -> None:
    frames = [np.full((48, 64, 3), 40 * i, np.uint8) for i in range(4)]
    write_video(tmp_path / "shown.mp4", frames, 5)
    content = (tmp_path / "shown.mp4").read_bytes()
    assert any(kind in content for kind in (b"avc1", b"vp09")) and not caplog.records
    monkeypatch.setattr("alignzeg.inference.video._CODECS", ("none", "mp4v"))
    write_video(tmp_path / "old.mp4", frames, 5)
    assert b"mp4v" in (tmp_path / "old.mp4").read_bytes()
    assert "browsers will not show" in caplog.text and "-c:v libx264" in caplog.text


def test_of_some_kinds_the_length_tells(tmp_path: Path) -> None:
    """Their count of frames is an estimate, of length and rate."""
    path = tmp_path / "clip.webm"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"VP80"), 5, (64, 48))
    noise = np.random.default_rng(0)
    for _ in range(20):
        writer.write(noise.integers(0, 255, (48, 64, 3)).astype(np.uint8))
    writer.release()
    frames = Frames(str(path))
    assert len([*frames]) == 20 and frames.missing == 0
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames = Frames(str(path))
    read = len([*frames])
    assert frames.missing == 20 - read > 5
