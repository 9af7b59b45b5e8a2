"""Data sets and plugins that are registered at run time, in processes that were not forked."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

import alignzeg
from alignzeg.config.plugins import imported_plugins
from alignzeg.data.catalog import is_as_shipped
from alignzeg.data.labels import get_vocabulary, read_labels, registered_names
from alignzeg.data.worker_registration import Carrying, Registered
from alignzeg.engine import import_plugin
from alignzeg.engine.training.sampling import TrainLoader

PLUGIN = """
from detectron2.data import MetadataCatalog


class Mapper:
    def __call__(self, record):
        from alignzeg.data.labels import read_labels

        labels = read_labels(record["sem_seg_file_name"], record["dataset_name"])
        return {"labels": labels, "names": MetadataCatalog.get("given_train").stuff_classes}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One pair, registered by a call, and its records once more by a lambda."""
    for kind in ("images", "labels"):
        (tmp_path / kind / "train").mkdir(parents=True)
        Image.fromarray(np.eye(4, dtype=np.uint8)).save(tmp_path / kind / "train" / "a.png")
    alignzeg.register_folder("carried", tmp_path, classes=["grass", "sky"])
    records = [{**record, "dataset_name": "given_train"} for record in records_of("carried_train")]
    DatasetCatalog.register("given_train", lambda: records)
    facts = MetadataCatalog.get("carried_train").as_dict()
    MetadataCatalog.get("given_train").set(**{k: v for k, v in facts.items() if k != "name"})
    yield tmp_path
    forget()


def records_of(name: str) -> list[dict]:
    return DatasetCatalog.get(name)


def forget() -> None:
    for name in ("carried_train", "given_train"):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_what_is_registered_comes_along(folder: Path) -> None:
    before = records_of("carried_train"), get_vocabulary("carried_train")
    data = pickle.dumps(Carrying(str))
    forget()
    assert "given_train" not in registered_names()
    assert pickle.loads(data)(5) == "5"
    assert (records_of("carried_train"), get_vocabulary("carried_train")) == before
    assert [r["dataset_name"] for r in records_of("given_train")] == ["given_train"]
    assert read_labels(records_of("given_train")[0]["sem_seg_file_name"], "given_train").sum() == 4


def test_what_the_package_registers_does_not_come_along() -> None:
    assert all(is_as_shipped(name) for name in ("zeroshapes_train", "voc2012_val"))
    assert len(pickle.dumps(Registered())) < 100_000


@pytest.fixture
def spawning():
    """Processes are spawned, as on macOS, on Windows, and inside a process that was spawned."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.usefixtures("spawning")
def test_a_spawned_worker_reads_own_data_through_a_plugin(folder: Path) -> None:
    (folder / "plugin.py").write_text(PLUGIN)
    mapper = import_plugin(folder / "plugin.py").Mapper()
    assert str((folder / "plugin.py").resolve()) in imported_plugins()
    loader = TrainLoader(records_of("given_train"), mapper, images=1, seed=0, workers=1)
    (sample,) = next(iter(loader))
    assert np.array_equal(sample["labels"], np.eye(4)) and sample["names"] == ["grass", "sky"]
