"""Registered data sets with other names or labels for a while, to see what depends on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from numpy.typing import NDArray
from PIL import Image

from alignzeg.data.labels import read_labels, registered_names
from alignzeg.structures import Vocabulary


def hidden_names(datasets: Iterable[str], seen: Vocabulary) -> frozenset[str]:
    """Class names of registered data sets that are not among the classes trained on."""
    names = {name for d in datasets for name in MetadataCatalog.get(d).stuff_classes}
    return frozenset(names - {*seen.names})


@contextmanager
def renamed(hidden: frozenset[str]) -> Iterator[None]:
    """Replaces class names, and what is said for them, by nonsense in all registered data sets."""
    nonsense = {name: f"qwxz {index}" for index, name in enumerate(sorted(hidden))}
    with ExitStack() as stack:
        for dataset in registered_names():
            facts = MetadataCatalog.get(dataset).as_dict()
            if hidden & {*facts["stuff_classes"], *facts["vocabulary"].names}:
                stack.enter_context(_metadata(dataset, _without(facts, nonsense)))
        yield


def _without(facts: dict[str, Any], nonsense: dict[str, str]) -> dict[str, Any]:
    def swap(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(nonsense.get(name, name) for name in names)

    old: Vocabulary = facts["vocabulary"]
    prompts = tuple(
        nonsense.get(name, prompt) for name, prompt in zip(old.names, old.prompts, strict=True)
    )
    new = dataclasses.replace(old, names=swap(old.names), prompts=prompts)
    facts = {**facts, "vocabulary": new, "stuff_classes": list(swap(facts["stuff_classes"]))}
    pseudo = swap(facts.get("pseudo_unseen", ()))
    if "pseudo_unseen" in facts:
        facts["pseudo_unseen"] = pseudo
    if "benchmark" in facts:
        facts["benchmark"] = dataclasses.replace(
            facts["benchmark"], vocabulary=new, pseudo_unseen=pseudo
        )
    return facts


@contextmanager
def _metadata(dataset: str, facts: dict[str, Any]) -> Iterator[None]:
    """Gives a data set other metadata; Detectron2 allows no change of what is set."""
    before = MetadataCatalog.get(dataset)
    MetadataCatalog.remove(dataset)
    try:
        MetadataCatalog.get(dataset).set(**{k: v for k, v in facts.items() if k != "name"})
        yield
    finally:
        MetadataCatalog.remove(dataset)
        MetadataCatalog[dataset] = before


class Relabelling:
    """Other label files for some images of registered data sets.

    Attributes:
        changed_pixels: pixels that the last use gave another label.
        unseen_pixels: those among them that showed a hidden class.
    """

    def __init__(
        self, datasets: Iterable[str], seen: Vocabulary, images: frozenset[str], folder: str
    ) -> None:
        """Takes the data sets, the classes trained on, the images to change, and a folder for them.

        All other classes, and "no class", are hidden.
        """
        self.datasets = tuple(dict.fromkeys(datasets))
        self.changed_pixels = self.unseen_pixels = 0
        self._seen = frozenset(seen.names)
        self._images = images
        self._folder = Path(folder)

    def change(self, dataset: str, seen_labels: bool) -> list[dict[str, Any]]:
        """Records of a data set in which some label files are changed copies.

        `seen_labels` swaps seen classes; otherwise every hidden pixel gets another hidden label.
        """
        facts = MetadataCatalog.get(dataset).as_dict()
        classes = dict(zip(facts["raw_ids"], facts["stuff_classes"], strict=True))
        unseen = [raw for raw, name in classes.items() if name not in self._seen]
        hidden = [*unseen, *facts["ignored_raw_ids"], facts["ignore_label"]]
        known = [raw for raw, name in classes.items() if name in self._seen]
        if seen_labels:
            hidden = known if len(known) > 1 else [*known, facts["ignore_label"]]
        group, rng = np.array(hidden), np.random.default_rng(0)
        records = [dict(record) for record in DatasetCatalog.get(dataset)]
        for number, record in enumerate(records):
            if record["file_name"] not in self._images:
                continue
            labels = read_labels(record["sem_seg_file_name"], dataset)
            changed = _exchanged(labels, group, rng)
            self.changed_pixels += int((changed != labels).sum())
            self.unseen_pixels += int(np.isin(labels, unseen).sum())
            path = self._folder / f"{dataset}_{seen_labels}_{number}.png"
            Image.fromarray(changed).save(path)
            record["sem_seg_file_name"] = str(path)
        return records


def _exchanged(labels: NDArray, group: NDArray, rng: np.random.Generator) -> NDArray:
    """Labels in which every pixel with a value of a group has another value of that group."""
    place = np.full(65536, -1)
    place[group] = np.arange(len(group))
    old = place[labels]
    new = group[(old + rng.integers(1, len(group), labels.shape)) % len(group)]
    return np.where(old < 0, labels, new).astype(labels.dtype)


@contextmanager
def relabelled(change: Relabelling, *, seen_labels: bool) -> Iterator[None]:
    """Lets the catalog hand out the changed label files for a while."""
    change.changed_pixels = change.unseen_pixels = 0
    with ExitStack() as stack:
        for dataset in change.datasets:
            records = change.change(dataset, seen_labels)
            stack.enter_context(_records(dataset, partial(list, records)))
        yield


@contextmanager
def _records(dataset: str, read: Callable[[], list[dict[str, Any]]]) -> Iterator[None]:
    before = DatasetCatalog[dataset]
    DatasetCatalog[dataset] = read
    try:
        yield
    finally:
        DatasetCatalog[dataset] = before
