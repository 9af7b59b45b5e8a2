"""Rows of the loader: a training sample, and the share of a step that waits for data."""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T  # noqa: N812 (Detectron2's own alias)
from detectron2.projects.point_rend import ColorAugSSDTransform
from PIL import Image
from torch import Tensor

from alignzeg.data.labels import get_vocabulary
from alignzeg.data.mapper import ZeroShotMapper, training_augmentations
from alignzeg.data.zeroshapes import write_dataset
from alignzeg.engine import setup_config
from bench import files
from bench.measure import REPOSITORY, Result, Row, Sides, timed
from bench.profile_step import shares

SHARE = 0.03  # of a step, that may wait for data


def usual_sample(mapper: DatasetMapper, record: dict[str, Any]) -> dict[str, Any]:
    """Detectron2's mapper, and a mask for each class as MaskFormer makes them.

    Source: MaskFormer (arXiv 2107.06278), its mapper of semantic labels.
    """
    item = mapper(record)
    labels = item["sem_seg"].numpy()
    classes = np.unique(labels)
    classes = classes[classes != 255]
    masks = [torch.from_numpy(np.ascontiguousarray(labels == one)) for one in classes]
    item["labels"] = torch.as_tensor(classes, dtype=torch.int64)
    item["masks"] = torch.stack(masks) if masks else torch.zeros((0, *labels.shape))
    return item


def samples(quick: bool) -> Sides:
    """Eight samples of 640 x 480, with the augmentations of configs/voc2012."""
    root = Path(tempfile.mkdtemp(prefix="bench-files-"))
    size = (96, 128) if quick else (480, 640)
    name, records = files.dataset(root, 2 if quick else 8, size)
    cfg = setup_config(REPOSITORY / "configs" / "voc2012" / "baseline_R50.yaml")
    if quick:
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.ALIGNZEG.DATA.CROP_SIZE = (64, 96), 64
    mapper = ZeroShotMapper(
        is_train=True,
        vocabularies={name: get_vocabulary(name)},
        augmentations=training_augmentations(cfg),
    )
    theirs = DatasetMapper(
        is_train=True, augmentations=usual_augmentations(cfg), image_format="RGB"
    )

    def all_of(make: Any) -> list[tuple[Tensor, Tensor, Tensor]]:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 (what the augmentations draw from)
        found = []
        for record in records:
            item = make(record)
            if "targets" in item:
                item |= {"labels": item["targets"].labels, "masks": item["targets"].masks}
            found.append((item["image"], item["labels"], item["masks"]))
        return found

    return {
        "ours": lambda: all_of(mapper),
        "peer": lambda: all_of(lambda record: usual_sample(theirs, record)),
    }


def usual_augmentations(cfg: Any) -> list[Any]:
    """Size, crop, colour and flip by Detectron2's own classes."""
    crop = [cfg.ALIGNZEG.DATA.CROP_SIZE] * 2
    return [
        T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, "choice"),
        T.RandomCrop_CategoryAreaConstraint("absolute", crop, 1.0, 255),
        ColorAugSSDTransform(img_format="RGB"),
        T.RandomFlip(),
    ]


def identical(ours: Any, peer: Any) -> str:
    """Image, labels and masks of every sample are the same."""
    for index, (one, other) in enumerate(zip(ours, peer, strict=True)):
        for what, a, b in zip(("image", "labels", "masks"), one, other, strict=True):
            if not torch.equal(a, b):
                raise AssertionError(f"{what} of sample {index} differ")
    return f"{len(ours)} samples, identical images and masks"


def waiting(name: str, row: Row, quick: bool) -> Result:
    """The share of a step that waits for data, against what it may be."""
    del row
    benchmark = name.rpartition("_")[2]
    root = Path(tempfile.mkdtemp(prefix="bench-files-"))
    if benchmark == "zeroshapes":
        write_dataset(root, "train", 16, workers=1)
    else:
        photographs(root, 16)
    opts = ["ALIGNZEG.VLM.CACHE_DIR", str(root / "text"), "MODEL.DEVICE", "cpu"]
    if quick:
        # The VLM of photographs reads 1,000 names first.
        opts += ["SOLVER.IMS_PER_BATCH", "2", "ALIGNZEG.VLM.NAME", "OpenClipVLM"]
        opts += ["ALIGNZEG.VLM.MODEL", "alignzeg-tiny", "ALIGNZEG.VLM.WEIGHTS", ""]
        opts += ["ALIGNZEG.VLM.IMAGE_SIZE", "64"]
    config = REPOSITORY / "configs" / benchmark / "alignzeg.yaml"
    with mock.patch.dict(os.environ, {"DETECTRON2_DATASETS": str(root)}):
        found = shares(str(config), opts, 1 if quick else 10, time.perf_counter)
    share = found["shares"]["data"]
    note = f"{100 * share:.1f} % of {found['ms']:.0f} ms; ratio: {100 * SHARE:.0f} % over it"
    return Result(share * found["ms"], found["ms"], SHARE / share, note)


def photographs(root: Path, count: int) -> None:
    """Noise of the size of MSRC's images, with its label ids, where the catalog looks for them."""
    facts = MetadataCatalog.get("msrc21_train").benchmark
    images, labels = facts.folders["train"]
    rng = np.random.default_rng(0)
    ids = [facts.raw_ids[i] for i in facts.vocabulary.seen_ids]
    for index in range(count):
        places = np.indices((213, 320))[1] // 80
        for folder, suffix, array in (
            (images, "jpg", rng.integers(0, 256, (213, 320, 3))),
            (labels, "png", rng.choice(ids, 4)[places]),
        ):
            path = root / folder / f"{index:03d}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(path)


ROWS = {
    "loader/sample": Row(
        2.0,
        "training samples of 640 x 480, beside Detectron2's DatasetMapper with MaskFormer's masks",
        timed,
        samples,
        check=identical,
    ),
    "loader/wait_zeroshapes": Row(1.0, "share of a step that waits: zeroshapes, AlignZeg", waiting),
    "loader/wait_msrc21": Row(1.0, "share of a step that waits: MSRC-21, AlignZeg", waiting),
}
