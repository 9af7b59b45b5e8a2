"""`alignzeg predict` on videos and cameras."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from alignzeg.inference import Prediction, Predictor, video
from alignzeg.inference.video import Frames, write_video


def test_frames_come_in_order(clip: Path) -> None:
    frames = Frames(str(clip))
    assert (frames.rate, frames.count) == (5, 5)
    given = [(number, frame.mean()) for number, frame in frames]
    assert [number for number, _ in given] == [0, 1, 2, 3, 4]
    assert [mean for _, mean in given] == pytest.approx([20, 60, 100, 140, 180], abs=6)
    some = Frames(str(clip), every=2, limit=2)
    assert some.count == 2 and [number for number, _ in some] == [0, 2]


def test_colours_of_a_video_are_rgb(tmp_path: Path) -> None:
    red = np.zeros((33, 47, 3), np.uint8)
    red[..., 0] = 220
    assert write_video(tmp_path / "red.mp4", [red] * 3, 10) == 3
    frame = next(iter(Frames(str(tmp_path / "red.mp4"))))[1]
    assert frame.shape == (32, 46, 3)  # an odd row and column are left out
    assert frame[..., 0].mean() > 180 and frame[..., 1:].mean() < 40


def test_a_video_is_predicted_frame_by_frame_and_goes_on(
    ask, clip: Path, tmp_path: Path, monkeypatch
) -> None:
    looked = []
    predict = Predictor._predict

    def stopping(self: Predictor, *words: object) -> Prediction:
        if len(looked) == 2:
            raise KeyboardInterrupt
        looked.append(1)
        return predict(self, *words)

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "_predict", stopping)
        assert ask(clip, "--every", 2) == 130
    out = tmp_path / "out"
    assert not (out / "clip.json").exists()
    first = (out / "clip" / "000000.json").stat().st_mtime_ns
    assert ask(clip, "--every", 2) == 0
    assert (out / "clip" / "000000.json").stat().st_mtime_ns == first
    said = json.loads((out / "clip.json").read_text())
    assert [row["frame"] for row in said["frames"]] == [0, 2, 4]
    assert [row["seconds"] for row in said["frames"]] == [0, 0.4, 0.8]
    assert all((out / row["result"]).is_file() for row in said["frames"])
    assert Image.open(out / "clip" / "000004_labels.png").size == (64, 48)
    assert Frames(str(out / "clip_overlay.mp4")).count == 3
    # Again there is nothing left to do.
    assert ask(clip, "--every", 2) == 0
    assert (out / "clip" / "000000.json").stat().st_mtime_ns == first


def test_a_camera_is_looked_through(ask, clip: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """The camera is a file here: this machine has none."""
    opened = []
    capture = cv2.VideoCapture

    def camera(source: object) -> cv2.VideoCapture:
        opened.append(source)
        return capture(str(clip))

    monkeypatch.setattr(video.cv2, "VideoCapture", camera)
    assert ask("--camera", 1, "--frames", 2) == 0
    assert opened == [1]
    assert len([*(tmp_path / "out").glob("camera1_*/*_overlay.png")]) == 2
    assert "camera 1, frame 1: " in capsys.readouterr().out


def test_a_video_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    def failing():
        yield np.zeros((16, 16, 3), np.uint8)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        write_video(tmp_path / "x.mp4", failing(), 5)
    with pytest.raises(ValueError, match="no frame"):
        write_video(tmp_path / "x.mp4", [], 5)
    assert not [*tmp_path.iterdir()]
