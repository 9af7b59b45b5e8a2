"""What can be wrong with the files of a data set, found before the first step."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from numpy.typing import NDArray
from PIL import Image

from alignzeg.data.labels import get_vocabulary, label_lookup, read_labels

logger = logging.getLogger(__name__)

_THREADS = 8
# Absent classes that are listed before the rest is only counted.
_SHOWN = 10
_EXIF_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)


def check_files(name: str, limit: int = -1, training: bool = False) -> int:
    """Reads label files of a registered data set and checks them against their pictures.

    Args:
        name: a registered data set.
        limit: pairs to look at, evenly spread; below 0 all, 0 none.
        training: whether pixels of seen classes are needed.

    Returns:
        How many pairs were looked at.

    Raises:
        ValueError: on the first file that is unreadable, holds a value out of range, or has another
            size than its picture; if training, also if no pixel has a seen class.
    """
    records = [r for r in DatasetCatalog.get(name) if "sem_seg_file_name" in r]
    total = len(records)
    if 0 <= limit < total:
        records = records[:: -(-total // limit)] if limit else []
    if not records:
        return 0
    vocabulary = get_vocabulary(name)
    lookup = label_lookup(name, vocabulary)
    counts = np.zeros(len(vocabulary), dtype=np.int64)
    with ThreadPoolExecutor(_THREADS) as pool:
        for found in pool.map(lambda record: _check_pair(record, name, lookup), records):
            counts += found[: len(counts)]
    if training and not counts[list(vocabulary.seen_ids)].sum():
        raise ValueError(
            f"data set {name!r}: no pixel of {len(records)} label files has a seen class; there is "
            "nothing to learn from"
        )
    absent = [vocabulary.names[i] for i in np.flatnonzero(counts == 0)]
    if absent and len(records) == total:
        more = f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else ""
        shown = ", ".join(absent[:_SHOWN]) + more
        logger.warning("data set %s: no pixel of %d label files is %s", name, total, shown)
    return len(records)


def _check_pair(record: Mapping[str, str], name: str, lookup: NDArray) -> NDArray[np.int64]:
    """Pixels of every class, after all checks of one pair."""
    file = record["sem_seg_file_name"]
    try:
        labels = read_labels(file, name)
    except ValueError as error:
        benchmark = MetadataCatalog.get(name).get("benchmark")
        if benchmark is None or benchmark.root is None or "out of range" not in str(error):
            raise
        raise ValueError(
            f"{error}; a value is the class's position in the list of names, from 0"
        ) from error
    size = picture_size(record["file_name"])
    if labels.shape != size:
        raise ValueError(
            f"image {record['file_name']} has {size[0]} x {size[1]} pixels (height x width) but "
            f"its label file {file} has {labels.shape[0]} x {labels.shape[1]}"
        )
    return np.bincount(lookup[labels].ravel(), minlength=int(np.iinfo(lookup.dtype).max) + 1)


def picture_size(file_name: str) -> tuple[int, int]:
    """Height and width of a picture as `read_picture` returns it, from the file's header alone.

    Raises:
        ValueError: if the file cannot be read; the message names it.
    """
    try:
        with Image.open(file_name) as image:
            width, height = image.size
            turned = image.getexif().get(_EXIF_ORIENTATION) in _TURNED
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read image file {file_name}: {error}") from error
    return (width, height) if turned else (height, width)
