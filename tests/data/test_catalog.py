"""Split files, registration, and what raw label values mean."""

import json

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from alignzeg.config import add_alignzeg_config
from alignzeg.data import catalog, labels, zeroshapes
from alignzeg.data.benchmark import read_split_file
from alignzeg.data.labels import get_vocabulary, label_lookup, read_labels, training_vocabulary

SPLIT = {
    "name": "toy",
    "classes": ["sky", "cat", "dog", "cow"],
    "unseen": ["dog"],
    "pseudo_unseen": ["cat"],
}


@pytest.fixture
def clean_catalog():
    """Removes whatever a test registers."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def split_file(folder, **changes):
    path = folder / "toy.json"
    path.write_text(json.dumps({**SPLIT, **changes}))
    return path


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(value)).save(path)


def write_pair(root, stem, split="val"):
    write(root / "toy" / "images" / split / f"{stem}.jpg", np.zeros((4, 5, 3), np.uint8))
    write(root / "toy" / "annotations" / split / f"{stem}.png", np.zeros((4, 5), np.uint8))


def config(*train, hold_out=""):
    cfg = get_cfg()
    add_alignzeg_config(cfg)
    cfg.DATASETS.TRAIN = train
    cfg.ALIGNZEG.DATA.HOLD_OUT = hold_out
    return cfg


def test_shipped_benchmarks_register_twice_without_harm():
    first = catalog.register_all()
    assert first == catalog.register_all()
    assert {"zeroshapes_train", "zeroshapes_val"} <= set(first)
    metadata = MetadataCatalog.get("zeroshapes_val")
    assert metadata.evaluator_type == "zero_shot_sem_seg"
    assert metadata.ignore_label == 255
    assert tuple(metadata.stuff_classes) == metadata.vocabulary.names
    assert not set(metadata.pseudo_unseen) & {
        metadata.stuff_classes[i] for i in metadata.vocabulary.unseen_ids
    }


def test_real_zeroshapes_files_are_read_in_full(tmp_path, monkeypatch):
    zeroshapes.write_dataset(tmp_path, "val", 3, size=64, workers=1)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    catalog.register_all()
    records = DatasetCatalog.get("zeroshapes_val")
    assert len(records) == 3
    vocabulary = get_vocabulary("zeroshapes_val")
    table = label_lookup("zeroshapes_val", vocabulary)
    for record in records:
        labels = read_labels(record["sem_seg_file_name"], "zeroshapes_val")
        assert labels.shape == (64, 64)
        np.testing.assert_array_equal(table[labels], labels)


def test_root_is_read_when_used(tmp_path, monkeypatch, clean_catalog):
    catalog.register(read_split_file(split_file(tmp_path)))
    for folder, stems in (("one", "a"), ("two", "bc")):
        for stem in stems:
            write_pair(tmp_path / folder, stem)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "one"))
    assert len(DatasetCatalog.get("toy_val")) == 1
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "two"))
    records = DatasetCatalog.get("toy_val")
    assert [record["file_name"][-5:] for record in records] == ["b.jpg", "c.jpg"]
    assert records[0]["sem_seg_file_name"].endswith("toy/annotations/val/b.png")
    assert records[0]["dataset_name"] == "toy_val"


@pytest.mark.parametrize("variable", ["", "elsewhere"])
def test_missing_files_name_everything(tmp_path, monkeypatch, clean_catalog, variable):
    catalog.register(read_split_file(split_file(tmp_path)))
    monkeypatch.chdir(tmp_path)
    if variable:
        monkeypatch.setenv("DETECTRON2_DATASETS", variable)
    else:
        monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    root = tmp_path / (variable or "datasets")
    with pytest.raises(ValueError) as caught:
        DatasetCatalog.get("toy_train")
    message = str(caught.value)
    for part in (
        "toy_train",
        f"data root: {root}",
        "DETECTRON2_DATASETS",
        str(root / "toy/images/train"),
        "python datasets/prepare_toy.py",
    ):
        assert part in message


@pytest.mark.parametrize("lost", ["images/val/b.jpg", "annotations/val/b.png"])
def test_an_unpaired_file_is_named(tmp_path, monkeypatch, clean_catalog, lost):
    for stem in "abc":
        write_pair(tmp_path, stem)
    (tmp_path / "toy" / lost).unlink()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    catalog.register(read_split_file(split_file(tmp_path)))
    kind = "image" if "images" in lost else "label"
    with pytest.raises(ValueError, match=rf"val/b\.(jpg|png) has no {kind} file"):
        DatasetCatalog.get("toy_val")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seen": ["sky", "cat", "dog", "cow"]}, "both as seen and as unseen"),
        ({"seen": ["sky", "cat"]}, "together are not 'classes'"),
        ({"unseen": ["dragon"]}, "dragon"),
        ({"pseudo_unseen": ["dog"]}, r"pseudo-unseen \['dog'\] are not seen"),
        ({"classes": ["sky", "cat", "dog", "cat"]}, "more than once"),
        ({"raw_ids": [1, 2, 3]}, "4 classes but 3 raw ids"),
        ({"raw_ids": [1, 2, 3, 3]}, "unique integers"),
        ({"raw_ids": [1, 2, 3, 255]}, "also 'no class'"),
        ({"colour": "red"}, r"unknown keys \['colour'\]"),
        ({"splits": {"val": {"image_root": "x"}}}, "sem_seg_root"),
    ],
)
def test_a_wrong_split_file_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_split_file(split_file(tmp_path, **changes))
    assert "toy.json" in str(caught.value)


def test_unreadable_split_file_is_named(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad\.json"):
        read_split_file(tmp_path / "bad.json")


def test_an_unknown_data_set_is_answered_with_the_nearest_name():
    catalog.register_all()
    with pytest.raises(ValueError, match="'zeroshape_val'.*did you mean 'zeroshapes_val'"):
        get_vocabulary("zeroshape_val")
    assert "zeroshape_val" not in MetadataCatalog.list()


def test_a_split_takes_every_third_image(tmp_path, monkeypatch, clean_catalog):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for stem in "edcba":
        write_pair(tmp_path, stem)
    roots = {"image_root": "toy/images/val", "sem_seg_root": "toy/annotations/val"}
    splits = {
        "val": roots,
        "fit": {**roots, "take": [3, [1, 2]]},
        "calib": {**roots, "take": [3, [0]]},
    }
    catalog.register(read_split_file(split_file(tmp_path, splits=splits)))
    stems = {
        split: [record["file_name"][-5] for record in DatasetCatalog.get(f"toy_{split}")]
        for split in splits
    }
    assert stems == {"val": list("abcde"), "fit": ["b", "c", "e"], "calib": ["a", "d"]}


def test_one_name_cannot_mean_two_data_sets(tmp_path, clean_catalog):
    catalog.register(read_split_file(split_file(tmp_path)))
    with pytest.raises(ValueError, match="already registered"):
        catalog.register(read_split_file(split_file(tmp_path, unseen=["cow"])))


def test_holding_out_replaces_the_unseen_classes(tmp_path, clean_catalog):
    catalog.register(read_split_file(split_file(tmp_path, prompts=["s", "c", "d", "w"])))
    full = get_vocabulary("toy_val")
    held = get_vocabulary("toy_val", "pseudo_unseen")
    assert (full.names, full.seen) == (("sky", "cat", "dog", "cow"), (True, True, False, True))
    assert (held.names, held.seen) == (("sky", "cat", "cow"), (True, False, True))
    assert held.prompts == ("s", "c", "w")
    assert training_vocabulary(config("toy_train")).names == ("sky", "cat", "cow")
    assert training_vocabulary(config("toy_train", hold_out="pseudo_unseen")).names == (
        "sky",
        "cow",
    )
    with pytest.raises(ValueError, match="HOLD_OUT"):
        get_vocabulary("toy_val", "some")


def test_lookup_hides_what_the_vocabulary_lacks(tmp_path, clean_catalog):
    changes = {"raw_ids": [7, 1, 9, 200], "ignored_raw_ids": [0]}
    catalog.register(read_split_file(split_file(tmp_path, **changes)))
    full = label_lookup("toy_val", get_vocabulary("toy_val"))
    assert full.dtype == np.uint8
    assert full.shape == (256,)
    assert [full[i] for i in (7, 1, 9, 200)] == [0, 1, 2, 3]
    assert (np.delete(full, [7, 1, 9, 200]) == 255).all()
    seen = label_lookup("toy_val", training_vocabulary(config("toy_train")))
    assert [seen[i] for i in (7, 1, 9, 200, 0, 255)] == [0, 1, 255, 2, 255, 255]


def test_two_byte_labels_and_long_vocabularies(tmp_path, clean_catalog):
    names = [f"class {i}" for i in range(300)]
    changes = {
        "classes": names,
        "unseen": [],
        "pseudo_unseen": [],
        "raw_ids": list(range(1000, 1300)),
        "ignore_label": 65535,
    }
    catalog.register(read_split_file(split_file(tmp_path, **changes)))
    table = label_lookup("toy_val", get_vocabulary("toy_val"))
    assert (table.dtype, table.shape) == (np.uint16, (65536,))
    assert (table[1000], table[1299], table[0], table[65535]) == (0, 299, 65535, 65535)
    write(tmp_path / "wide.png", np.array([[1000, 1299, 65535]], np.uint16))
    labels = read_labels(str(tmp_path / "wide.png"), "toy_val")
    assert labels.tolist() == [[1000, 1299, 65535]]


def test_label_files_are_checked(tmp_path, clean_catalog):
    catalog.register(read_split_file(split_file(tmp_path)))
    write(tmp_path / "high.png", np.array([[0, 3, 4, 77, 255]], np.uint8))
    with pytest.raises(ValueError, match=r"high\.png holds \[4, 77\].*0-3 and 255"):
        read_labels(str(tmp_path / "high.png"), "toy_val")
    write(tmp_path / "colour.png", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match=r"colour\.png.*one channel"):
        read_labels(str(tmp_path / "colour.png"), "toy_val")
    (tmp_path / "text.png").write_text("no image")
    for missing in ("text.png", "nothing.png"):
        with pytest.raises(ValueError, match=f"cannot read label file .*{missing}"):
            read_labels(str(tmp_path / missing), "toy_val")


def test_training_sets_must_agree(tmp_path, clean_catalog):
    catalog.register(read_split_file(split_file(tmp_path)))
    other = split_file(tmp_path, name="toy2", unseen=["cow"])
    catalog.register(read_split_file(other))
    with pytest.raises(ValueError, match=r"'toy_train' and 'toy2_train' differ.*\['cow', 'dog'\]"):
        training_vocabulary(config("toy_train", "toy2_train"))
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN is empty"):
        training_vocabulary(config())


def test_a_class_of_another_data_set_is_seen_if_training_had_it_under_any_name():
    cfg = config("coco_stuff171_train")
    voc = labels.eval_vocabulary(cfg, "voc20_val")
    assert voc.names == get_vocabulary("voc20_val").names
    # "sofa; couch" is COCO's couch, "airplane; aeroplane" its airplane; all 20 are known to it.
    assert all(voc.seen)
    ade = labels.eval_vocabulary(cfg, "ade20k_150_val")
    seen = dict(zip(ade.names, ade.seen, strict=True))
    assert seen["bed"] and seen["tree"]
    assert not seen["fireplace"] and not seen["chandelier"]
    assert ade.prompts == get_vocabulary("ade20k_150_val").prompts


@pytest.mark.parametrize("hold_out", ["", "pseudo_unseen"])
@pytest.mark.parametrize("name", ["voc2012", "voc2012_k4", "coco_stuff", "context59", "context60"])
def test_the_classes_asked_for_are_those_of_the_benchmark(name, hold_out):
    asked = labels.eval_vocabulary(config(f"{name}_train", hold_out=hold_out), f"{name}_val")
    assert asked == get_vocabulary(f"{name}_val", hold_out)


def test_what_a_test_set_calls_unseen_stays_unseen():
    asked = labels.eval_vocabulary(config("coco_stuff171_train"), "voc2012_val")
    assert asked.unseen_ids == get_vocabulary("voc2012_val").unseen_ids
