"""The names that pseudo-labels may have, and the values that stand for them in label files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from numpy.typing import NDArray

from alignzeg.data.labels import get_vocabulary
from alignzeg.structures import SYNONYM_SEPARATOR, spelling


@dataclass(frozen=True)
class Classes:
    """Names to choose from.

    Attributes:
        names: K names, the seen ones of the data set in its order among them.
        prompts: what is said for each.
        raw_ids: value of each in the label files.
        human: for each, whether humans labelled it: such a name is never given.
        ignore_label: value of pixels without a label.
        ignored_raw_ids: further values that mean "no class".
    """

    names: tuple[str, ...]
    prompts: tuple[str, ...]
    raw_ids: tuple[int, ...]
    human: tuple[bool, ...]
    ignore_label: int
    ignored_raw_ids: tuple[int, ...]

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """Of the label files."""
        wide = max(*self.raw_ids, self.ignore_label) > 255
        return np.uint16 if wide else np.uint8

    def human_labels(self, raw: NDArray) -> NDArray[np.bool_]:
        """(H, W) true where the raw label is that of a class that humans labelled."""
        ids = [raw_id for raw_id, human in zip(self.raw_ids, self.human, strict=True) if human]
        return np.isin(raw, ids)


def find_classes(dataset: str, hold_out: str, words: Sequence[str]) -> Classes:
    """The names for a data set: its own seen and unseen ones, or its seen ones and given words.

    Words, an open vocabulary, take the place of the unseen names; with `hold_out` the pseudo-unseen
    classes can play these.

    Raises:
        ValueError: if there is no name that could be given.
    """
    vocabulary = get_vocabulary(dataset, hold_out)
    facts = MetadataCatalog.get(dataset)
    ids = dict(zip(facts.stuff_classes, facts.raw_ids, strict=True))
    rows = [
        (name, prompt, ids[name], seen)
        for name, prompt, seen in zip(
            vocabulary.names, vocabulary.prompts, vocabulary.seen, strict=True
        )
        if seen or not words
    ]
    taken = {*facts.raw_ids, *facts.ignored_raw_ids, facts.ignore_label}
    free = (number for number in count() if number not in taken)
    known = {spelling(name) for name, *_ in rows}
    own = {spelling(name): name for name in ids}
    for word in words:
        name = word.split(SYNONYM_SEPARATOR)[0]
        if spelling(name) not in known:
            known.add(spelling(name))
            name = own.get(spelling(name), name)
            rows.append((name, word, ids[name] if name in ids else next(free), False))
    if all(seen for *_, seen in rows):
        raise ValueError(
            f"every class of {dataset!r} has human labels, so there is no name to give to a pixel "
            "without one; name some with --words"
        )
    names, prompts, raw_ids, human = zip(*rows, strict=True)
    return Classes(names, prompts, raw_ids, human, facts.ignore_label, tuple(facts.ignored_raw_ids))


def describe(classes: Classes) -> dict[str, Any]:
    """The classes as the description of a folder of pseudo-labels holds them."""
    return {
        "classes": list(classes.names),
        "prompts": list(classes.prompts),
        "raw_ids": list(classes.raw_ids),
        "human": list(classes.human),
        "ignored_raw_ids": list(classes.ignored_raw_ids),
        "ignore_label": classes.ignore_label,
    }
