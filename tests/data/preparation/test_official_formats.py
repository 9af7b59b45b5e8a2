"""From the official formats to class ids: every pixel of every registered benchmark, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from numpy.typing import NDArray
from official_trees import MSRC_NAMES, TREES, VOC_MAP, blocks
from PIL import Image

from alignzeg.data import catalog
from alignzeg.data.benchmark import read_split_file
from alignzeg.data.labels import get_vocabulary, label_lookup, read_labels
from alignzeg.data.preparation.command import prepare

NONE, WIDE_NONE = 255, 65535
VOC = blocks([NONE, 0], [14, 19], [15, NONE])
CONTEXT_59 = blocks([NONE, 0], [54, NONE], [19, 49])
CONTEXT_60 = blocks([0, 1], [55, 0], [20, 50])
ADE_847 = np.array([[0, 1], [846, WIDE_NONE]])
COCO = blocks([0, 11], [19, 170], [NONE, 160])
MSRC = blocks([NONE, 3], [NONE, 20], [19, 12])
# benchmark: where it is prepared from, its splits, and the ids of the fixture's label map.
ALL = {
    "voc2012": ("voc2012", ("train", "val"), VOC),
    "voc20": ("voc2012", ("val",), VOC),
    "pas20b": ("voc2012", ("val",), blocks([20, 0], [14, 19], [15, NONE])),
    "pas21": ("voc2012", ("val",), VOC_MAP),
    **{f"voc2012_k{k}": ("voc2012", ("train", "val"), VOC_MAP) for k in (2, 4, 6, 8, 10)},
    "context59": ("context-mat", ("train", "val"), CONTEXT_59),
    "pc59": ("context-mat", ("val",), CONTEXT_59),
    "context60": ("context-mat", ("train", "val"), CONTEXT_60),
    **{f"context59_k{k}": ("context-mat", ("train", "val"), CONTEXT_59) for k in (2, 4, 6, 8)},
    **{f"context60_k{k}": ("context-mat", ("train", "val"), CONTEXT_60) for k in (2, 4, 6, 8)},
    "context459": ("context-mat", ("val",), blocks([WIDE_NONE, 1], [426, 430], [97, 396])),
    "coco_stuff": ("coco-stuff", ("train", "val"), COCO),
    "coco_stuff171": ("coco-stuff", ("train", "val"), COCO),
    "ade20k_150": ("ade20k-150", ("train", "val"), blocks([NONE, 0], [149, 12], [7, 7])),
    "ade20k_847": ("ade20k-847", ("val",), ADE_847.repeat(3, 0).repeat(4, 1)),
    "msrc21": ("msrc21-official", ("train", "val"), MSRC),
    **{f"msrc21_k{k}": ("msrc21-official", ("train", "val"), MSRC) for k in (2, 4, 6, 8)},
}
# What a training sees of the same map: seen classes, counted anew; unseen ones are unlabelled.
SEEN = {
    "voc2012": blocks([NONE, 0], [14, NONE], [NONE, NONE]),
    "voc2012_k2": blocks([0, 1], [13, 18], [14, NONE]),
    "voc2012_k4": blocks([0, NONE], [12, 16], [13, NONE]),
    "voc2012_k6": blocks([0, NONE], [11, NONE], [12, NONE]),
    "voc2012_k8": blocks([0, NONE], [10, NONE], [11, NONE]),
    "voc2012_k10": blocks([0, NONE], [9, NONE], [NONE, NONE]),
    "context59": blocks([NONE, NONE], [NONE, NONE], [NONE, 40]),
    "context59_k2": blocks([NONE, 0], [52, NONE], [NONE, 47]),
    "context59_k4": blocks([NONE, 0], [50, NONE], [NONE, 45]),
    "context59_k6": blocks([NONE, 0], [48, NONE], [NONE, 43]),
    "context59_k8": blocks([NONE, 0], [NONE, NONE], [NONE, 42]),
    "context60": blocks([0, NONE], [NONE, 0], [NONE, 41]),
    "context60_k2": blocks([0, 1], [53, 0], [NONE, 48]),
    "context60_k4": blocks([0, 1], [51, 0], [NONE, 46]),
    "context60_k6": blocks([0, 1], [49, 0], [NONE, 44]),
    "context60_k8": blocks([0, 1], [NONE, 0], [NONE, 43]),
    "coco_stuff": blocks([0, 11], [NONE, 155], [NONE, NONE]),
    "msrc21": blocks([NONE, NONE], [NONE, NONE], [16, 10]),
    "msrc21_k2": blocks([NONE, NONE], [NONE, NONE], [18, 11]),
    "msrc21_k4": blocks([NONE, NONE], [NONE, NONE], [16, 10]),
    "msrc21_k6": blocks([NONE, NONE], [NONE, NONE], [14, 9]),
    "msrc21_k8": blocks([NONE, NONE], [NONE, NONE], [12, 8]),
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every tree, prepared."""
    found = {}
    for name, tree in TREES.items():
        found[name] = tree.build(tmp_path_factory.mktemp(name))
        command = ["--root", str(found[name]), "--workers", "1", *tree.options]
        assert prepare(tree.recipe, command) == 0
    return found


def labels_of(dataset: str, root: Path, monkeypatch: pytest.MonkeyPatch, seen: bool = False):
    """Image name -> label map, in ids of a data set's classes or of the seen ones among them."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    catalog.register_all()
    vocabulary = get_vocabulary(dataset)
    table = label_lookup(dataset, vocabulary.seen_part() if seen else vocabulary)
    return {
        Path(record["file_name"]).stem: table[read_labels(record["sem_seg_file_name"], dataset)]
        for record in DatasetCatalog.get(dataset)
    }


def official(found: dict[str, NDArray]) -> NDArray:
    """The one image that has the fixture's map."""
    names = [name for name in found if not name.startswith(("2008_000015", "ADE_val_00000002"))]
    assert len(names) == 1
    return found[names[0]]


def test_no_benchmark_is_left_out() -> None:
    names = {path.stem for path in catalog.SPLIT_DIR.glob("*.json")}
    names = {name for name in names if not name.startswith("zeroshapes")}
    assert ALL.keys() == names
    benchmarks = [read_split_file(catalog.SPLIT_DIR / f"{name}.json") for name in names]
    assert {b.name for b in benchmarks if b.vocabulary.unseen_ids} == SEEN.keys()
    for benchmark in benchmarks:
        # Splits that take some images of another have no files of their own.
        own = tuple(split for split in benchmark.folders if split not in benchmark.taken)
        assert own == ALL[benchmark.name][1]


@pytest.mark.parametrize("name", ALL)
def test_pixels(name: str, roots: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source, splits, expected = ALL[name]
    for split in splits:
        found = labels_of(f"{name}_{split}", roots[source], monkeypatch)
        np.testing.assert_array_equal(official(found), expected)
        if name in SEEN:
            found = labels_of(f"{name}_{split}", roots[source], monkeypatch, seen=True)
            np.testing.assert_array_equal(official(found), SEEN[name])


def test_voc_takes_its_own_label_and_adds_those_of_sbd(roots, monkeypatch) -> None:
    train = labels_of("voc2012_train", roots["voc2012"], monkeypatch)
    assert sorted(train) == ["2007_000032", "2008_000015"]  # not SBD's copy of the val image
    np.testing.assert_array_equal(train["2007_000032"], VOC)  # VOC's own, not SBD's
    np.testing.assert_array_equal(train["2008_000015"], blocks([NONE, 2], [15, NONE], [19, 19]))
    assert list(labels_of("voc2012_val", roots["voc2012"], monkeypatch)) == ["2007_000033"]


@pytest.mark.parametrize(("split", "name"), [("train", "2007_009999"), ("val", "2008_000002")])
def test_the_json_of_context_gives_what_the_mat_files_give(split, name, roots, monkeypatch) -> None:
    for source in ("context-mat", "context-json"):
        found = labels_of(f"context59_{split}", roots[source], monkeypatch)
        assert list(found) == [name]
        np.testing.assert_array_equal(found[name], CONTEXT_59)


@pytest.mark.parametrize(("split", "name"), MSRC_NAMES.items())
def test_both_layouts_of_msrc_give_the_same_files(split, name, roots) -> None:
    for kind in ("images", "annotations"):
        files = [
            [*(roots[f"msrc21-{layout}"] / "msrc21" / kind / split).iterdir()]
            for layout in ("official", "cleaned")
        ]
        assert [[path.name for path in found] for found in files] == 2 * [[f"{name}.png"]]
        one, other = (np.asarray(Image.open(found[0])) for found in files)
        np.testing.assert_array_equal(one, other)


def test_459_classes_are_16_bit(roots) -> None:
    file = roots["context-mat"] / "VOCdevkit/VOC2010/annotations_context459/val/2008_000002.tif"
    assert Image.open(file).mode == "I;16"


def test_ade_847_is_reduced_to_512(roots, monkeypatch) -> None:
    found = labels_of("ade20k_847_val", roots["ade20k-847"], monkeypatch)["ADE_val_00000002"]
    # 1032 x 1376 with one object in each quarter; columns 0 to 341 come from 0 to 687.
    np.testing.assert_array_equal(found, ADE_847.repeat(256, 0).repeat([342, 341], 1))
    images = roots["ade20k-847"] / "ADE20K_2021_17_01/images_detectron2/validation"
    source = next(roots["ade20k-847"].rglob("street/ADE_val_00000001.jpg"))
    assert (images / "ADE_val_00000001.jpg").read_bytes() == source.read_bytes()
    assert Image.open(images / "ADE_val_00000002.jpg").size == (683, 512)


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_unused_value_of_coco_is_refused(split, tmp_path, monkeypatch) -> None:
    root = TREES["coco-stuff"].build(tmp_path)
    file = root / f"coco/stuffthingmaps/{split}2017/000000000139.png"
    Image.fromarray(blocks([0, 11], [0, 0], [0, 0]).astype(np.uint8)).save(file)
    with pytest.raises(ValueError, match=r"139\.png holds \[11\], out of range"):
        labels_of(f"coco_stuff_{split}", root, monkeypatch)
