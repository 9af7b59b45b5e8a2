"""PASCAL VOC 2012 with the added labels of SBD: 10,582 training and 1,449 validation images.

Sources: VOC 2012 (Everingham et al.); SBD (Hariharan et al., ICCV 2011). Training images are
those of VOC's train list and of both lists of SBD, less VOC's val list; VOC's own label is taken
where there is one. Label files keep VOC's values: 0 background, 1 to 20, 255 void.
"""

from __future__ import annotations

import numpy as np

from alignzeg.data.preparation.formats import (
    apply_table,
    encode_png,
    read_index_image,
    read_matlab,
)
from alignzeg.data.preparation.recipe import Archive, Plan, Recipe, Request, Task, need, read_ids

VOC = "VOCdevkit/VOC2012"
SBD = "benchmark_RELEASE/dataset"
_LISTS = "ImageSets/Segmentation"
VOC_ARCHIVE = Archive(
    name="VOCtrainval_11-May-2012.tar",
    source="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    wanted=tuple(f"{VOC}/{part}/" for part in ("JPEGImages", "SegmentationClass", _LISTS)),
    md5="6cd6e144f989b92b3379bac3b3de84fd",
)
SBD_ARCHIVE = Archive(
    name="benchmark.tgz",
    source="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/"
    "semantic_contours/benchmark.tgz",
    wanted=(f"{SBD}/cls/", f"{SBD}/train.txt", f"{SBD}/val.txt"),
    md5="82b4d87ceb2ed10f6038a1cba92111cb",
)
_VALUES = np.full(256, 254, np.uint8)
_VALUES[[*range(21), 255]] = [*range(21), 255]


def plan(request: Request) -> Plan:
    """One task for each image; its source is VOC's PNG, or SBD's .mat."""
    voc, sbd = request.root / VOC, request.root / SBD
    need(voc / "JPEGImages", VOC_ARCHIVE, request)
    own = {
        split: read_ids(need(voc / _LISTS / f"{split}.txt", VOC_ARCHIVE, request))
        for split in ("train", "val")
    }
    tasks = []
    for split in request.splits:
        ids = own[split]
        if split == "train":
            for name in ("train", "val"):
                ids = [*ids, *read_ids(need(sbd / f"{name}.txt", SBD_ARCHIVE, request))]
            ids = sorted(set(ids) - set(own["val"]))
        target = voc / "annotations_raw" / split
        mine = set(own[split])
        for name in ids:
            if name in mine:
                source = need(voc / "SegmentationClass" / f"{name}.png", VOC_ARCHIVE, request)
            else:
                source = need(sbd / "cls" / f"{name}.mat", SBD_ARCHIVE, request)
            tasks.append(Task(str(target / f"{name}.png"), convert, (str(source),)))
    return Plan(tasks)


def convert(source: str) -> bytes:
    """A label file from VOC's palette PNG or SBD's .mat.

    Raises:
        ValueError: if the source is unreadable or holds another value than 0 to 20 and 255.
    """
    if source.endswith(".mat"):
        values = read_matlab(source, "GTcls", "Segmentation")
    else:
        values = read_index_image(source)
    labels = apply_table(values, _VALUES, source)
    if (labels == 254).any():
        wrong = sorted(set(np.unique(values).tolist()) - {*range(21), 255})
        raise ValueError(f"{source} holds {wrong}; VOC's values are 0 to 20 and 255")
    return encode_png(labels)


RECIPE = Recipe(
    name="voc2012",
    about="PASCAL VOC 2012 with SBD (voc2012, its K-splits, voc20, pas20b, pas21)",
    archives=(VOC_ARCHIVE, SBD_ARCHIVE),
    plan=plan,
    benchmarks=("voc2012",),
)
