"""Which data a run has read: one hash for each data set."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from alignzeg.data.labels import get_vocabulary
from alignzeg.files import file_hash

# Contents up to this many bytes are hashed whole; of a larger data set, as many files, evenly
# spread, as fit. Names and sizes of all files always count.
CONTENT_BUDGET = 256 * 2**20
_FILES = ("file_name", "sem_seg_file_name", "pseudo_file_name")
_THREADS = 8


def fingerprint(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Identifies registered data sets by their content, wherever they lie.

    Hashed are the class list with its split and raw ids, the relative names and sizes of all image
    and label files, and the contents of the files within `CONTENT_BUDGET`.

    Returns:
        Data set name -> "sha256", "images", "files_hashed" (files read whole) and "files".

    Raises:
        ValueError: on an unknown data set, or a file that is missing or cannot be read.
    """
    return {name: _fingerprint_one(name) for name in dict.fromkeys(names)}


def _fingerprint_one(name: str) -> dict[str, Any]:
    vocabulary = get_vocabulary(name)
    metadata = MetadataCatalog.get(name).as_dict()
    records = DatasetCatalog.get(name)
    files = sorted(
        {os.path.abspath(record[key]) for record in records for key in _FILES if key in record}
    )
    digest = hashlib.sha256()
    classes = {
        "vocabulary": dataclasses.asdict(vocabulary),
        "meaning": [metadata.get(key) for key in ("raw_ids", "ignored_raw_ids", "ignore_label")],
    }
    digest.update(json.dumps(classes, sort_keys=True).encode())
    folder = os.path.commonpath([os.path.dirname(file) for file in files]) if files else ""
    try:
        sizes = [os.path.getsize(file) for file in files]
        chosen = _within_budget(sizes)
        with ThreadPoolExecutor(_THREADS) as pool:
            contents = dict(
                zip(chosen, pool.map(file_hash, [files[i] for i in chosen]), strict=True)
            )
    except OSError as error:
        raise ValueError(f"data set {name!r}: {error}") from error
    for index, (file, size) in enumerate(zip(files, sizes, strict=True)):
        relative = os.path.relpath(file, folder)
        line = f"{relative}\0{size}\0{contents.get(index, '')}\n"
        digest.update(line.encode(errors="surrogateescape"))  # a name of any encoding
    return {
        "sha256": digest.hexdigest(),
        "images": len(records),
        "files": len(files),
        "files_hashed": len(chosen),
    }


def _within_budget(sizes: Sequence[int]) -> list[int]:
    """Indices of files to read: all, or every n-th with the smallest n that fits the budget."""
    step = max(1, -(-sum(sizes) // CONTENT_BUDGET))
    return list(range(0, len(sizes), step))


def data_hash(prints: Mapping[str, Mapping[str, Any]]) -> str:
    """One hash over the fingerprints of several data sets, in their order."""
    parts = [f"{name} {found['sha256']}" for name, found in prints.items()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
