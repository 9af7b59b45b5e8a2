"""How many pseudo-labels there are and, where the source knows the truth, how many are right."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from numpy.typing import NDArray

from alignzeg.data.labels import get_vocabulary
from alignzeg.pseudo_labels.classes import Classes


class Tally:
    """Counts over label files. K names to choose from; "truth" is what the source's files say."""

    def __init__(self, dataset: str, classes: Classes, hold_out: str = "") -> None:
        """Takes the source data set, the names, and the hold-out they were made with.

        Classes that a hold-out takes away count as no class: their labels are not looked at.
        """
        facts = MetadataCatalog.get(dataset)
        self._classes = classes
        size = 1 + max(*facts.raw_ids, *facts.ignored_raw_ids, facts.ignore_label, *classes.raw_ids)
        k = len(classes.names)
        ids = {name: i for i, name in enumerate(classes.names)}
        # Row k of the truth: a class that cannot be chosen; row k + 1: no class.
        self._truth = np.full(size, k + 1)
        known = {*get_vocabulary(dataset, hold_out).names}
        for raw_id, name in zip(facts.raw_ids, facts.stuff_classes, strict=True):
            if name in known:
                self._truth[raw_id] = ids.get(name, k)
        self._given = np.full(size, k)
        self._given[list(classes.raw_ids)] = np.arange(k)
        # Rows: truth; columns: name that was given, or none. Pixels without a human label only.
        self.pixels = np.zeros((k + 2, k + 1), dtype=np.int64)
        self.confidence = np.zeros(k, dtype=np.int64)
        self.images = 0

    def add(self, raw: NDArray, labels: NDArray, confidence: NDArray[np.uint8]) -> None:
        """Counts one image: the source's labels, and the two maps that were made of it.

        Raises:
            ValueError: if a human label is not what it was.
        """
        human = self._classes.human_labels(raw)
        if (labels[human] != raw[human]).any() or confidence[human].any():
            raise ValueError("a human label was changed; delete the folder and make it again")
        truth, given = self._truth[raw[~human]], self._given[labels[~human]]
        width = self.pixels.shape[1]
        cells = np.bincount(truth * width + given, minlength=self.pixels.size)
        self.pixels += cells.reshape(self.pixels.shape)
        sure = np.bincount(given, weights=confidence[~human], minlength=width)[:-1]
        self.confidence += sure.astype(np.int64)
        self.images += 1

    def report(self) -> dict[str, Any]:
        """Counts in pixels and rates in percent, in all and for each name; null without a pixel.

        `precision` is the share of right names among pseudo-labels on pixels of a known class,
        `precision_all` that among all pseudo-labels, where any on a pixel without a class is wrong;
        `coverage` is the share of the pixels of a class that got some pseudo-label.
        """
        k = len(self._classes.names)
        wanted = [i for i, human in enumerate(self._classes.human) if not human]
        rows = {self._classes.names[i]: self._row([i]) for i in wanted}
        return {
            "images": self.images,
            "pixels_without_human_label": int(self.pixels.sum()),
            **self._row(wanted),
            "on_no_class": int(self.pixels[k + 1, :k].sum()),
            "names": rows,
        }

    def _row(self, ids: Iterable[int]) -> dict[str, Any]:
        ids = list(ids)
        k = len(self._classes.names)
        given = self.pixels[:, ids].sum(1)
        right = int(sum(self.pixels[i, i] for i in ids))
        truth = int(self.pixels[ids].sum())
        known = int(given[: k + 1].sum())
        total = int(given.sum())
        # Where the source's files name no such class, nothing is known about right and wrong.
        measured = truth > 0
        return {
            "pixels": total,
            "mean_confidence": int(self.confidence[ids].sum()) / 255 / total if total else None,
            "true_pixels": truth,
            "precision": 100 * right / known if known and measured else None,
            "precision_all": 100 * right / total if total and measured else None,
            "coverage": 100 * int(self.pixels[ids, :k].sum()) / truth if measured else None,
        }
