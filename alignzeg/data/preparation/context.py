"""PASCAL Context with 59 and with 459 classes, from the authors' .mat files or the merged JSON.

Source: Mottaghi et al., CVPR 2014; images of VOC 2010. Validation is the list of 5,104 ids that
the field uses; training is VOC 2010's train list (4,998), or what the JSON calls train (4,996).

Files for 59 classes hold 0 (none of them) and 1 to 59; those for 459 classes hold 0 to 458 and
65535 (no label).
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignzeg.data.preparation.formats import (
    apply_table,
    encode_png,
    encode_tiff,
    paint,
    read_matlab,
)
from alignzeg.data.preparation.recipe import Archive, Plan, Recipe, Request, Task, need, read_ids

VOC = "VOCdevkit/VOC2010"
LISTS = Path(__file__).parent / "lists"
_IDS = "ImageSets/Main"
_MERGED = "trainval_merged.json"
VOC_ARCHIVE = Archive(
    name="VOCtrainval_03-May-2010.tar",
    source="http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar",
    wanted=(f"{VOC}/JPEGImages/", f"{VOC}/{_IDS}/train.txt", f"{VOC}/{_IDS}/val.txt"),
    md5="da459979d0c395079b5c75ee67908abb",
)
LABEL_ARCHIVE = Archive(
    name="trainval.tar.gz",
    source="https://cs.stanford.edu/~roozbeh/pascal-context/trainval.tar.gz (if it is gone: "
    "web.archive.org has it; for 59 classes trainval_merged.json will do)",
    folder=VOC,
    wanted=("trainval/",),
)
JSON_ARCHIVE = Archive(
    name=_MERGED,
    source="https://codalabuser.blob.core.windows.net/public/trainval_merged.json (if it is gone: "
    "web.archive.org has it)",
    folder=VOC,
    md5="3c2d0c0656b7be9eb61928ffe885d8ce",
)
_ABSENT = 65535


def table_59() -> NDArray[np.uint8]:
    """(460,) from the 459 official ids, counted from 1, to 1 to 59; 0 for all others."""
    table = np.zeros(460, np.uint8)
    chosen = json.loads((LISTS / "context59_of_459.json").read_text(encoding="utf-8"))
    table[chosen] = np.arange(1, 60)
    return table


def plan(request: Request) -> Plan:
    """One task for each image, and with `full` a second one for each validation image."""
    voc = request.root / VOC
    need(voc / "JPEGImages", VOC_ARCHIVE, request)
    matlab = voc / "trainval"
    if not matlab.is_dir() and not request.full and (voc / _MERGED).is_file():
        return _plan_json(request, voc)
    need(matlab, LABEL_ARCHIVE, request)
    there = {path.stem for path in matlab.glob("*.mat")}
    tasks, lacking = [], []
    for split in request.splits:
        official = LISTS / "context_val.txt"
        if split == "train":
            official = need(voc / _IDS / "train.txt", VOC_ARCHIVE, request)
        ids = read_ids(official)
        lacking += [name for name in ids if name not in there]
        for name in (name for name in ids if name in there):
            source = str(matlab / f"{name}.mat")
            target = voc / "annotations_context59" / split / f"{name}.png"
            tasks.append(Task(str(target), convert_59, (source,)))
            if request.full and split == "val":
                target = voc / "annotations_context459" / split / f"{name}.tif"
                tasks.append(Task(str(target), convert_459, (source,)))
    return _disjoint(tasks, lacking)


def _disjoint(tasks: list[Task], lacking: list[str]) -> Plan:
    """The plan, if no image is for training and for validation."""
    names = {
        split: {Path(task.target).stem for task in tasks if Path(task.target).parent.name == split}
        for split in ("train", "val")
    }
    both = sorted(names["train"] & names["val"])
    if both:
        raise ValueError(
            f"image {both[0]} is for training and for validation ({len(both)} such images); "
            "the sources are not those of VOC 2010"
        )
    return Plan(tasks, lacking)


def _plan_json(request: Request, voc: Path) -> Plan:
    content = _read_merged(voc / _MERGED)
    masks: dict[Any, list[tuple[int, Any]]] = defaultdict(list)
    for found in content["annos_segmentation"]:
        masks[found["image_id"]].append((found["category_id"], found["segmentation"]))
    wanted = read_ids(LISTS / "context_val.txt")
    tasks, there = [], set()
    for image in content["images"]:
        name, split = Path(image["file_name"]).stem, image["phase"]
        there.add(name)
        if split in request.splits and (split == "train" or name in set(wanted)):
            target = voc / "annotations_context59" / split / f"{name}.png"
            size = (image["height"], image["width"])
            arguments = (image["file_name"], size, masks[image["image_id"]])
            tasks.append(Task(str(target), convert_masks, arguments))
    lacking = [name for name in wanted if "val" in request.splits and name not in there]
    return _disjoint(tasks, lacking)


def _read_merged(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        keys = set(content) if isinstance(content, dict) else set()
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}; download it anew") from error
    if not {"images", "annos_segmentation"} <= keys:
        raise ValueError(f"{path} lacks 'images' or 'annos_segmentation'; it is not {_MERGED}")
    return content


def convert_59(source: str) -> bytes:
    """A label file with 59 classes from a .mat file."""
    return encode_png(apply_table(read_matlab(source, "LabelMap"), table_59(), source))


def convert_masks(name: str, size: tuple[int, int], masks: list[tuple[int, Any]]) -> bytes:
    """A label file with 59 classes from the masks of one image."""
    try:
        return encode_png(apply_table(paint(size, masks), table_59(), name))
    except ValueError as error:
        raise ValueError(f"{_MERGED}, image {name}: {error}") from error


def convert_459(source: str) -> bytes:
    """A label file with 459 classes, counted from 0, from a .mat file."""
    table = np.arange(-1, 459).astype(np.uint16)  # entry 0 becomes 65535
    assert table[0] == _ABSENT
    return encode_tiff(apply_table(read_matlab(source, "LabelMap"), table, source))


RECIPE = Recipe(
    name="context",
    about="PASCAL Context (context59, context60, their K-splits, pc59; --full: context459)",
    archives=(VOC_ARCHIVE, LABEL_ARCHIVE, JSON_ARCHIVE),
    plan=plan,
    benchmarks=("context59",),
    full_benchmarks=("context459",),
)
