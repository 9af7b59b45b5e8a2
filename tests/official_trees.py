"""Tiny trees in the layout of the official archives, one builder for each preparation."""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from pycocotools import mask as run_length
from scipy.io import savemat

from alignzeg.data.preparation import ade20k, coco_stuff, context, msrc, voc
from alignzeg.data.preparation.recipe import Recipe

SIZE = (6, 8)
RECIPES = (
    voc.RECIPE,
    context.RECIPE,
    coco_stuff.RECIPE,
    ade20k.RECIPE_150,
    ade20k.RECIPE_847,
    msrc.RECIPE,
)


def blocks(*rows: list[int]) -> NDArray:
    """(6, 8) map of 3 x 2 equal blocks: rows of two values."""
    return np.kron(np.array(rows), np.ones((2, 4), int))


def image(path: Path, size: tuple[int, ...] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    Image.fromarray(noise).save(path)


def grey(path: Path, values: ArrayLike) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


def coloured_palette(path: Path, values: ArrayLike) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, np.uint8)).convert("P")
    image.putdata(np.asarray(values).ravel().tolist())
    image.putpalette(np.random.default_rng(7).integers(0, 256, 768).tolist())
    image.save(path)


def lines(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


VOC_MAP = blocks([0, 1], [15, 20], [16, 255])
SBD_MAP = blocks([0, 3], [16, 0], [20, 20])


def voc_tree(root: Path) -> Path:
    """VOC 2012 with a train and a val image; SBD with the val one again and one more."""
    base = root / "VOCdevkit/VOC2012"
    for name in ("2007_000032", "2007_000033", "2008_000015", "2009_000001"):
        image(base / f"JPEGImages/{name}.jpg")
    lines(base / "ImageSets/Segmentation/train.txt", "2007_000032")
    lines(base / "ImageSets/Segmentation/val.txt", "2007_000033")
    for name in ("2007_000032", "2007_000033"):
        coloured_palette(base / f"SegmentationClass/{name}.png", VOC_MAP)
    sbd = root / "benchmark_RELEASE/dataset"
    lines(sbd / "train.txt", "2008_000015", "2007_000032")
    lines(sbd / "val.txt", "2007_000033")
    (sbd / "cls").mkdir()
    content = {"Segmentation": SBD_MAP.astype(np.uint8), "Boundaries": np.zeros((20, 1))}
    for name in ("2008_000015", "2007_000033", "2007_000032"):
        savemat(sbd / f"cls/{name}.mat", {"GTcls": content}, do_compression=True)
    return root


CONTEXT_MAP = blocks([0, 2], [427, 431], [98, 397])
CONTEXT_IDS = {"train": "2007_009999", "val": "2008_000002"}


def context_tree(root: Path) -> Path:
    """VOC 2010 with a train and a val image, and their label maps in .mat files."""
    base = root / "VOCdevkit/VOC2010"
    for name in (*CONTEXT_IDS.values(), "2008_000003"):
        image(base / f"JPEGImages/{name}.jpg")
    lines(base / "ImageSets/Main/train.txt", CONTEXT_IDS["train"])
    (base / "trainval").mkdir()
    for name in CONTEXT_IDS.values():
        savemat(base / f"trainval/{name}.mat", {"LabelMap": CONTEXT_MAP.astype(np.uint16)})
    return root


def context_json_tree(root: Path) -> Path:
    """The same label maps as masks; an early one is painted over."""
    base = root / "VOCdevkit/VOC2010"
    images, annotations = [], []
    for key, (phase, name) in enumerate(CONTEXT_IDS.items()):
        image(base / f"JPEGImages/{name}.jpg")
        about = {"file_name": f"{name}.jpg", "image_id": key, "phase": phase}
        images.append({**about, "height": SIZE[0], "width": SIZE[1]})
        values = [284, *(value for value in np.unique(CONTEXT_MAP) if value)]
        for value in values:
            mask = CONTEXT_MAP == value if value != 284 else CONTEXT_MAP > 0
            coded = _run_lengths(mask, compressed=bool(key))
            annotations.append({"image_id": key, "category_id": int(value), "segmentation": coded})
    content = {"images": images, "annos_segmentation": annotations}
    (base / "trainval_merged.json").write_text(json.dumps(content))
    return root


def _run_lengths(mask: NDArray, compressed: bool) -> dict:
    coded = run_length.encode(np.asfortranarray(mask.astype(np.uint8)))
    if compressed:
        return {"size": coded["size"], "counts": coded["counts"].decode()}
    flat = mask.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[1 - flat[0]], flat, [-1]])))
    counts = np.diff(edges).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


COCO_MAP = blocks([0, 12], [20, 181], [255, 171])


def coco_tree(root: Path) -> Path:
    for split in ("train2017", "val2017"):
        image(root / f"coco/{split}/000000000139.jpg")
        grey(root / f"coco/stuffthingmaps/{split}/000000000139.png", COCO_MAP)
    return root


def ade_150_tree(root: Path) -> Path:
    for split in ("training", "validation"):
        image(root / f"ADEChallengeData2016/images/{split}/ADE_00000001.jpg")
        values = blocks([0, 1], [150, 13], [8, 8])
        grey(root / f"ADEChallengeData2016/annotations/{split}/ADE_00000001.png", values)
    return root


def ade_847_tree(root: Path) -> Path:
    """Object 2978 (wall, 0), 312 (building, 1), 3148 (adding machine, 846) and 5, no class."""
    folder = root / "ADE20K_2021_17_01/images/ADE/validation/urban/street"
    ids = np.array([[2978, 312], [3148, 5]]).repeat(3, 0).repeat(4, 1)
    for number, scale in ((1, 1), (2, 172)):
        large = ids.repeat(scale, 0).repeat(scale, 1)
        image(folder / f"ADE_val_0000000{number}.jpg", large.shape)
        colours = np.stack([large // 256 * 10, large % 256, np.full_like(large, 3)], -1)
        grey(folder / f"ADE_val_0000000{number}_seg.png", colours)
        grey(folder / f"ADE_val_0000000{number}_parts_1.png", colours)
    return root


# Official colours of: void, cow; horse, boat; body, sign.
MSRC_COLOURS = (
    ((0, 0, 0), (0, 0, 128)),
    ((128, 0, 128), (192, 64, 0)),
    ((64, 64, 0), (192, 128, 128)),
)
MSRC_IDS = blocks([255, 3], [4, 22], [21, 14])
MSRC_NAMES = {"train": "5_1_s", "val": "1_3_s"}


def msrc_official_tree(root: Path) -> Path:
    """The archive's two folders, with an image for each split and one that is on neither list."""
    base = root / "MSRC_ObjCategImageDatabase_v2"
    colours = np.array(MSRC_COLOURS).repeat(2, 0).repeat(4, 1)
    for name in (*MSRC_NAMES.values(), "1_99_s"):
        image(base / f"Images/{name}.bmp")
        grey(base / f"GroundTruth/{name}_GT.bmp", colours)
    return root


def msrc_cleaned_tree(root: Path) -> Path:
    """The same images and ids as PNG, in a folder for each split."""
    for split, name in MSRC_NAMES.items():
        image(root / f"msrc_v2/images/{split}/{name}.png")
        grey(root / f"msrc_v2/annotations/{split}/{name}.png", MSRC_IDS)
    return root


@dataclass(frozen=True)
class Tree:
    """A way to prepare something.

    Attributes:
        recipe: what prepares it.
        build: writes the official files, as they lie after unpacking, below a folder.
        files: that the preparation writes.
        options: of its command line.
        archives: path below the folder -> the official archive it comes in and its path in there.
    """

    recipe: Recipe
    build: Callable[[Path], Path]
    files: int
    archives: dict[str, tuple[str, str]]
    options: tuple[str, ...] = ()


VOC_2010 = "VOCdevkit/VOC2010"
_IMAGES_2010 = {
    f"{VOC_2010}/{part}": ("VOCtrainval_03-May-2010.tar", f"{VOC_2010}/{part}")
    for part in ("JPEGImages", "ImageSets")
}
TREES = {
    "voc2012": Tree(
        voc.RECIPE,
        voc_tree,
        3,
        {
            "VOCdevkit": ("VOCtrainval_11-May-2012.tar", "VOCdevkit"),
            "benchmark_RELEASE": ("benchmark.tgz", "benchmark_RELEASE"),
        },
    ),
    "context-mat": Tree(
        context.RECIPE,
        context_tree,
        3,
        {**_IMAGES_2010, f"{VOC_2010}/trainval": ("trainval.tar.gz", "trainval")},
        ("--full", "--partial"),
    ),
    "context-json": Tree(
        context.RECIPE,
        context_json_tree,
        2,
        {**_IMAGES_2010, f"{VOC_2010}/trainval_merged.json": ("trainval_merged.json", "")},
        ("--partial",),
    ),
    "coco-stuff": Tree(
        coco_stuff.RECIPE,
        coco_tree,
        0,
        {
            "coco/train2017": ("train2017.zip", "train2017"),
            "coco/val2017": ("val2017.zip", "val2017"),
            "coco/stuffthingmaps": ("stuffthingmaps_trainval2017.zip", ""),
        },
    ),
    "ade20k-150": Tree(
        ade20k.RECIPE_150,
        ade_150_tree,
        0,
        {"ADEChallengeData2016": ("ADEChallengeData2016.zip", "ADEChallengeData2016")},
    ),
    "ade20k-847": Tree(
        ade20k.RECIPE_847,
        ade_847_tree,
        4,
        {"ADE20K_2021_17_01": ("ADE20K_2021_17_01.zip", "ADE20K_2021_17_01")},
    ),
    "msrc21-official": Tree(
        msrc.RECIPE,
        msrc_official_tree,
        5,
        {
            "MSRC_ObjCategImageDatabase_v2": (
                "msrc_objcategimagedatabase_v2.zip",
                "MSRC_ObjCategImageDatabase_v2",
            )
        },
        ("--partial",),
    ),
    "msrc21-cleaned": Tree(msrc.RECIPE, msrc_cleaned_tree, 5, {}, ("--partial",)),
}


def pack(tree: Tree, root: Path, downloads: Path) -> None:
    """Packs what a tree's builder wrote into the official archives."""
    members: dict[str, list[tuple[Path, str]]] = {}
    for place, (archive, inside) in tree.archives.items():
        start = root / place
        for path in [start, *sorted(start.rglob("*"))] if start.exists() else []:
            name = PurePosixPath(inside, path.relative_to(start).as_posix()).as_posix()
            if path.is_file():
                members.setdefault(archive, []).append((path, name))
    for archive, files in members.items():
        target = downloads / archive
        if target.suffix == ".zip":
            with zipfile.ZipFile(target, "w") as packed:
                for path, name in files:
                    packed.write(path, name)
        elif target.suffix == ".json":
            shutil.copy(files[0][0], target)
        else:
            with tarfile.open(target, "w" if target.suffix == ".tar" else "w:gz") as packed:
                for path, name in files:
                    packed.add(path, name)
