"""A user's own images as a data set: folders and a list of names, no JSON and no Python file.

What lies below the folder:

    images/{train,val,test}/...  images
    labels/{train,val,test}/...  one channel each, of the same name but for the suffix; a value is
                                 the class's position in the list, from 0; 255 is no class, and
                                 65535 in a list of more than 255
    classes.txt                  one class name a line; "sofa; couch" is sofa, and also called couch
    unseen.txt                   optional: those of them that have no masks in training
    pseudo_unseen.txt            optional: seen ones that can be hidden, to calibrate on
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from alignzeg.data.benchmark import Benchmark
from alignzeg.data.catalog import register
from alignzeg.data.class_names import class_names, numbered_names, read_class_file, readable
from alignzeg.data.label_hints import RECIPES, annotations_near
from alignzeg.data.labels import ignore_value
from alignzeg.structures import IGNORE_LABEL, SYNONYM_SEPARATOR, Vocabulary, spelling

SPLITS = ("train", "val", "test")
# Folders that somebody may have meant as a split.
# Where VOC, and what exports like it, has images.
_VOC_FOLDERS = ("JPEGImages", "img", "image", "Images")
_NEARLY = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}


def register_folder(
    name: str,
    root: str | Path,
    *,
    images: str = "images",
    labels: str = "labels",
    classes: Sequence[str] = (),
    unseen: Sequence[str] = (),
    pseudo_unseen: Sequence[str] = (),
    ignore_label: int | None = None,
    raw_ids: Sequence[int] = (),
) -> list[str]:
    """Registers a user's own images; the files are looked at when they are needed.

    Registering the same name again replaces what was registered here before.

    Args:
        name: the data sets are called `<name>_<split>`.
        root: the folder that holds everything; relative to the current one.
        images: folder below it with the images, one folder for each split.
        labels: likewise with the label maps.
        classes: all names in id order, in place of classes.txt.
        unseen: in place of unseen.txt.
        pseudo_unseen: in place of pseudo_unseen.txt.
        ignore_label: value of pixels of no class, 0..65535. None: 255, beyond 255 classes 65535;
            a label file with 255 is then refused: it is unclear if that class is meant.
        raw_ids: the value of each class in the label files, 0..65535. By default 0, 1, 2, ...
            without `ignore_label`: where that is 0, classes count from 1. 255 is no class either,
            unless it is listed.

    Returns:
        The names `<name>_<split>` of the splits that have an image folder.

    Raises:
        ValueError: if there is no such folder, the name is taken or cannot be a name, or a list of
            classes is missing, not UTF-8, inconsistent or odd, see `class_names`.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"a data set cannot be called {name!r}; use letters, digits, _ - and .")
    root = Path(root).expanduser().absolute()
    splits = _splits(name, root, images)
    where = f"data set {name!r}"
    prompts = class_names(classes, f"{where}, classes")
    if not prompts and not raw_ids and (numbered := numbered_names(root / "classes.txt")):
        raw_ids, prompts = tuple(numbered), class_names([*numbered.values()], "classes.txt")
    prompts = prompts or read_class_file(root / "classes.txt")
    hidden = class_names(unseen, f"{where}, unseen")
    pseudo = class_names(pseudo_unseen, f"{where}, pseudo_unseen")
    try:
        vocabulary = _vocabulary(prompts, hidden, root)
        clear = ignore_label is not None or bool(raw_ids) or len(vocabulary) <= IGNORE_LABEL
        ignore = ignore_value(vocabulary) if ignore_label is None else ignore_label
        # A 0 of no class is in front of the classes, which then count from 1.
        first = 1 if ignore == 0 else 0
        ids = tuple(raw_ids) or tuple(range(first, first + len(vocabulary)))
        spare = len(vocabulary) < IGNORE_LABEL and IGNORE_LABEL not in ids
        benchmark = Benchmark(
            name=name,
            vocabulary=vocabulary,
            pseudo_unseen=_of_the_list(vocabulary.names, pseudo, root / "pseudo_unseen.txt"),
            raw_ids=ids,
            ignored_raw_ids=(IGNORE_LABEL,) if ignore != IGNORE_LABEL and spare else (),
            folders={split: (f"{images}/{split}", f"{labels}/{split}") for split in splits},
            ignore_label=ignore,
            doubtful_raw_ids=() if clear else (IGNORE_LABEL,),
            prepare=f"It needs {images}/<split> and {labels}/<split>.",
            root=str(root),
        )
    except ValueError as error:
        raise ValueError(f"{where} in {root}: {error}") from error
    _forget(name)
    return register(benchmark)


def setup_custom_data(cfg: CfgNode) -> None:
    """Registers what ALIGNZEG.DATA.OWN describes, if anything.

    DATASETS.TRAIN and DATASETS.TEST are filled with its splits where they are empty.

    Raises:
        ValueError: as `register_folder`, or if a list holds no names; the message names the config
            node.
    """
    own = cfg.ALIGNZEG.DATA.OWN
    if not own.NAME:
        if own.ROOT:
            raise ValueError("ALIGNZEG.DATA.OWN.ROOT is set, but ALIGNZEG.DATA.OWN.NAME is not")
        return
    for key in ("CLASSES", "UNSEEN", "PSEUDO_UNSEEN"):
        for name in own[key]:
            if not isinstance(name, str):
                raise ValueError(f"ALIGNZEG.DATA.OWN.{key} lists {name!r}; it lists class names")
    try:
        names = register_folder(
            own.NAME,
            own.ROOT,
            images=own.IMAGES,
            labels=own.LABELS,
            classes=own.CLASSES,
            unseen=own.UNSEEN,
            pseudo_unseen=own.PSEUDO_UNSEEN,
            ignore_label=None if own.IGNORE_LABEL < 0 else own.IGNORE_LABEL,
            raw_ids=own.RAW_IDS,
        )
    except ValueError as error:
        raise ValueError(f"ALIGNZEG.DATA.OWN: {error}") from error
    if not cfg.DATASETS.TRAIN:
        cfg.DATASETS.TRAIN = tuple(name for name in names if name == f"{own.NAME}_train")
    if not cfg.DATASETS.TEST:
        cfg.DATASETS.TEST = tuple(name for name in names if name == f"{own.NAME}_val")


def is_custom(dataset_name: str) -> bool:
    """Whether a registered data set is a user's folder."""
    benchmark = MetadataCatalog.get(dataset_name).get("benchmark")
    return isinstance(benchmark, Benchmark) and benchmark.root is not None


def _forget(name: str) -> None:
    """Takes a folder registered under this name out of the catalogs, with all its splits."""
    for split in SPLITS:
        dataset_name = f"{name}_{split}"
        if dataset_name in DatasetCatalog and is_custom(dataset_name):
            DatasetCatalog.remove(dataset_name)
            MetadataCatalog.remove(dataset_name)


def _splits(name: str, root: Path, images: str) -> list[str]:
    splits = [split for split in SPLITS if (root / images / split).is_dir()]
    if not splits:
        folders = ", ".join(f"{images}/{split}" for split in SPLITS)
        raise ValueError(
            f"data set {name!r}: {root} holds none of the folders {folders}"
            f"{_other_tree(root, images)}"
        )
    for path in sorted((root / images).iterdir()):
        meant = _NEARLY.get(path.name.lower(), path.name.lower())
        if meant in SPLITS and meant not in splits and path.is_dir():
            raise ValueError(f"data set {name!r}: {path} is no split; call it {images}/{meant}")
    return splits


def _other_tree(root: Path, images: str) -> str:
    """What tree of another tool a folder is, as the end of a message."""
    folders = (images, *_VOC_FOLDERS)
    flat = next((name for name in folders if any((root / name).glob("*.*"))), None)
    if flat is not None:
        lists = sorted(path.name for path in root.rglob("train*.txt"))
        named = f" as {lists[0]} lists them" if lists else ""
        return (
            f"; {root / flat} holds files of all splits: move them to {images}/train and "
            f"{images}/val{named}, and the label maps likewise; {RECIPES}"
        )
    here = {path.name.lower() for path in root.iterdir()} if root.is_dir() else set()
    splits = sorted(here & {*SPLITS, *_NEARLY})
    if splits:
        return (
            f"; it has {', '.join(splits)} at its top, as Roboflow and others write it: put images "
            f"and label maps apart, images/train and labels/train; {RECIPES}"
        )
    return annotations_near(root)


def _vocabulary(prompts: tuple[str, ...], unseen: tuple[str, ...], root: Path) -> Vocabulary:
    names = tuple(prompt.split(SYNONYM_SEPARATOR)[0] for prompt in prompts)
    hidden = _of_the_list(names, unseen, root / "unseen.txt")
    said = tuple(map(readable, prompts))
    return Vocabulary(names, Vocabulary.from_unseen(names, hidden).seen, said)


def _of_the_list(names: Sequence[str], given: tuple[str, ...], path: Path) -> tuple[str, ...]:
    """Names that are given or in an optional file, as the list of classes writes them."""
    if not given and path.exists():
        given = read_class_file(path)
    written = {spelling(name): name for name in names}
    first = [name.split(SYNONYM_SEPARATOR)[0] for name in given]
    return tuple(written.get(spelling(name), name) for name in first)
