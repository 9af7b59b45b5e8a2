"""What the numbers in a registered data set's label files mean: raw id -> class of a vocabulary.

Everything here reads only what `alignzeg.data.catalog` left in Detectron2's `MetadataCatalog`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from alignzeg.arguments import did_you_mean
from alignzeg.data.label_hints import ranges, whole_numbers, why_no_ids
from alignzeg.data.pictures import read_values
from alignzeg.structures import IGNORE_LABEL, Vocabulary, spelling

logger = logging.getLogger(__name__)

HOLD_OUTS = ("", "pseudo_unseen")
# Ids that do not fit into uint8 (a vocabulary of more than 255 names) are written as uint16.
WIDE_IGNORE_LABEL = 65535


# Data sets that anyone can make.
_EXAMPLES = "'zeroshapes_train', 'zeroshapes_val'"


def registered_names() -> list[str]:
    """Names of all data sets that carry a vocabulary, sorted."""
    return sorted(
        name
        for name in DatasetCatalog.list()
        if "vocabulary" in MetadataCatalog.get(name).as_dict()
    )


def known_names(wrong: str) -> str:
    """What a wrong name of a data set may have meant, and where all names stand."""
    names = registered_names()
    return (
        f"{did_you_mean(wrong, names)}registered: {len(names)} names such as {_EXAMPLES}; "
        "alignzeg doctor --all lists them"
    )


def _metadata(dataset_name: str) -> dict:
    # Asking Detectron2 for the metadata of an unknown name would create it.
    metadata = MetadataCatalog.get(dataset_name).as_dict() if dataset_name in DatasetCatalog else {}
    if "vocabulary" not in metadata:
        raise ValueError(
            f"no data set named {dataset_name!r} with a seen/unseen vocabulary; "
            f"{known_names(dataset_name)}"
        )
    return metadata


def get_vocabulary(dataset_name: str, hold_out: str = "") -> Vocabulary:
    """The classes of a registered data set, in id order.

    Args:
        dataset_name: a registered name, e.g. "zeroshapes_val".
        hold_out: "" for the data set's own seen/unseen split. With "pseudo_unseen" the unseen
            classes vanish and the pseudo-unseen classes, which are seen otherwise, take their
            place: whatever is tuned on them never looks at the real unseen classes. Pseudo-labels
            that were made with the same value hold those classes already.

    Raises:
        ValueError: on a name or a `hold_out` that does not exist.
    """
    metadata = _metadata(dataset_name)
    vocabulary: Vocabulary = metadata["vocabulary"]
    if hold_out not in HOLD_OUTS:
        raise ValueError(
            f"ALIGNZEG.DATA.HOLD_OUT is {hold_out!r}; it can be one of {list(HOLD_OUTS)}"
        )
    if not hold_out or metadata.get("hold_out") == hold_out:
        return vocabulary
    held = set(metadata["pseudo_unseen"])
    if not held:
        raise ValueError(
            f"data set {dataset_name!r} lists no pseudo-unseen classes; "
            "set ALIGNZEG.DATA.HOLD_OUT to '' or add 'pseudo_unseen' to its split file"
        )
    ids = vocabulary.seen_ids
    names = tuple(vocabulary.names[i] for i in ids)
    prompts = tuple(vocabulary.prompts[i] for i in ids)
    return Vocabulary(names, tuple(name not in held for name in names), prompts)


def training_vocabulary(cfg: CfgNode) -> Vocabulary:
    """The seen classes of `cfg.DATASETS.TRAIN` under `cfg.ALIGNZEG.DATA.HOLD_OUT`.

    Raises:
        ValueError: if there is no training set, or two of them differ in their seen classes.
    """
    names = cfg.DATASETS.TRAIN
    if not names:
        raise ValueError(
            f"DATASETS.TRAIN is empty; give at least one training set; {known_names('')}"
        )
    hold_out = cfg.ALIGNZEG.DATA.HOLD_OUT
    vocabularies = []
    for name in names:
        vocabulary = get_vocabulary(name, hold_out)
        if not vocabulary.seen_ids:
            raise ValueError(f"data set {name!r} has no seen class; there is nothing to train on")
        vocabularies.append(vocabulary.seen_part())
    for name, vocabulary in zip(names, vocabularies, strict=True):
        if vocabulary != vocabularies[0]:
            differ = sorted(set(vocabulary.names) ^ set(vocabularies[0].names))
            raise ValueError(
                f"training sets {names[0]!r} and {name!r} differ in their seen classes"
                f"{f' {differ}' if differ else ' (order or prompts)'}; "
                "DATASETS.TRAIN must list sets with one common class list"
            )
    return vocabularies[0]


def eval_vocabulary(cfg: CfgNode, dataset_name: str) -> Vocabulary:
    """The classes of a test set, each seen if the data set says so and training had such a class.

    For another data set than that of the training, a class counts as seen if one of its names, or
    one of its synonyms, is that of a class in training.

    Raises:
        ValueError: as `get_vocabulary` and `training_vocabulary`.
    """
    vocabulary = get_vocabulary(dataset_name, cfg.ALIGNZEG.DATA.HOLD_OUT)
    trained = training_vocabulary(cfg)
    known = {spelling(name) for name in trained.names}
    asked = [spelling(name) for name in vocabulary.names]
    if known <= set(asked):
        seen = [name in known for name in asked]
    else:
        words = {word for names in _words(trained) for word in names}
        seen = [bool(names & words) for names in _words(vocabulary)]
    both = tuple(a and b for a, b in zip(seen, vocabulary.seen, strict=True))
    return Vocabulary(vocabulary.names, both, vocabulary.prompts)


def _words(vocabulary: Vocabulary) -> list[set[str]]:
    """What each class is called: its name, and the synonyms in its prompt; their spelling."""
    pairs = zip(vocabulary.names, vocabulary.synonyms(), strict=True)
    return [{spelling(word) for word in (name, *synonyms)} for name, synonyms in pairs]


def ignore_value(vocabulary: Vocabulary) -> int:
    """The id that means "no label" beside the ids of this vocabulary: 255, or 65535 if K > 255."""
    return IGNORE_LABEL if len(vocabulary) <= IGNORE_LABEL else WIDE_IGNORE_LABEL


def label_lookup(dataset_name: str, vocabulary: Vocabulary) -> np.ndarray:
    """A table from the ids in a data set's label files to the ids of a vocabulary.

    Classes that the vocabulary does not contain, unlabelled pixels and values that mean nothing in
    this data set (`read_labels` refuses those) are all mapped to the ignore value, so no trace
    of a hidden class remains.

    Returns:
        (256,) table, or (65536,) for data sets with two-byte labels; uint8 with 255 for
        "ignore", or uint16 with 65535 if the vocabulary has more than 255 names.

    Raises:
        ValueError: on an unknown data set, or if the vocabulary shares no class name with it.
    """
    metadata = _metadata(dataset_name)
    ignore = ignore_value(vocabulary)
    table = np.full(
        _table_size(metadata), ignore, np.uint8 if ignore == IGNORE_LABEL else np.uint16
    )
    ids = {name: i for i, name in enumerate(vocabulary.names)}
    shared = 0
    for raw_id, name in zip(metadata["raw_ids"], metadata["stuff_classes"], strict=True):
        if name in ids:
            table[raw_id] = ids[name]
            shared += 1
    if not shared:
        raise ValueError(
            f"none of the class names {list(vocabulary.names)} occurs in data set {dataset_name!r}"
        )
    return table


def without_hidden(
    records: Sequence[Mapping[str, str]], vocabulary: Vocabulary
) -> list[Mapping[str, str]]:
    """The records in whose label files no class lies outside a vocabulary.

    Raises:
        ValueError: if none is left, or a label file is wrong.
    """
    hidden = {}
    for name in {record["dataset_name"] for record in records}:
        metadata, known = _metadata(name), set(vocabulary.names)
        pairs = zip(metadata["raw_ids"], metadata["stuff_classes"], strict=True)
        hidden[name] = [raw_id for raw_id, label in pairs if label not in known]
    kept = [
        record
        for record in records
        if not np.isin(
            np.unique(read_labels(record["sem_seg_file_name"], record["dataset_name"])),
            hidden[record["dataset_name"]],
        ).any()
    ]
    if not kept:
        raise ValueError(
            f"every one of {len(records)} training images shows a class that is not trained on; "
            "set ALIGNZEG.DATA.SKIP_UNSEEN_IMAGES to False"
        )
    return kept


def read_labels(file_name: str, dataset_name: str) -> np.ndarray:
    """Reads one label file of a registered data set and checks every value in it.

    Returns:
        (H, W) uint8 or uint16 raw ids, ready for `label_lookup`.

    Raises:
        ValueError: if the file cannot be read, has more than one channel, or holds a value that is
            neither a class nor "unlabelled", or may be either; the message names the file and the
            values.
    """
    metadata = _metadata(dataset_name)
    labels = whole_numbers(read_values(file_name))
    if labels.dtype == bool:
        labels = labels.astype(np.uint8)
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"label file {file_name} is {labels.dtype} of shape {labels.shape}; "
            f"it must be one channel of integer class ids: {why_no_ids(labels)}"
        )
    if labels.size and labels.min() < 0:
        # No class is below 0: rasters of maps mark what has no data so.
        _say_negative(dataset_name, int(labels.min()), metadata["ignore_label"])
        labels = np.where(labels < 0, metadata["ignore_label"], labels)
    allowed = {*metadata["raw_ids"], *metadata["ignored_raw_ids"], metadata["ignore_label"]}
    size = _table_size(metadata)
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if low < 0 or high >= 65536:
        found = [value for value in (low, high) if value not in allowed]
    else:
        counts = np.bincount(labels.ravel(), minlength=size)
        found = [int(value) for value in np.flatnonzero(counts) if int(value) not in allowed]
    if found:
        ids = metadata["raw_ids"]
        places = ids == tuple(range(len(ids)))
        own = getattr(metadata.get("benchmark"), "root", None) is not None
        raise ValueError(
            f"label file {file_name} holds {found[:10]}, out of range for data set "
            f"{dataset_name!r}; allowed are {ranges(allowed - {metadata['ignore_label']})} "
            f"and {metadata['ignore_label']} (unlabelled)"
            + ("; a value is the class's position in the list of names, from 0" if places else "")
            + ("; other ids are named by ALIGNZEG.DATA.OWN.RAW_IDS" if own else "")
        )
    for value in metadata.get("doubtful_raw_ids", ()):
        if (labels == value).any():
            place = metadata["raw_ids"].index(value)
            raise ValueError(
                f"label file {file_name} holds {value}, which is the class "
                f"{metadata['stuff_classes'][place]!r} of data set {dataset_name!r}; pixels of no "
                f"class are {metadata['ignore_label']}: write that for them or, if the class is "
                f"meant, set ALIGNZEG.DATA.OWN.IGNORE_LABEL {metadata['ignore_label']}"
            )
    return labels.astype(np.uint8 if size == 256 else np.uint16, copy=False)


@lru_cache(maxsize=1000)
def _say_negative(dataset_name: str, value: int, ignore: int) -> None:
    logger.warning(
        "data set %s: label files hold %d; values below 0 are taken for 'no class', as %d",
        *(dataset_name, value, ignore),
    )


def read_record_labels(record: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Reads the label file of a record, as `read_labels`, and compares it with its image.

    Raises:
        ValueError: as `read_labels`, and if the sizes differ.
    """
    labels = read_labels(record["sem_seg_file_name"], record["dataset_name"])
    if labels.shape != size:
        raise ValueError(
            f"image {record['file_name']} has {size[0]} x {size[1]} pixels (height x width) but "
            f"its label file {record['sem_seg_file_name']} has {labels.shape[0]} x "
            f"{labels.shape[1]}"
        )
    return labels


def _table_size(metadata: dict) -> int:
    values = (*metadata["raw_ids"], *metadata["ignored_raw_ids"], metadata["ignore_label"])
    return 256 if max(values) < 256 else 65536
