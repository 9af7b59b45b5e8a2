"""What can be wrong with the files of a data set, found before the first step."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from detectron2.data import DatasetCatalog
from numpy.typing import NDArray

from alignzeg.data.labels import get_vocabulary, label_lookup, read_record_labels
from alignzeg.data.pictures import check_image

logger = logging.getLogger(__name__)

_THREADS = 8
# Absent classes that are listed before the rest is only counted.
_SHOWN = 10


def check_files(name: str, limit: int = -1, training: bool = False) -> int:
    """Reads label files of a registered data set and checks them against their images.

    Args:
        name: a registered data set.
        limit: pairs to look at, evenly spread; below 0 all, 0 none.
        training: whether pixels of seen classes are needed.

    Returns:
        How many pairs were looked at.

    Raises:
        ValueError: as `classes_found`.
    """
    return classes_found(name, limit, training)[0]


def classes_found(
    name: str, limit: int = -1, training: bool = False
) -> tuple[int, frozenset[str] | None]:
    """As `check_files`, and the names of all classes that occur; None if only a part was read.

    Raises:
        ValueError: on the first file that is unreadable, holds a value out of range, or has another
            size than its image; if training, also if no pixel has a seen class.
    """
    records = [r for r in DatasetCatalog.get(name) if "sem_seg_file_name" in r]
    total = len(records)
    if 0 <= limit < total:
        records = records[:: -(-total // limit)] if limit else []
    if not records:
        return 0, None
    vocabulary = get_vocabulary(name)
    lookup = label_lookup(name, vocabulary)
    counts = np.zeros(len(vocabulary), dtype=np.int64)
    with ThreadPoolExecutor(_THREADS) as pool:
        for found in pool.map(lambda record: count_classes(record, lookup), records):
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
    present = frozenset(vocabulary.names[i] for i in np.flatnonzero(counts))
    return len(records), present if len(records) == total else None


def count_classes(record: Mapping[str, str], lookup: NDArray) -> NDArray[np.int64]:
    """Pixels of every id that a table (`label_lookup`) gives, after all checks of one pair.

    Raises:
        ValueError: if a file is unreadable, a label is out of range, or the sizes differ.
    """
    labels = read_record_labels(record, check_image(record["file_name"]))
    return np.bincount(lookup[labels].ravel(), minlength=int(np.iinfo(lookup.dtype).max) + 1)
