"""A benchmark: class names in id order, the unseen among them, its folders; one JSON each.

A split file holds (paths are relative to the data root, `DETECTRON2_DATASETS` or ./datasets):

    name            the benchmark; its data sets are called <name>_<split>
    base            optional; another split file of the same folder, whose keys hold here too
                    unless they are given anew
    classes         class names in id order
    unseen          names without training masks
    seen            optional; all other names, checked if given
    pseudo_unseen   optional; seen names that can be hidden to tune on them
    prompts         optional; what is said to the text encoder, one per class: a name, or a list of
                    names that mean the same
    raw_ids         optional; the value of each class in the label files; 0, 1, 2, ... by default
    ignore_label    optional; the value of unlabelled pixels; 255 by default
    ignored_raw_ids optional; more values that mean "no class" (such as VOC's background)
    splits          optional; {split: {"image_root": ..., "sem_seg_root": ..., "images": ...}};
                    <name>/images/<split> and <name>/annotations/<split> by default; "images" is
                    the official number of labelled images, or a list of numbers in use; "take":
                    [n, [r, ...]] has only those whose place in the order of names, modulo n, is one
                    of r
    extra_images    optional; true if image folders also hold images without a label file
    prepare         optional; the command that makes the files
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignzeg.structures import IGNORE_LABEL, SYNONYM_SEPARATOR, Vocabulary

_REQUIRED = ("name", "classes", "unseen")
_OPTIONAL = (
    "seen",
    "pseudo_unseen",
    "prompts",
    "raw_ids",
    "ignore_label",
    "ignored_raw_ids",
    "splits",
    "extra_images",
    "prepare",
)
_ROOTS = ("image_root", "sem_seg_root")


@dataclass(frozen=True)
class Benchmark:
    """A class list, its split into seen and unseen, and where the images lie.

    Attributes:
        name: data sets are called `<name>_<split>`.
        vocabulary: all classes in id order.
        pseudo_unseen: seen names that may be hidden to tune on them.
        raw_ids: the value of each class in the label files.
        folders: split -> (image folder, label folder).
        ignore_label: the value of unlabelled pixels.
        ignored_raw_ids: further values that mean "no class".
        doubtful_raw_ids: values that mean a class, but may have been meant as "no class"; a label
            file that holds one is refused.
        prepare: what to do when the files are missing; ends an error message.
        counts: split -> official numbers of labelled images; a split may be absent.
        extra_images: whether image folders also hold images without a label file.
        taken: split -> n and remainders: only the images whose place in the order of names, modulo
            n, is one of these; a split may be absent.
        root: absolute data root; None reads `DETECTRON2_DATASETS` when the files are needed.

    Raises:
        ValueError: if a pseudo-unseen name is not a seen class, or the raw ids are not one per
            class, unique, in 0..65535 and different from the values that mean "no class".
    """

    name: str
    vocabulary: Vocabulary
    pseudo_unseen: tuple[str, ...]
    raw_ids: tuple[int, ...]
    folders: Mapping[str, tuple[str, str]]
    ignore_label: int = IGNORE_LABEL
    ignored_raw_ids: tuple[int, ...] = ()
    doubtful_raw_ids: tuple[int, ...] = ()
    prepare: str = ""
    root: str | None = None
    counts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    extra_images: bool = False
    taken: Mapping[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = self.vocabulary.names
        seen = {names[i] for i in self.vocabulary.seen_ids}
        wrong = sorted(set(self.pseudo_unseen) - seen)
        if wrong:
            raise ValueError(f"benchmark {self.name!r}: pseudo-unseen {wrong} are not seen classes")
        if len(self.raw_ids) != len(names):
            raise ValueError(
                f"benchmark {self.name!r}: {len(names)} classes but {len(self.raw_ids)} raw ids"
            )
        values = (*self.raw_ids, *self.ignored_raw_ids)
        if len(set(self.raw_ids)) != len(self.raw_ids) or any(
            not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 65536
            for value in (*values, self.ignore_label)
        ):
            raise ValueError(
                f"benchmark {self.name!r}: raw ids must be unique integers in 0..65535; "
                f"got {list(values)} and ignore_label {self.ignore_label!r}"
            )
        clash = sorted(set(self.raw_ids) & {*self.ignored_raw_ids, self.ignore_label})
        if clash:
            raise ValueError(
                f"benchmark {self.name!r}: raw ids {clash} mean a class and also 'no class'; "
                "choose another ignore_label or other raw_ids"
            )


def read_split_file(path: str | Path) -> Benchmark:
    """Reads a benchmark from its JSON file.

    Raises:
        ValueError: on unreadable JSON, a missing or unknown key, or inconsistent class lists.
    """
    path = Path(path)
    content = _read(path)
    missing = sorted(set(_REQUIRED) - set(content))
    unknown = sorted(set(content) - {*_REQUIRED, *_OPTIONAL})
    if missing or unknown:
        raise ValueError(
            f"split file {path}: missing keys {missing}, unknown keys {unknown}; "
            f"it needs {list(_REQUIRED)} and may hold {list(_OPTIONAL)}"
        )
    try:
        return _benchmark(content)
    except (TypeError, LookupError, AttributeError, ValueError) as error:
        raise ValueError(f"split file {path}: {error}") from error


def _read(path: Path, depth: int = 0) -> dict[str, Any]:
    """The keys of a split file and, below them, those of its base."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read split file {path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"split file {path} must hold one JSON object")
    base = content.pop("base", None)
    if base is None:
        return content
    if depth > 8:
        raise ValueError(f"split file {path}: the chain of 'base' files has no end")
    return {**_read(path.with_name(f"{base}.json"), depth + 1), **content}


def _benchmark(content: dict[str, Any]) -> Benchmark:
    name, classes = content["name"], content["classes"]
    vocabulary = _vocabulary(classes, content["unseen"], content.get("seen"))
    prompts = tuple(_prompt(prompt) for prompt in content.get("prompts", ()))
    vocabulary = Vocabulary(vocabulary.names, vocabulary.seen, prompts)
    splits = content.get("splits") or {
        split: {
            "image_root": f"{name}/images/{split}",
            "sem_seg_root": f"{name}/annotations/{split}",
        }
        for split in ("train", "val")
    }
    for split, given in splits.items():
        unknown = sorted(set(given) - {*_ROOTS, "images", "take"})
        if unknown or not set(_ROOTS) <= set(given):
            raise ValueError(
                f"'splits' {split!r} holds {sorted(given)}; it needs {list(_ROOTS)} and may hold "
                "'images' and 'take'"
            )
    return Benchmark(
        name=name,
        vocabulary=vocabulary,
        pseudo_unseen=tuple(content.get("pseudo_unseen", ())),
        raw_ids=tuple(content.get("raw_ids", range(len(classes)))),
        folders={
            split: (given["image_root"], given["sem_seg_root"]) for split, given in splits.items()
        },
        ignore_label=content.get("ignore_label", IGNORE_LABEL),
        ignored_raw_ids=tuple(content.get("ignored_raw_ids", ())),
        prepare=f"Make it with: {content.get('prepare', f'python datasets/prepare_{name}.py')}",
        counts={
            split: _counts(given["images"]) for split, given in splits.items() if "images" in given
        },
        extra_images=bool(content.get("extra_images", False)),
        taken={
            split: (int(given["take"][0]), tuple(given["take"][1]))
            for split, given in splits.items()
            if "take" in given
        },
    )


def _prompt(given: str | list[str]) -> str:
    return given if isinstance(given, str) else SYNONYM_SEPARATOR.join(given)


def _counts(given: int | list[int]) -> tuple[int, ...]:
    return (given,) if isinstance(given, int) else tuple(given)


def _vocabulary(
    classes: Sequence[str], unseen: Sequence[str], seen: Sequence[str] | None
) -> Vocabulary:
    if seen is not None:
        Vocabulary.from_groups(seen, unseen)  # refuses a name in both groups
        differ = sorted({*seen, *unseen} ^ set(classes))
        if differ:
            raise ValueError(
                f"'seen' and 'unseen' together are not 'classes'; they differ in {differ}"
            )
    return Vocabulary.from_unseen(classes, unseen)
