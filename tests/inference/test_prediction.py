"""An answer in other forms, each against a loop over pixels or a case worked out by hand."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from alignzeg.inference import Prediction, conversion
from alignzeg.inference.drawing import as_grey, places, with_names
from alignzeg.structures import Vocabulary

WORDS = Vocabulary(
    ("red star", "sofa", "grass"), (False, True, True), ("red star", "sofa; couch", "grass")
)


def scene() -> Prediction:
    """Grass, with a sofa of 3 x 5 pixels at row 1, column 2, and a pixel that is nothing."""
    labels = np.full((7, 9), 2, dtype=np.uint8)
    labels[1:4, 2:7] = 1
    labels[6, 8] = 255
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Prediction(labels, WORDS, image, None, rng.random((7, 9)).astype(np.float16))


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """COCO's run lengths: down the columns, beginning with zeros."""
    counts, value, length = [], False, 0
    for x in range(mask.shape[1]):
        for y in range(mask.shape[0]):
            if mask[y, x] != value:
                counts.append(length)
                value, length = mask[y, x], 0
            length += 1
    return [*counts, length]


def test_masks_go_by_any_name_of_a_class() -> None:
    prediction = scene()
    expected = np.zeros((7, 9), dtype=bool)
    expected[1:4, 2:7] = True
    for name in ("sofa", "couch", "Couch", " SOFA "):
        assert (prediction.mask(name) == expected).all()
    assert not prediction.mask("red star").any()


@pytest.mark.parametrize("name", ["gras", "", 3, None, "255"])
@pytest.mark.parametrize("method", ["mask", "polygons", "rle"])
def test_a_class_that_was_not_asked_for_is_named(name: object, method: str) -> None:
    with pytest.raises(ValueError, match="is none of the classes asked for") as caught:
        getattr(scene(), method)(name)
    assert ("did you mean 'grass'?" in str(caught.value)) == (name == "gras")


def test_scores_are_means_over_the_pixels_of_a_class() -> None:
    prediction = scene()
    sums: dict[str, list[float]] = {}
    for y in range(7):
        for x in range(9):
            if (label := prediction.labels[y, x]) != 255:
                best = float(prediction.confidence[y, x])
                sums.setdefault(WORDS.names[label], []).append(best)
    expected = {name: sum(values) / len(values) for name, values in sums.items()}
    assert prediction.scores == pytest.approx(expected)
    assert list(prediction.scores) == ["grass", "sofa"]
    rows = {row["name"]: row["score"] for row in prediction.summary()["classes"]}
    assert rows == {"red star": None, **prediction.scores}
    json.dumps(prediction.to_dict(), allow_nan=False)


def test_without_scores_there_is_no_confidence() -> None:
    plain = Prediction(scene().labels, WORDS, scene().image)
    for ask in (lambda: plain.scores, plain.confidence_image):
        with pytest.raises(ValueError, match="names pixels without scores"):
            ask()
    assert "score" not in plain.summary()["classes"][0]
    assert "score" not in plain.to_coco()[0]


def test_run_lengths_are_those_of_coco() -> None:
    prediction = scene()
    for name in ("sofa", "grass", "red star"):
        mask = prediction.mask(name)
        plain = {"size": [7, 9], "counts": run_lengths(mask)}
        expected = coco_mask.frPyObjects(plain, 7, 9)["counts"].decode()
        assert prediction.rle(name) == {"size": [7, 9], "counts": expected}
    found = {row["name"]: row.get("rle") for row in prediction.to_dict()["classes"]}
    assert found == {"red star": None, "sofa": prediction.rle("sofa"), "grass": found["grass"]}


def test_annotations_of_coco() -> None:
    grass, sofa = scene().to_coco(image_id=5)
    assert (grass["category"], grass["category_id"], grass["bbox"]) == ("grass", 3, [0, 0, 9, 7])
    assert (sofa["category_id"], sofa["bbox"], sofa["area"]) == (2, [2, 1, 5, 3], 15)
    assert [grass["id"], sofa["id"], sofa["image_id"]] == [1, 2, 5]
    assert sofa["score"] == scene().scores["sofa"]
    assert (coco_mask.decode(sofa["segmentation"]) == scene().mask("sofa")).all()
    assert list(coco_mask.toBbox(sofa["segmentation"])) == sofa["bbox"]


def test_a_whole_file_of_coco_is_loaded_by_its_own_tools(tmp_path: Path) -> None:
    found = scene()
    whole = Prediction.coco_file({"a.jpg": found, "b.jpg": found})
    (tmp_path / "coco.json").write_text(json.dumps(whole))
    coco = COCO(str(tmp_path / "coco.json"))
    assert coco.getImgIds() == [1, 2] and coco.getCatIds(["grass"]) == [3]
    assert [row["name"] for row in coco.loadCats([1, 2, 3])] == list(found.names)
    assert sorted(coco.getAnnIds()) == [1, 2, 3, 4]
    for name in ("grass", "sofa"):
        (row,) = coco.loadAnns(coco.getAnnIds(imgIds=[2], catIds=coco.getCatIds([name])))
        assert (coco.annToMask(row) == found.mask(name)).all()
    (tmp_path / "results.json").write_text(json.dumps(found.to_coco(image_id=2)))
    assert len(coco.loadRes(str(tmp_path / "results.json")).getAnnIds(imgIds=[2])) == 2
    with pytest.raises(ValueError, match="one list of classes; 0 are given"):
        Prediction.coco_file({})


def test_polygons_follow_the_borders_of_regions() -> None:
    (corners,) = scene().polygons("sofa")
    assert {tuple(corner) for corner in corners.tolist()} == {(2, 1), (6, 1), (6, 3), (2, 3)}
    assert scene().polygons("red star") == []
    mask = np.zeros((60, 80), dtype=bool)
    mask[2:12, 3:50] = True
    yy, xx = np.indices(mask.shape)
    mask |= (yy - 40) ** 2 + (xx - 40) ** 2 < 15**2
    mask[30, 0] = True  # a single pixel has no polygon
    drawn = Image.new("1", (80, 60))
    found = conversion.polygons(mask)
    assert len(found) == 2 and mask[found[0][0][1], found[0][0][0]]
    for corners in found:
        ImageDraw.Draw(drawn).polygon([tuple(c) for c in corners.tolist()], fill=1)
    wrong = np.asarray(drawn) != mask
    assert wrong.sum() < 0.05 * mask.sum()


@pytest.mark.parametrize(
    ("package", "method"), [("pandas", "to_df"), ("supervision", "to_detections")]
)
def test_a_package_that_is_missing_is_named_with_its_remedy(
    package: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{method}\(\) needs {package}.*pip install {package}"):
        getattr(scene(), method)()


def test_a_table_of_pandas() -> None:
    pytest.importorskip("pandas")
    frame = scene().to_df()
    assert list(frame.columns) == ["id", "name", "seen", "pixels", "share", "score"]
    assert frame.set_index("name").loc["sofa", "pixels"] == 15
    assert frame["share"].sum() == pytest.approx(62 / 63)


def test_detections_of_supervision() -> None:
    supervision = pytest.importorskip("supervision")
    found = scene().to_detections()
    assert isinstance(found, supervision.Detections)
    assert found.class_id.tolist() == [2, 1]
    assert found.data["class_name"].tolist() == ["grass", "sofa"]
    assert found.xyxy.tolist() == [[0, 0, 9, 7], [2, 1, 7, 4]]
    assert (found.mask[1] == scene().mask("sofa")).all()
    assert found.confidence[1] == pytest.approx(scene().scores["sofa"])
    empty = Prediction(np.full((2, 2), 255, np.uint8), WORDS, np.zeros((2, 2, 3), np.uint8))
    assert len(empty.to_detections()) == 0


# ---------------------------------------------------------------------------------------- pictures
def test_the_confidence_is_a_grey_image() -> None:
    prediction = scene()
    expected = [[round(255 * float(v)) for v in row] for row in prediction.confidence]
    assert np.asarray(prediction.confidence_image()).tolist() == expected


def test_a_notebook_shows_the_overlay() -> None:
    shown = Image.open(io.BytesIO(scene()._repr_png_()))
    assert (np.asarray(shown) == np.asarray(scene().overlay())).all()


def test_a_plot_holds_the_overlay() -> None:
    figure, axes = pyplot.subplots(1, 2)
    try:
        assert scene().plot(axes[1], side_by_side=True) is axes[1]
        (drawn,) = axes[1].get_images()
        expected = np.asarray(scene().overlay(side_by_side=True))
        assert (np.asarray(drawn.get_array()) == expected).all()
        assert not axes[0].get_images()
        own = scene().plot()
        assert own.get_images() and own.figure is not figure
    finally:
        pyplot.close("all")


def flat(style: dict[str, object]) -> tuple[NDArray[np.uint8], Prediction]:
    """An overlay of two halves without names, and the prediction."""
    labels = np.zeros((400, 400), dtype=np.uint8)
    labels[:, 200:] = 1
    image = np.full((400, 400, 3), (200, 100, 50), dtype=np.uint8)
    prediction = Prediction(labels, WORDS, image)
    return np.asarray(prediction.overlay(names=False, legend=False, **style)), prediction


def test_opacity_and_grey() -> None:
    # 0.299 x 200 + 0.587 x 100 + 0.114 x 50 = 124.2
    assert flat({"opacity": 0})[0][9, 9].tolist() == [124, 124, 124]
    assert flat({"opacity": 0, "grey": False})[0][9, 9].tolist() == [200, 100, 50]
    drawn, prediction = flat({"opacity": 1})
    table = prediction.index_image().convert("RGB")
    assert tuple(drawn[9, 9]) == table.getpixel((9, 9))
    half = flat({"opacity": 0.5})[0][9, 9].astype(int)
    assert abs(2 * half - 124 - drawn[9, 9]).max() <= 1
    assert (as_grey(np.array([[[10, 10, 10]]], np.uint8)) == 10).all()


@pytest.mark.parametrize("opacity", [-0.1, 1.1, float("nan"), "half", None, True])
def test_a_wrong_opacity_is_named(opacity: object) -> None:
    with pytest.raises(ValueError, match="opacity is .*; it must be a number from 0 to 1"):
        scene().overlay(opacity=opacity)  # type: ignore[arg-type]


def test_side_by_side_shows_the_image_first() -> None:
    drawn, prediction = flat({"side_by_side": True})
    assert drawn.shape == (400, 804, 3)
    assert (drawn[:, :400] == prediction.image).all()
    assert (drawn[:, 404:] == flat({})[0]).all()


def test_names_stand_where_a_region_is_widest() -> None:
    labels = np.zeros((40, 60), dtype=np.uint8)
    labels[5:30, 10:45] = 1
    labels[12:20, 50:58] = 7  # without a name
    found = places(labels, 2)
    assert {label for label, *_ in found} == {0, 1}
    for label, x, y, radius in found:
        assert labels[y, x] == label
        # The nearest pixel of another class or beyond the image, by looking at all.
        others = [(v, u) for v in range(-1, 41) for u in range(-1, 61)]
        nearest = min(
            ((v - y) ** 2 + (u - x) ** 2) ** 0.5
            for v, u in others
            if not (0 <= v < 40 and 0 <= u < 60) or labels[v, u] != label
        )
        assert radius == pytest.approx(nearest, rel=0.05)
    (box,) = [place for place in found if place[0] == 1]
    assert 12 <= box[3] <= 13


def test_only_regions_with_room_bear_a_name() -> None:
    labels = np.zeros((300, 300), dtype=np.uint8)
    labels[:, 150:] = 1
    labels[100:103, 20:120] = 2
    image = np.full((300, 300, 3), 128, dtype=np.uint8)
    changed = (with_names(image, labels, WORDS.names) != image).any(-1)
    rows, columns = np.nonzero(changed)
    assert changed[:, :150].any() and changed[:, 150:].any()
    assert rows.min() > 0 and columns.max() < 299
    # A line of three pixels has no room, and without it the picture is the same.
    thin = labels.copy()
    thin[labels == 2] = 255
    assert (with_names(image, thin, WORDS.names) == with_names(image, labels, WORDS.names)).all()


def test_the_legend_does_not_depend_on_the_names() -> None:
    drawn, plain = (np.asarray(scene().overlay(names=names)) for names in (True, False))
    width = np.asarray(scene().overlay(legend=False)).shape[1]
    assert (drawn[:, width:] == plain[:, width:]).all()


def test_files_are_whole_and_hold_what_was_asked(tmp_path) -> None:
    prediction = scene()
    files = prediction.save(
        tmp_path / "a", "b/x", confidence=True, about={"made_with": 3}, opacity=0.2
    )
    assert [file.name for file in files] == [
        *("x_overlay.png", "x_labels.png", "x_confidence.png", "x.json")
    ]
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == sorted(
        file.name for file in files
    )
    said = json.loads((tmp_path / "a" / "b" / "x.json").read_text())
    assert said == {**prediction.summary(), "made_with": 3}
    drawn = np.asarray(Image.open(files[0]))
    assert (drawn == np.asarray(prediction.overlay(opacity=0.2))).all()
    only = prediction.save(tmp_path / "c", "x", overlay=False)
    assert [file.name for file in only] == ["x_labels.png", "x.json"]
