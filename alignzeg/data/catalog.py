"""Benchmarks as entries of Detectron2's catalogs; the files are looked at when they are needed."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from alignzeg.data.benchmark import Benchmark, read_split_file
from alignzeg.data.label_hints import named_otherwise, what_lies_there
from alignzeg.data.picture_kinds import is_unread
from alignzeg.files import files_below

EVALUATOR_TYPE = "zero_shot_sem_seg"
ROOT_VARIABLE = "DETECTRON2_DATASETS"
SPLIT_DIR = Path(__file__).parent / "splits"
_IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
_LABEL_SUFFIXES = frozenset({".png", ".bmp", ".tif", ".tiff"})


def dataset_root() -> tuple[Path, str]:
    """The folder that holds all data sets, and where that choice came from.

    The environment is read at every call, so it may be set after the import.
    """
    value = os.environ.get(ROOT_VARIABLE, "")
    if value:
        return Path(value).expanduser().absolute(), f"from {ROOT_VARIABLE}={value}"
    return Path("datasets").absolute(), f"the default ./datasets, as {ROOT_VARIABLE} is not set"


def load_records(benchmark: Benchmark, split: str) -> list[dict[str, str]]:
    """Lists the pairs of image and label files of one split, in file name order.

    Returns:
        Detectron2 records: `file_name`, `sem_seg_file_name`, `dataset_name`.

    Raises:
        ValueError: if a folder is missing or empty, a label file has no image or, unless the
            benchmark has `extra_images`, the reverse.
    """
    dataset_name = f"{benchmark.name}_{split}"
    if benchmark.root is None:
        root, origin = dataset_root()
    else:
        root, origin = Path(benchmark.root), "as registered"
    image_root, label_root = (root / folder for folder in benchmark.folders[split])
    where = f"data root: {root} ({origin}). {benchmark.prepare}"
    # A benchmark's own folders may hold other things too.
    strict = benchmark.root is not None
    images = _files(image_root, _IMAGE_SUFFIXES, dataset_name, where, strict)
    labels = _files(label_root, _LABEL_SUFFIXES, dataset_name, where, strict)
    pairs = [(labels, images, "image", image_root), (images, labels, "label", label_root)]
    for have, want, kind, folder in pairs[: 1 if benchmark.extra_images else 2]:
        alone = sorted(have.keys() - want.keys())
        if alone:
            hint = named_otherwise(alone[0], sorted(want)) if kind == "image" else ""
            raise ValueError(
                f"data set {dataset_name!r}: {have[alone[0]]} has no {kind} file "
                f"{folder / alone[0]}.* ({len(alone)} such files){hint}; {where}"
            )
    modulus, remainders = benchmark.taken.get(split, (1, (0,)))
    keys = [key for place, key in enumerate(sorted(labels)) if place % modulus in remainders]
    return [
        {
            "file_name": str(images[key]),
            "sem_seg_file_name": str(labels[key]),
            "dataset_name": dataset_name,
        }
        for key in keys
    ]


def _files(
    folder: Path, suffixes: frozenset[str], dataset_name: str, where: str, strict: bool
) -> dict[str, Path]:
    """All files below a folder with one of the suffixes, by relative path without suffix.

    If strict, an image file of another kind must have one of the same name beside it.
    """
    if not folder.is_dir():
        raise ValueError(f"data set {dataset_name!r}: folder {folder} does not exist; {where}")
    found: dict[str, Path] = {}
    others: dict[str, Path] = {}
    try:
        paths = files_below(folder)
    except ValueError as error:
        raise ValueError(f"data set {dataset_name!r}: {error}") from error
    for path in paths:
        key = path.relative_to(folder).with_suffix("").as_posix()
        if path.suffix.lower() not in suffixes:
            if path.suffix.lower() in Image.registered_extensions() or is_unread(path):
                others[key] = path
            continue
        if key in found:
            raise ValueError(
                f"data set {dataset_name!r}: {found[key]} and {path} differ only in their suffix; "
                "keep one"
            )
        found[key] = path
    alone = sorted(others.keys() - found.keys())
    if strict and alone:
        raise ValueError(
            f"data set {dataset_name!r}: {others[alone[0]]} ({len(alone)} such files) is of a kind "
            f"that is not read here, which is {sorted(suffixes)}; convert it, or take it away"
        )
    if not found:
        raise ValueError(
            f"data set {dataset_name!r}: folder {folder} holds no {sorted(suffixes)} file"
            f"{'' if '.jpg' in suffixes else what_lies_there(folder)}; {where}"
        )
    return found


def register(benchmark: Benchmark) -> list[str]:
    """Registers every split of a benchmark; files are looked at when they are needed.

    Returns:
        The data set names. A name that is already registered with the same content is left alone.

    Raises:
        ValueError: if a name is already taken by something else.
    """
    names = []
    for split in benchmark.folders:
        name = f"{benchmark.name}_{split}"
        names.append(name)
        if name in DatasetCatalog.list():
            if MetadataCatalog.get(name).get("benchmark") != benchmark:
                raise ValueError(f"a different data set named {name!r} is already registered")
            continue
        DatasetCatalog.register(name, partial(load_records, benchmark, split))
        MetadataCatalog.get(name).set(
            stuff_classes=list(benchmark.vocabulary.names),
            ignore_label=benchmark.ignore_label,
            evaluator_type=EVALUATOR_TYPE,
            vocabulary=benchmark.vocabulary,
            pseudo_unseen=benchmark.pseudo_unseen,
            raw_ids=benchmark.raw_ids,
            ignored_raw_ids=benchmark.ignored_raw_ids,
            doubtful_raw_ids=benchmark.doubtful_raw_ids,
            benchmark=benchmark,
        )
    return names


# What importing the package registers: data set -> benchmark.
_shipped: dict[str, Benchmark] = {}


def is_as_shipped(name: str) -> bool:
    """Whether a registered data set is what importing this package has registered by that name."""
    benchmark, records = _shipped.get(name), DatasetCatalog[name]
    return (
        benchmark is not None
        and MetadataCatalog.get(name).get("benchmark") == benchmark
        and isinstance(records, partial)
        and records.func is load_records
        and records.args[0] == benchmark
    )


def register_all() -> list[str]:
    """Registers the benchmarks that ship with the package; calling it again changes nothing.

    Returns:
        Their data set names.
    """
    for path in sorted(SPLIT_DIR.glob("*.json")):
        benchmark = read_split_file(path)
        _shipped.update(dict.fromkeys(register(benchmark), benchmark))
    return list(_shipped)
