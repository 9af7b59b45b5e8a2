"""The fingerprint of a data set: the same for a copy, another for every change that matters."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from alignzeg.data import fingerprint as module
from alignzeg.data.catalog import register
from alignzeg.data.fingerprint import data_hash, fingerprint

NAME = "zeroshapes_val"


@pytest.fixture
def copy(zeroshapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another folder with the same files, as the one that the catalog finds."""
    shutil.copytree(zeroshapes, tmp_path / "copy")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "copy"))
    return tmp_path / "copy"


def taken() -> str:
    return fingerprint([NAME])[NAME]["sha256"]


def test_a_copy_elsewhere_is_the_same(copy, zeroshapes, monkeypatch):
    here = fingerprint([NAME, "zeroshapes_train", NAME])
    monkeypatch.setenv("DETECTRON2_DATASETS", str(zeroshapes))
    assert fingerprint(["zeroshapes_val", "zeroshapes_train"]) == here
    assert here[NAME]["images"] == 5 and here[NAME]["files"] == here[NAME]["files_hashed"] == 10
    assert len(data_hash(here)) == 64 and data_hash(here) != data_hash(fingerprint([NAME]))


@pytest.mark.parametrize("change", ["pixel", "name", "less", "image"])
def test_every_change_shows(copy, change):
    before = taken()
    folder = copy / "zeroshapes"
    label = sorted((folder / "annotations" / "val").glob("*.png"))[0]
    image = next(path for path in (folder / "images" / "val").iterdir() if path.stem == label.stem)
    if change == "pixel":
        values = np.asarray(Image.open(label)).copy()
        values[0, 0] = 0 if values[0, 0] else 1
        Image.fromarray(values).save(label)
    elif change == "image":
        image.write_bytes(image.read_bytes() + b"\0")
    else:
        for path in (label, image):
            if change == "less":
                path.unlink()
            else:
                path.rename(path.with_stem("zzz"))
    assert taken() != before


def test_the_class_list_is_part_of_it(zeroshapes):
    benchmark = MetadataCatalog.get(NAME).benchmark
    swapped = dataclasses.replace(
        benchmark.vocabulary, names=benchmark.vocabulary.names[::-1], prompts=()
    )
    other = dataclasses.replace(benchmark, name="swapped", vocabulary=swapped, pseudo_unseen=())
    names = register(other)
    try:
        name = "swapped_val"
        assert fingerprint([name])[name]["sha256"] != taken()
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_large_data_is_read_in_part(zeroshapes, monkeypatch):
    size = sum(path.stat().st_size for path in (zeroshapes / "zeroshapes").rglob("val/*"))
    monkeypatch.setattr(module, "CONTENT_BUDGET", size // 2)
    found = fingerprint([NAME])[NAME]
    assert found["files"] == 10 and 3 <= found["files_hashed"] <= 5


def test_a_missing_file_is_named(copy):
    records = DatasetCatalog.get(NAME)
    records[0]["file_name"] = "gone.png"
    DatasetCatalog.register("torn_val", lambda: records)
    MetadataCatalog.get("torn_val").set(**_facts(NAME))
    try:
        with pytest.raises(ValueError, match=r"'torn_val'.*gone\.png"):
            fingerprint(["torn_val"])
    finally:
        DatasetCatalog.remove("torn_val")
        MetadataCatalog.remove("torn_val")


def _facts(name: str) -> dict:
    return {
        key: value for key, value in MetadataCatalog.get(name).as_dict().items() if key != "name"
    }


def test_a_file_name_of_another_encoding_counts(copy: Path) -> None:
    image = sorted((copy / "zeroshapes/images/val").iterdir())[0]
    before = taken()
    for kind in ("images/val", "annotations/val"):
        old = copy / "zeroshapes" / kind / f"{image.stem}.png"
        old.rename(os.fsdecode(os.fsencode(old.parent) + b"/Gr\xf6.png"))
    assert taken() != before
