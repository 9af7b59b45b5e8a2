"""ADE20K: the scene-parsing challenge with 150 classes, and the full set with 847.

Source: Zhou et al., CVPR 2017. The challenge's label files (0 other, 1 to 150) are used as they
are. Of the full set, version 2021_17_01, the validation images are made as in MaskFormer: the
short side is at most 512 pixels, reduced by OpenCV (bilinear; labels to the nearest), and files
hold 0 to 846 and 65535 (any other object).
"""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alignzeg.data.pictures import read_rgb, read_values
from alignzeg.data.preparation.formats import encode_tiff
from alignzeg.data.preparation.recipe import Archive, Plan, Recipe, Request, Task, need
from alignzeg.files import files_below

CHALLENGE = "ADEChallengeData2016"
FULL = "ADE20K_2021_17_01"
SHORT_SIDE = 512
_ABSENT = 65535
_JPEG_QUALITY = 95
_LIST = Path(__file__).parent / "lists" / "ade847_raw_ids.json"
CHALLENGE_ARCHIVE = Archive(
    name=f"{CHALLENGE}.zip",
    source=f"http://data.csail.mit.edu/places/ADEchallenge/{CHALLENGE}.zip",
    wanted=(f"{CHALLENGE}/images/", f"{CHALLENGE}/annotations/"),
)
FULL_ARCHIVE = Archive(
    name=f"{FULL}.zip",
    source="https://groups.csail.mit.edu/vision/datasets/ADE20K/ (after registration)",
    wanted=(f"{FULL}/images/ADE/validation/",),
)


def plan_150(request: Request) -> Plan:
    """Nothing is written; missing folders are named."""
    for split in request.splits:
        for kind in ("images", "annotations"):
            folder = {"train": "training", "val": "validation"}[split]
            need(request.root / CHALLENGE / kind / folder, CHALLENGE_ARCHIVE, request)
    return Plan()


def plan_847(request: Request) -> Plan:
    """Two tasks for each validation image."""
    base = request.root / FULL
    source = need(base / "images/ADE/validation", FULL_ARCHIVE, request)
    tasks = []
    for image in files_below(source):
        if not image.match("ADE_val_*.jpg"):
            continue
        labels = need(image.with_name(f"{image.stem}_seg.png"), FULL_ARCHIVE, request)
        image_target = base / "images_detectron2/validation" / f"{image.stem}.jpg"
        label_target = base / "annotations_detectron2/validation" / f"{image.stem}.tif"
        tasks.append(Task(str(image_target), convert_image, (str(image),)))
        tasks.append(Task(str(label_target), convert_847, (str(labels),)))
    if not tasks:
        need(source / "ADE_val_00000001.jpg", FULL_ARCHIVE, request)
    return Plan(tasks)


def convert_image(source: str) -> bytes:
    """The image with a short side of at most 512 pixels; a small one byte by byte."""
    image = read_rgb(source)
    height, width = image.shape[:2]
    size = reduced((width, height))
    if size == (width, height):
        return Path(source).read_bytes()
    small = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    stream = io.BytesIO()
    Image.fromarray(small).save(stream, "JPEG", quality=_JPEG_QUALITY)
    return stream.getvalue()


def convert_847(source: str) -> bytes:
    """The label file of a `_seg.png`: red // 10 * 256 + green is the id of an object.

    Raises:
        ValueError: if the file is unreadable or holds no colours.
    """
    colours = read_values(source)
    if colours.ndim != 3 or colours.shape[2] < 3 or colours.dtype != np.uint8:
        raise ValueError(f"{source} has shape {colours.shape}; a _seg.png holds RGB colours")
    ids = colours[..., 0].astype(np.int32) // 10 * 256 + colours[..., 1]
    height, width = ids.shape
    size = reduced((width, height))
    if size != (width, height):
        ids = cv2.resize(ids, size, interpolation=cv2.INTER_NEAREST)
    return encode_tiff(table_847()[ids])


@cache
def table_847() -> NDArray[np.uint16]:
    """(6656,) from object ids to 0 to 846; 65535 for those that are no class."""
    table = np.full(26 * 256, _ABSENT, np.uint16)
    chosen = json.loads(_LIST.read_text(encoding="utf-8"))
    table[chosen] = np.arange(len(chosen))
    return table


def reduced(size: tuple[int, int]) -> tuple[int, int]:
    """The two sides with the shorter one at most 512, in the same proportion."""
    short = min(size)
    if short <= SHORT_SIDE:
        return size
    first, second = (
        SHORT_SIDE if side == short else round(side * SHORT_SIDE / short) for side in size
    )
    return first, second


RECIPE_150 = Recipe(
    name="ade20k_150",
    about="ADE20K with 150 classes (ade20k_150)",
    archives=(CHALLENGE_ARCHIVE,),
    plan=plan_150,
    benchmarks=("ade20k_150",),
)
RECIPE_847 = Recipe(
    name="ade20k_847",
    about="ADE20K with 847 classes, validation (ade20k_847)",
    archives=(FULL_ARCHIVE,),
    plan=plan_847,
    benchmarks=("ade20k_847",),
    splits=("val",),
)
