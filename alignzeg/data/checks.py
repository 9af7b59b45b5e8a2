"""What can be wrong with the files of a data set, found before the first step."""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from hashlib import sha256
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from numpy.typing import NDArray

from alignzeg.data.label_hints import doubts
from alignzeg.data.labels import get_vocabulary, label_lookup, read_record_labels
from alignzeg.data.pictures import check_image
from alignzeg.files import atomic_write, file_hash, user_cache
from alignzeg.progress import tracked

logger = logging.getLogger(__name__)

_THREADS = 8
# Absent classes that are listed before the rest is only counted.
_SHOWN = 10
# Of what is remembered of a check; another number forgets it.
_FORM = "1"
_MEANING = ("raw_ids", "ignored_raw_ids", "ignore_label", "doubtful_raw_ids")


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
    counted = _remembered(name, records, lambda: _count_all(name, records))
    counts, inner = (np.array(counted[key], dtype=np.int64) for key in ("counts", "inner"))
    unlabelled = int(counted["unlabelled"])
    if training and not counts[list(vocabulary.seen_ids)].sum():
        raise ValueError(
            f"data set {name!r}: no pixel of {len(records)} label files has a seen class; there is "
            "nothing to learn from"
        )
    said = doubts(vocabulary.names, counts, inner, unlabelled)
    absent = [vocabulary.names[i] for i in np.flatnonzero(counts == 0)]
    if absent and len(records) == total:
        more = f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else ""
        said.insert(0, f"no pixel of {total} label files is {', '.join(absent[:_SHOWN])}{more}")
    if said:
        logger.warning("data set %s: %s", name, ". ".join(said))
    present = frozenset(vocabulary.names[i] for i in np.flatnonzero(counts))
    return len(records), present if len(records) == total else None


def shared_images(trained: Iterable[str], tested: str) -> int:
    """How many images of a test set are in training sets, by path or content, whatever their name.

    Only files of one size are read.

    Raises:
        ValueError: if a data set is not there.
    """
    sizes: dict[int, set[str]] = defaultdict(set)
    for name in trained:
        for record in DatasetCatalog.get(name):
            path = os.path.realpath(record["file_name"])
            sizes[os.path.getsize(path)].add(path)
    hashes = lru_cache(maxsize=None)(file_hash)
    count = 0
    for record in DatasetCatalog.get(tested):
        path = os.path.realpath(record["file_name"])
        alike = sizes.get(os.path.getsize(path), set())
        count += path in alike or any(hashes(other) == hashes(path) for other in alike)
    return count


def _count_all(name: str, records: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Pixels of each class, those inside of a region of it, and those of no class."""
    vocabulary = get_vocabulary(name)
    lookup, length = label_lookup(name, vocabulary), len(vocabulary)
    sums = np.zeros((2, length + 1), dtype=np.int64)
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda record: _count_one(record, lookup, length), records)
        for one in tracked(found, f"checking {name}", len(records)):
            sums += one
    counts, inner = sums.tolist()
    return {"counts": counts[:length], "inner": inner[:length], "unlabelled": counts[length]}


def _count_one(record: Mapping[str, str], lookup: NDArray, length: int) -> NDArray[np.int64]:
    """(2, K + 1): of each class and of none, all pixels, and those with neighbours of the same."""
    ids = lookup[read_record_labels(record, check_image(record["file_name"]))]
    ids = np.minimum(ids, length)
    middle = ids[1:-1, 1:-1]
    same = np.ones(middle.shape, dtype=bool)
    height, width = ids.shape
    for down in range(3):
        for right in range(3):
            same &= ids[down : height - 2 + down, right : width - 2 + right] == middle
    both = (ids, middle[same]) if min(ids.shape) > 2 else (ids, ids[:0])
    return np.stack([np.bincount(part.ravel(), minlength=length + 1) for part in both])


def _remembered(
    name: str, records: Sequence[Mapping[str, str]], make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What `make` counts, or what it did at an earlier start, if no file has changed since."""
    folder = user_cache()
    metadata = MetadataCatalog.get(name).as_dict()
    facts = [_FORM, *(str(metadata.get(key)) for key in ("vocabulary", *_MEANING))]
    for record in records:
        for key in ("file_name", "sem_seg_file_name"):
            status = os.stat(record[key])
            facts += [os.path.abspath(record[key]), str(status.st_size), str(status.st_mtime_ns)]
    path = folder and folder / "checks" / f"{sha256(chr(0).join(facts).encode()).hexdigest()}.json"
    if path is None:
        return make()
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and {"counts", "inner", "unlabelled"} <= found.keys():
            return found
    made = make()
    with suppress(OSError):
        atomic_write(path, json.dumps(made))
    return made


def count_classes(record: Mapping[str, str], lookup: NDArray) -> NDArray[np.int64]:
    """Pixels of every id that a table (`label_lookup`) gives, after all checks of one pair.

    Raises:
        ValueError: if a file is unreadable, a label is out of range, or the sizes differ.
    """
    labels = read_record_labels(record, check_image(record["file_name"]))
    return np.bincount(lookup[labels].ravel(), minlength=int(np.iinfo(lookup.dtype).max) + 1)
