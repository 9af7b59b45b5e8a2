"""What is found in the files of a data set before the first step, and what is remembered of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

import alignzeg
from alignzeg.data import checks
from alignzeg.data.checks import check_files, classes_found, shared_images


@pytest.fixture(autouse=True)
def clean_catalog() -> Iterator[None]:
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pictures for training, and one for testing that is the second of them by content."""
    monkeypatch.setattr(checks, "user_cache", lambda: tmp_path / "cache")
    folder = tmp_path / "mine"
    for split, stems in (("train", "abc"), ("val", "z")):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for place, stem in enumerate(stems):
            value = 1 if split == "val" else place
            picture = np.full((8, 8, 3), value, np.uint8)
            Image.fromarray(picture).save(folder / "images" / split / f"{stem}.png")
            labels = np.full((8, 8), value, np.uint8)
            Image.fromarray(labels).save(folder / "labels" / split / f"{stem}.png")
    (folder / "classes.txt").write_text("grass\nsky\nred ball\nblue box\n")
    return folder


def test_absent_classes_and_doubts_are_one_line(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alignzeg.register_folder("mine", root)
    assert classes_found("mine_train") == (3, frozenset({"grass", "sky", "red ball"}))
    (record,) = caplog.records
    assert "no pixel of 3 label files is blue box. no pixel is 'no class'" in record.getMessage()


def test_a_second_start_reads_what_has_changed_only(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alignzeg.register_folder("mine", root)
    read: list[str] = []
    real = checks.read_record_labels

    def spied(record: dict[str, str], size: tuple[int, int]) -> np.ndarray:
        read.append(os.path.basename(record["sem_seg_file_name"]))
        return real(record, size)

    monkeypatch.setattr(checks, "read_record_labels", spied)
    first = classes_found("mine_train")
    assert sorted(read) == ["a.png", "b.png", "c.png"]
    read.clear()
    assert classes_found("mine_train") == first and read == []
    # Other values in a label file: all are counted again, and what is wrong is found.
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(root / "labels/train/b.png")
    with pytest.raises(ValueError, match=r"b\.png holds \[7\]"):
        check_files("mine_train")
    assert "b.png" in read


def test_a_check_is_not_remembered_for_another_meaning_of_ids(root: Path) -> None:
    alignzeg.register_folder("mine", root)
    assert classes_found("mine_train")[1] == {"grass", "sky", "red ball"}
    alignzeg.register_folder("other", root, raw_ids=[1, 2, 0, 9], ignore_label=255)
    assert classes_found("other_train")[1] == {"grass", "sky", "red ball"}
    alignzeg.register_folder("third", root, raw_ids=[0, 1, 9, 2])
    assert classes_found("third_train")[1] == {"grass", "sky", "blue box"}


def test_a_damaged_memory_is_made_anew(root: Path, tmp_path: Path) -> None:
    alignzeg.register_folder("mine", root)
    first = classes_found("mine_train")
    for path in (tmp_path / "cache" / "checks").iterdir():
        path.write_text("{")
    assert classes_found("mine_train") == first


def test_images_of_training_in_the_test_set(root: Path) -> None:
    alignzeg.register_folder("mine", root)
    assert shared_images(["mine_train"], "mine_val") == 1
    Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(root / "images/val/z.png")
    assert shared_images(["mine_train"], "mine_val") == 0
    assert shared_images(["mine_train"], "mine_train") == 3
