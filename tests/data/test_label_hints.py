"""What is said about label files of other tools, and ids that are not 0, 1, 2, ..."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

import alignzeg
from alignzeg.data.label_hints import (
    annotations_near,
    doubts,
    named_otherwise,
    what_lies_there,
    whole_numbers,
    why_no_ids,
)
from alignzeg.data.labels import label_lookup, read_labels
from alignzeg.structures import Vocabulary

NAMES = ["grass", "sky", "red ball"]


@pytest.fixture(autouse=True)
def clean_catalog() -> Iterator[None]:
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_whole_floats_are_ids_and_fractions_are_not() -> None:
    assert whole_numbers(np.array([[0.0, 3.0]], np.float32)).tolist() == [[0, 3]]
    assert whole_numbers(np.array([[np.nan, 2.0]])).tolist() == [[-1, 2]]
    lowest = np.finfo(np.float32).min
    assert whole_numbers(np.array([[lowest, 2.0]], np.float32)).tolist() == [[-1, 2]]
    half = np.array([[0.5, 1.0]])
    assert whole_numbers(half) is half
    assert "fractions, such as 0.5" in why_no_ids(half)
    for endless in (np.inf, 1e30):
        assert whole_numbers(np.array([[endless, 1.0]])).dtype == float


def test_colours_and_equal_channels_are_told_apart() -> None:
    grey = np.repeat(np.arange(6, dtype=np.uint8).reshape(2, 3, 1), 3, axis=2)
    assert "its channels are the same" in why_no_ids(grey)
    colours = grey.copy()
    colours[..., 1] = 9
    assert "its 6 colours are colours of classes, as CVAT" in why_no_ids(colours)
    many = np.indices((20, 20)).transpose(1, 2, 0).astype(np.uint8)
    many = np.concatenate([many, many[..., :1]], axis=2)
    assert "its 400 colours are a picture, or panoptic ids" in why_no_ids(many)


@pytest.mark.parametrize(
    ("label", "image", "is_its"),
    [
        ("00_mask", "00", True),
        ("mask_00", "00", True),
        ("a/aachen_1_gtFine_labelIds", "a/aachen_1_leftImg8bit", True),
        ("a/00_mask", "b/00", False),
        ("00_mask", "01", False),
        ("00", "00", False),
    ],
)
def test_a_label_map_named_otherwise(label: str, image: str, is_its: bool) -> None:
    said = named_otherwise(label, [image])
    assert (repr(image) in said and "rename" in said) if is_its else said == ""


@pytest.mark.parametrize(
    ("file", "tool"),
    [
        ("a.json", "COCO, labelme"),
        ("a.xml", "CVAT"),
        ("a.txt", "YOLO"),
        ("a.npy", "NumPy"),
        ("a.jpg", "JPEG files, whose values"),
    ],
)
def test_what_lies_in_place_of_label_maps(tmp_path: Path, file: str, tool: str) -> None:
    assert what_lies_there(tmp_path) == ""
    (tmp_path / file).write_text("x")
    assert tool in what_lies_there(tmp_path)


def test_annotations_beside_the_images(tmp_path: Path) -> None:
    assert annotations_near(tmp_path) == annotations_near(tmp_path / "none") == ""
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "_annotations.coco.json").write_text("{}")
    assert "_annotations.coco.json, as another tool writes it" in annotations_near(tmp_path)


@pytest.mark.parametrize(
    ("pixels", "inner", "unlabelled", "said"),
    [
        ([900, 900, 900], [800, 800, 800], 0, ""),
        ([900, 900, 100], [800, 800, 0], 9, "'red ball' occur in lines of one or two pixels"),
        ([900, 0, 0], [800, 0, 0], 90, "write 1 in place|1 should stand in place of 255"),
        ([900, 900, 0], [800, 800, 0], 0, "IGNORE_LABEL 0"),
        ([900, 900, 0], [800, 800, 0], 5, ""),
        ([9, 9, 9], [0, 0, 0], 5, ""),  # so few pixels tell nothing
    ],
)
def test_doubts(pixels: list[int], inner: list[int], unlabelled: int, said: str) -> None:
    lines = doubts(NAMES, np.array(pixels), np.array(inner), unlabelled)
    if not said:
        assert lines == []
    else:
        assert len(lines) == 1
        assert any(part in lines[0] for part in said.split("|"))


def folder(root: Path, labels: np.ndarray, suffix: str = ".png") -> str:
    """A data set of one pair; its label file."""
    for kind in ("images", "labels"):
        (root / kind / "train").mkdir(parents=True)
    picture = np.zeros((*labels.shape[:2], 3), np.uint8)
    Image.fromarray(picture).save(root / "images/train/a.png")
    path = root / f"labels/train/a{suffix}"
    Image.fromarray(labels).save(path)
    return str(path)


def ids(path: str, name: str, **settings: object) -> list[int]:
    """Class ids of a label file as a registration gives them; 255 is none."""
    alignzeg.register_folder(name, Path(path).parents[2], **settings)  # type: ignore[arg-type]
    labels = read_labels(path, f"{name}_train")
    names = settings.get("classes", NAMES)
    assert isinstance(names, list)
    vocabulary = Vocabulary(tuple(names), (True,) * len(names))
    return label_lookup(f"{name}_train", vocabulary)[labels].ravel().tolist()


def test_ids_with_gaps_are_named_by_a_list(tmp_path: Path) -> None:
    path = folder(tmp_path, np.array([[2, 5, 9, 255]], np.uint8))
    found = ids(path, "gaps", classes=NAMES, raw_ids=[9, 2, 5])
    assert found == [1, 2, 0, 255]
    with pytest.raises(ValueError, match=r"holds \[9\].*RAW_IDS"):
        ids(path, "short", classes=NAMES, raw_ids=[1, 2, 5])


@pytest.mark.parametrize(
    ("raw_ids", "message"),
    [
        ([1], "3 classes but 1 raw ids"),
        ([1, 1, 2], "unique integers"),
        ([-1, 1, 2], "unique integers"),
        ([1, 2, 65536], "unique integers"),
        (["0", 1, 2], "unique integers"),
        ([True, 2, 3], "unique integers"),
        ([0.5, 2, 3], "unique integers"),
        ([0, 1, 255], r"\[255\] mean a class and also 'no class'"),
    ],
)
def test_wrong_ids_are_named(tmp_path: Path, raw_ids: list, message: str) -> None:
    folder(tmp_path, np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError, match=message):
        alignzeg.register_folder("wrong", tmp_path, classes=NAMES, raw_ids=raw_ids)


def test_a_list_may_number_its_names(tmp_path: Path) -> None:
    path = folder(tmp_path, np.array([[2, 5, 9, 255]], np.uint8))
    (tmp_path / "classes.txt").write_text("2: grass\n5: sky\n9: red ball\n")
    alignzeg.register_folder("numbered", tmp_path)
    assert MetadataCatalog.get("numbered_train").raw_ids == (2, 5, 9)
    assert MetadataCatalog.get("numbered_train").vocabulary.names == tuple(NAMES)
    assert ids(path, "again", classes=NAMES, raw_ids=[2, 5, 9]) == [0, 1, 2, 255]


def test_a_zero_of_no_class_shifts_the_others(tmp_path: Path) -> None:
    path = folder(tmp_path, np.array([[0, 1, 2, 3, 255]], np.uint8))
    assert ids(path, "void", classes=NAMES, ignore_label=0) == [255, 0, 1, 2, 255]
    # Any other value of no class leaves the classes where they are.
    assert ids(path, "in_order", classes=[*NAMES, "box"], ignore_label=4) == [0, 1, 2, 3, 255]


def test_rasters_of_maps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder(tmp_path, np.array([[-9999.0, 0, 1, 2]], np.float32), ".tif")
    assert ids(path, "map", classes=NAMES) == [255, 0, 1, 2]
    assert "hold -9999; values below 0 are taken for 'no class'" in caplog.text


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train/a.jpg", "valid/a.jpg"], "train, valid at its top, as Roboflow"),
        (
            ["JPEGImages/a.jpg", "ImageSets/train.txt"],
            "JPEGImages holds files of all splits",
        ),
        (["images/a.jpg"], "images holds files of all splits: move them to images/train"),
        (["pictures/a.jpg", "pictures/a.json"], "a.json, as another tool writes it"),
    ],
)
def test_trees_of_other_tools(tmp_path: Path, files: list[str], message: str) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("x")
    with pytest.raises(ValueError, match=f"(?s){message}.*Label files of other tools"):
        alignzeg.register_folder("other", tmp_path, classes=NAMES)


@pytest.mark.parametrize("line", ["__ignore__", "# label:color_rgb:parts:actions", "a:1,2,3::"])
def test_lists_of_other_tools(tmp_path: Path, line: str) -> None:
    folder(tmp_path, np.zeros((2, 2), np.uint8))
    (tmp_path / "classes.txt").write_text(f"{line}\ngrass\n")
    with pytest.raises(ValueError, match=r"classes\.txt"):
        alignzeg.register_folder("lists", tmp_path)
