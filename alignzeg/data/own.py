"""A user's own pictures as a data set: folders and a list of names, no JSON and no Python file.

What lies below the folder:

    images/{train,val,test}/...  pictures
    labels/{train,val,test}/...  one channel each, of the same name but for the suffix; a value is
                                 the class's position in the list, from 0; 255 is no class
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
from alignzeg.data.labels import ignore_value
from alignzeg.structures import SYNONYM_SEPARATOR, Vocabulary

SPLITS = ("train", "val", "test")


def register_folder(
    name: str,
    root: str | Path,
    *,
    images: str = "images",
    labels: str = "labels",
    classes: Sequence[str] = (),
    unseen: Sequence[str] = (),
    pseudo_unseen: Sequence[str] = (),
) -> list[str]:
    """Registers a user's own pictures; the files are looked at when they are needed.

    Registering the same name again replaces what was registered here before.

    Args:
        name: the data sets are called `<name>_<split>`.
        root: the folder that holds everything; relative to the current one.
        images: folder below it with the pictures, one folder for each split.
        labels: likewise with the label maps.
        classes: all names in id order, in place of classes.txt.
        unseen: in place of unseen.txt.
        pseudo_unseen: in place of pseudo_unseen.txt.

    Returns:
        The names `<name>_<split>` of the splits that have a picture folder.

    Raises:
        ValueError: if there is no such folder, the name is taken or cannot be a name, or a list of
            classes is missing, not UTF-8 or inconsistent.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"a data set cannot be called {name!r}; use letters, digits, _ - and .")
    root = Path(root).expanduser().absolute()
    splits = [split for split in SPLITS if (root / images / split).is_dir()]
    if not splits:
        folders = ", ".join(f"{images}/{split}" for split in SPLITS)
        raise ValueError(f"data set {name!r}: {root} holds none of the folders {folders}")
    prompts = tuple(classes) or _read_names(root / "classes.txt")
    names = tuple(prompt.split(SYNONYM_SEPARATOR)[0] for prompt in prompts)
    hidden = tuple(unseen) or _read_names(root / "unseen.txt", optional=True)
    pseudo = tuple(pseudo_unseen) or _read_names(root / "pseudo_unseen.txt", optional=True)
    try:
        vocabulary = Vocabulary.from_unseen(names, hidden)
        vocabulary = Vocabulary(vocabulary.names, vocabulary.seen, prompts)
        benchmark = Benchmark(
            name=name,
            vocabulary=vocabulary,
            pseudo_unseen=pseudo,
            raw_ids=tuple(range(len(names))),
            folders={split: (f"{images}/{split}", f"{labels}/{split}") for split in splits},
            ignore_label=ignore_value(vocabulary),
            prepare=f"It needs {images}/<split> and {labels}/<split>.",
            root=str(root),
        )
    except ValueError as error:
        raise ValueError(f"data set {name!r} in {root}: {error}") from error
    _forget(name)
    return register(benchmark)


def setup_own_data(cfg: CfgNode) -> None:
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
        )
    except ValueError as error:
        raise ValueError(f"ALIGNZEG.DATA.OWN: {error}") from error
    if not cfg.DATASETS.TRAIN:
        cfg.DATASETS.TRAIN = tuple(name for name in names if name == f"{own.NAME}_train")
    if not cfg.DATASETS.TEST:
        cfg.DATASETS.TEST = tuple(name for name in names if name == f"{own.NAME}_val")


def is_own(dataset_name: str) -> bool:
    """Whether a registered data set is a user's folder."""
    benchmark = MetadataCatalog.get(dataset_name).get("benchmark")
    return isinstance(benchmark, Benchmark) and benchmark.root is not None


def _forget(name: str) -> None:
    """Takes a folder registered under this name out of the catalogs, with all its splits."""
    for split in SPLITS:
        dataset_name = f"{name}_{split}"
        if dataset_name in DatasetCatalog and is_own(dataset_name):
            DatasetCatalog.remove(dataset_name)
            MetadataCatalog.remove(dataset_name)


def _read_names(path: Path, optional: bool = False) -> tuple[str, ...]:
    if optional and not path.exists():
        return ()
    try:
        # Editors on Windows like to put a byte order mark first.
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror}): one class name a line") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.object[error.start]:#04x} at position "
            f"{error.start}); save it as UTF-8"
        ) from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())
