"""`alignzeg predict` with a tiny but real model: inputs of all kinds, options, wrong words."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from predict_cases import CLASSES, index, scene

from alignzeg.__main__ import main
from alignzeg.inference.sources import distinct_stems, find_sources


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
    "a text": (["HERE/t.txt"], "t.txt'; give an image such as PNG or JPEG, or a video"),
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
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert expected.replace("HERE", str(here)) in line
    assert name == "a text" or not (tmp_path / "out").exists()
    assert (here / "t.txt").read_text() == "a text\n"


def test_names_of_results_are_distinct_and_none_is_the_index() -> None:
    assert distinct_stems(["predictions.png", "a/x.png", "a/X.jpg"]) == [
        *("predictions_2", "a/x", "a/X_2")
    ]
