"""Confusion matrices of single images, kept sparse, as a file.

Most of an image's (K, K + 1) matrix is zero: kept are its other cells, as (image, cell, count).
A file holds no more than numbers and names and is read without running code.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignzeg.files import atomic_write

FILE_PATTERN = "per_image_{}.npz"
_DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class PerImage:
    """Counts of a whole evaluation, image by image.

    Attributes:
        classes: K names in id order.
        seen: (K,) bool.
        images: N names, ascending: label files relative to the folder that holds all of them.
        image: (n,) int32 row of `images` of each cell that is not zero.
        cell: (n,) int32, true class * (K + 1) + predicted class; K means "rejected".
        count: (n,) int64 pixels.
    """

    classes: tuple[str, ...]
    seen: tuple[bool, ...]
    images: tuple[str, ...]
    image: NDArray[np.int32]
    cell: NDArray[np.int32]
    count: NDArray[np.int64]

    @classmethod
    def collect(
        cls,
        classes: Sequence[str],
        seen: Sequence[bool],
        rows: Sequence[tuple[str, NDArray, NDArray]],
    ) -> PerImage:
        """Puts rows (label file, cells and counts, as from `sparse`) together by their names."""
        folder = os.path.commonpath([os.path.dirname(name) for name, *_ in rows]) if rows else ""
        rows = sorted(
            ((os.path.relpath(row[0], folder), *row[1:]) for row in rows), key=lambda row: row[0]
        )
        sizes = [len(cells) for _, cells, _ in rows]
        empty = np.zeros(0, dtype=np.int64)
        return cls(
            tuple(classes),
            tuple(bool(flag) for flag in seen),
            tuple(name for name, *_ in rows),
            np.repeat(np.arange(len(rows)), sizes).astype(np.int32),
            np.concatenate([empty, *(cells for _, cells, _ in rows)]).astype(np.int32),
            np.concatenate([empty, *(counts for *_, counts in rows)]).astype(np.int64),
        )

    def total(self) -> NDArray[np.int64]:
        """(K, K + 1) the confusion matrix of all images together."""
        k = len(self.classes)
        matrix = np.zeros(k * (k + 1), dtype=np.int64)
        np.add.at(matrix, self.cell, self.count)
        return matrix.reshape(k, k + 1)

    def class_counts(self) -> NDArray[np.float64]:
        """(N, 3, K) correct, true and predicted pixels by image and class: all that an IoU needs.

        float64, which counts pixels exactly up to 2^53.
        """
        n, k = len(self.images), len(self.classes)
        true, predicted = np.divmod(self.cell, k + 1)
        result = np.zeros((n, 3, k))
        hit, named = true == predicted, predicted < k
        np.add.at(result[:, 0], (self.image[hit], true[hit]), self.count[hit])
        np.add.at(result[:, 1], (self.image, true), self.count)
        np.add.at(result[:, 2], (self.image[named], predicted[named]), self.count[named])
        return result

    def save(self, path: str | Path) -> None:
        """Writes the file, whole or not at all."""
        content: dict[str, Any] = {
            "classes": np.array(self.classes, dtype=np.str_),
            "seen": np.array(self.seen, dtype=bool),
            "images": np.array(self.images, dtype=np.str_),
            "image": self.image,
            "cell": self.cell,
            "count": self.count,
        }
        atomic_write(path, lambda file: np.savez_compressed(file, **content), durable=True)


def sparse(matrix: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The cells of one image's matrix that are not zero, and their counts."""
    flat = matrix.ravel()
    cells = np.flatnonzero(flat)
    return cells.astype(np.int32), flat[cells].astype(np.int64)


def load_per_image(path: str | Path) -> PerImage:
    """Reads a file that `PerImage.save` wrote.

    Raises:
        ValueError: if it is missing, damaged or no such file.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no archive of arrays")
        with np.load(path, allow_pickle=False) as file:
            found = PerImage(
                tuple(str(name) for name in file["classes"]),
                tuple(bool(flag) for flag in file["seen"]),
                tuple(str(name) for name in file["images"]),
                file["image"],
                file["cell"],
                file["count"],
            )
        _check(found)
    except _DAMAGED as error:
        raise ValueError(
            f"cannot read {path} as per-image counts: {type(error).__name__} {error}; evaluate "
            "again with ALIGNZEG.TEST.SAVE_PER_IMAGE True"
        ) from error
    return found


def _check(found: PerImage) -> None:
    k, n = len(found.classes), len(found.images)
    if not k or not n or len(found.seen) != k:
        raise ValueError(f"{n} images, {k} classes and {len(found.seen)} seen flags")
    parts = (found.image, found.cell, found.count)
    if len({part.shape for part in parts}) != 1 or found.image.ndim != 1:
        raise ValueError(f"arrays of shapes {[part.shape for part in parts]}")
    if any(part.dtype.kind != "i" for part in parts):
        raise ValueError(f"arrays of types {[str(part.dtype) for part in parts]}")
    for part, size in ((found.image, n), (found.cell, k * (k + 1))):
        if part.size and not (part.min() >= 0 and part.max() < size):
            raise ValueError(f"an index outside 0..{size - 1}")
    if found.count.size and found.count.min() < 0:
        raise ValueError("a negative count")
