"""`alignzeg predict` with a tiny but real model: inputs of all kinds, stops, files that are bad."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from alignzeg.__main__ import main
from alignzeg.data.zeroshapes import render_scene, scene_rng
from alignzeg.inference import Prediction, Predictor, video
from alignzeg.inference.sources import distinct_stems, find_sources
from alignzeg.inference.video import Frames, write_video

CLASSES = "red star, brick, sofa; couch"


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


def scene(i: int, size: int = 40) -> NDArray[np.uint8]:
    return render_scene(scene_rng(3, "val", i), size).image


def index(folder: Path) -> dict[str, dict[str, object]]:
    rows = json.loads((folder / "out" / "predictions.json").read_text())["images"]
    return {Path(row["image"]).name: row for row in rows}


# ----------------------------------------------------------------------------------------- inputs
def test_a_folder_a_pattern_and_files(ask, photos: Path, tmp_path: Path, capsys) -> None:
    assert ask(photos, photos / "*.png", photos / "a.png") == 0
    out = tmp_path / "out"
    labels = sorted(str(path.relative_to(out)) for path in out.rglob("*_labels.png"))
    assert labels == sorted(
        f"{name}_labels.png" for name in ("a", "b", "c", "d", os.path.join("deep", "e"))
    )
    assert len(index(tmp_path)) == 5
    assert all((out / row["result"]).is_file() for row in index(tmp_path).values())
    said = capsys.readouterr().out
    assert "knows 3 of 5 words: red, star, brick\n" in said
    assert "5 predicted -> " in said


def test_patterns_reach_any_depth(photos: Path, tmp_path: Path) -> None:
    found = find_sources([str(photos / "**" / "*.png")], tmp_path / "out")
    assert [source.stem for source in found] == ["a", "b", "d", "e"]


def test_results_in_the_folder_of_the_images_are_no_images(
    tiny_weights: Path, photos: Path, capsys
) -> None:
    words = ["--weights", str(tiny_weights), "--classes", CLASSES, "--output", str(photos)]
    assert main(["predict", str(photos), "--confidence", *words]) == 0
    before = {path: path.stat().st_mtime_ns for path in photos.rglob("*.png")}
    assert main(["predict", str(photos), "--confidence", *words]) == 0
    assert "0 predicted, 5 there already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in photos.rglob("*.png")} == before


def test_an_annotation_beside_an_image_is_not_replaced(
    tiny_weights: Path, photos: Path, capsys
) -> None:
    (photos / "b.json").write_text('{"shapes": []}')
    words = ["--weights", str(tiny_weights), "--classes", CLASSES, "--output", str(photos)]
    assert main(["predict", str(photos), *words]) == 2
    assert "b.json was not written by predict; give another --output" in capsys.readouterr().err
    assert (photos / "b.json").read_text() == '{"shapes": []}'
    assert not [*photos.glob("*_labels.png")]


def test_kinds_of_images(ask, tmp_path: Path) -> None:
    image = scene(0)[:, :30]
    folder = tmp_path / "kinds"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(folder / "turned.jpg", exif=exif)
    grey = np.asarray(Image.fromarray(image).convert("L"))
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "deep.tif")
    Image.fromarray(np.dstack([image, np.full((40, 30), 128, np.uint8)])).save(folder / "alpha.png")
    assert ask(folder) == 0
    sizes = {path.name: Image.open(path).size for path in (tmp_path / "out").glob("*_labels.png")}
    assert sizes.pop("turned_labels.png") == (40, 30)
    assert set(sizes.values()) == {(30, 40)} and len(sizes) == 3
    same = [(tmp_path / "out" / f"{name}_labels.png").read_bytes() for name in ("grey", "deep")]
    assert same[0] == same[1]


def test_bad_files_are_named_and_the_others_done(ask, photos: Path, tmp_path: Path, capsys) -> None:
    (photos / "b.png").write_bytes((photos / "b.png").read_bytes()[:300])
    (photos / "z.mp4").write_text("no video")
    assert ask(photos) == 2
    said = capsys.readouterr()
    skipped = [line for line in said.err.splitlines() if line.startswith("skipped: ")]
    assert len(skipped) == 2 and "b.png" in skipped[0] and "z.mp4" in skipped[1]
    (error,) = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert "2 of 6 files could not be read" in error and "b.png" in error and "z.mp4" in error
    rows = index(tmp_path)
    assert rows["b.png"]["result"] is None and "b.png" in str(rows["b.png"]["error"])
    assert {name for name, row in rows.items() if row["result"]} == {
        *("a.png", "c.jpg", "d.png", "e.png")
    }


def test_a_terminal_shows_progress(ask, photos: Path, clip: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert ask(photos, clip) == 0
    shown = capsys.readouterr().err
    assert all(word in shown for word in ("Loading the model", "Predicting", "clip_overlay.mp4"))


# ---------------------------------------------------------------------------------------- stopping
def test_a_stopped_run_goes_on_without_redoing_one(
    ask, photos: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    looked: list[int] = []
    predict = Predictor._predict

    def stopping(self: Predictor, *words: object) -> Prediction:
        if len(looked) == 3:
            raise KeyboardInterrupt
        looked.append(1)
        return predict(self, *words)

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "_predict", stopping)
        assert ask(photos) == 130
    assert "run the same command to go on" in capsys.readouterr().err
    out = tmp_path / "out"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert len([*out.rglob("*_labels.png")]) == 3 == len(index(tmp_path))
    # What was cut off while it was written has no JSON.
    (out / "d_labels.png").write_bytes(b"half")

    def counting(self: Predictor, *words: object) -> Prediction:
        looked.append(2)
        return predict(self, *words)

    monkeypatch.setattr(Predictor, "_predict", counting)
    assert ask(photos) == 0
    assert looked == [1, 1, 1, 2, 2]
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path.name for path in before if before[path] != after[path]} == {"predictions.json"}
    assert Image.open(out / "d_labels.png").size == (40, 40)
    assert len(index(tmp_path)) == 5


def test_what_has_changed_is_done_again(ask, photos: Path, capsys) -> None:
    def counted(*words: str) -> str:
        assert ask(photos, *words) == 0
        return capsys.readouterr().out.splitlines()[-1]

    assert counted().startswith("5 predicted ->")
    Image.fromarray(scene(9)).save(photos / "a.png")
    assert counted().startswith("1 predicted, 4 there already ->")
    assert counted().startswith("0 predicted, 5 there already ->")
    assert counted("--opacity", "0.3").startswith("5 predicted ->")
    assert counted("--opacity", "0.3", "--overwrite").startswith("5 predicted ->")
    assert counted("--opacity", "0.3", "--reject", "0.5").startswith("5 predicted ->")


def test_a_label_map_that_is_gone_is_made_again(ask, photos: Path, tmp_path: Path, capsys) -> None:
    assert ask(photos) == 0
    (tmp_path / "out" / "c_labels.png").unlink()
    capsys.readouterr()
    assert ask(photos) == 0
    assert "1 predicted, 4 there already" in capsys.readouterr().out
    assert (tmp_path / "out" / "c_labels.png").is_file()


def test_an_image_that_is_too_large_is_named(ask, photos: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)  # half of what is refused
    assert ask(photos / "a.png") == 2
    said = capsys.readouterr().err.splitlines()
    (line,) = [line for line in said if line.startswith("skipped: ")]
    assert "a.png: it has more than 1,400 pixels; make it smaller" in line


def test_all_there_needs_no_model(ask, photos: Path, monkeypatch) -> None:
    assert ask(photos) == 0

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the model was built")

    monkeypatch.setattr(Predictor, "__init__", never)
    assert ask(photos) == 0


# ----------------------------------------------------------------------------------------- options
def test_reject_writes_the_confidence_that_it_is_compared_with(ask, photos: Path, tmp_path) -> None:
    assert ask(photos / "a.png", "--confidence") == 0
    out = tmp_path / "out"
    best = np.asarray(Image.open(out / "a_confidence.png"))
    limit = (float(np.median(best)) + 0.5) / 255
    sure = abs(best / 255 - limit) > 1 / 255
    assert ask(photos / "a.png", "--reject", limit) == 0
    rejected = np.asarray(Image.open(out / "a_labels.png")) == 255
    assert (rejected == (best / 255 < limit))[sure].all() and 0 < rejected.mean() < 1
    assert (np.asarray(Image.open(out / "a_confidence.png")) == best).all()


def test_overlays_by_option(ask, photos: Path, tmp_path: Path) -> None:
    sizes = {}
    for name, words in {"plain": [], "both": ["--side-by-side"]}.items():
        assert ask(photos / "a.png", "--no-names", "--color", "--opacity", 0, *words) == 0
        with Image.open(tmp_path / "out" / "a_overlay.png") as image:
            sizes[name] = image.width
            drawn = np.asarray(image)
    assert sizes["both"] == sizes["plain"] + 400 + 4  # ten times 40 pixels, and the gap
    # Neither names nor colours hide the image.
    assert (drawn[5::10, 5:400:10] == scene(0)).all()


def test_the_words_of_the_vlm(tiny_weights: Path, capsys) -> None:
    assert main(["predict", "--words", "--weights", str(tiny_weights)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("alignzeg-tiny") and "words: " in said and " star" in said
    assert "couch" not in said


# ----------------------------------------------------------------------------------------- videos
@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Five frames of one colour each, 48 x 64 pixels, 5 a second."""
    path = tmp_path / "clip.mp4"
    write_video(path, [np.full((48, 64, 3), 40 * i + 20, np.uint8) for i in range(5)], 5)
    return path


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


# -------------------------------------------------------------------------------------- wrong words
WRONG = {
    "nothing to look at": ([], "nothing to look at; give images, folders, videos or --camera 0"),
    "a missing image": (["HERE/a.pgn"], "a.pgn does not exist; did you mean 'HERE/a.png'?"),
    "a missing folder": (["HERE/no/a.png"], "there is no folder HERE/no; give an image"),
    "an empty word": ([""], "one of the images is ''"),
    "an address": (["https://a.org/x.jpg"], "https://a.org/x.jpg is an address; download"),
    "a folder without images": (["HERE/empty"], "HERE/empty holds no image and no video"),
    "a pattern of nothing": (["HERE/*.gif"], "*.gif matches nothing; give another"),
    "a pattern of texts": (["HERE/*.txt"], "only files that are no images, such as HERE/t.txt"),
    "a camera that is not there": (["--camera", "77"], "no camera of this number gives an image"),
    "a camera that is no number": (["--camera", "front"], "'front' is not a whole number"),
    "camera and image": (["HERE/a.png", "--camera", "0"], "--camera 0 and HERE/a.png cannot go"),
    "frames of an image": (["HERE/a.png", "--frames", "3"], "--frames 3 is for videos and cameras"),
    "every of an image": (["HERE/a.png", "--every", "2"], "--every 2 is for videos and cameras"),
    "every none": (["HERE/a.png", "--every", "0"], "--every: '0' is not a whole number 1 or more"),
    "too opaque": (["HERE/a.png", "--opacity", "55"], "--opacity: '55' is not a number from 0"),
    "a share of words": (["HERE/a.png", "--reject", "high"], "--reject: 'high' is not a number"),
    "pixels below none": (["HERE/a.png", "--max-pixels", "-1"], "'-1' is not a whole number 0"),
    "no classes": (["HERE/a.png", "--classes", ","], "no class names in ','"),
    "a class twice": (["HERE/a.png", "--classes", "a, b, A"], "given more than once: ['A', 'a']"),
    "a missing class file": (["HERE/a.png", "--classes", "no.txt"], "class names from no.txt"),
    "a folder of classes": (["HERE/a.png", "--classes", "HERE"], "cannot read class names from"),
    "missing weights": (["HERE/a.png", "--weights", "no.pth"], "'no.pth' does not exist"),
    "a folder as weights": (["HERE/a.png", "--weights", "HERE"], "checkpoint 'HERE'"),
    "an image as weights": (["HERE/a.png", "--weights", "HERE/a.png"], "a.png"),
    "a file as output": (["HERE/a.png", "--output", "HERE/t.txt"], "--output is 'HERE/t.txt', but"),
    "an unknown device": (["HERE/a.png", "--device", "gpu"], "--device is 'gpu'"),
    "half a pair": (["HERE/a.png", "SEED"], "come in pairs KEY VALUE"),
    "an unknown key": (["HERE/a.png", "MODEL.DEVCE", "cpu"], "did you mean MODEL.DEVICE?"),
    "a text": (["HERE/t.txt"], "1 of 1 files could not be read, the others are done: HERE/t.txt"),
    "an unknown option": (["HERE/a.png", "--opacty", "1"], "did you mean '--opacity'?"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_word_is_one_line(
    name: str, tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, expected = WRONG[name]
    here = tmp_path / "here"
    (here / "empty").mkdir(parents=True)
    Image.fromarray(scene(0)).save(here / "a.png")
    (here / "t.txt").write_text("a text\n")
    words = [word.replace("HERE", str(here)) for word in given]
    usual = {"--weights": tiny_weights, "--classes": "brick, grass", "--output": tmp_path / "out"}
    for option, value in usual.items():
        words += [] if option in words else [option, str(value)]
    # Behind options, pairs would be taken for images.
    assert main(["predict", *words]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("skipped: ")]
    assert line.startswith("error: ")
    assert expected.replace("HERE", str(here)) in line
    assert name == "a text" or not (tmp_path / "out").exists()
    assert (here / "t.txt").read_text() == "a text\n"


def test_names_of_results_are_distinct_and_none_is_the_index() -> None:
    assert distinct_stems(["predictions.png", "a/x.png", "a/X.jpg"]) == [
        *("predictions_2", "a/x", "a/X_2")
    ]
