"""Pseudo-labels on disk as a data set: human labels, and what a model said about the other pixels.

A folder that `alignzeg pseudo-labels` wrote holds, for each image of its source data set,

    labels/<name>.png      label maps: human labels as in the source, pseudo-labels on other
                           pixels, the ignore value elsewhere
    confidence/<name>.png  8 bits: 0 where the label is a human's or missing, else 255 x confidence
    pseudo_labels.json     the source, the classes, how it was made, and how good it is
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from alignzeg.data.catalog import EVALUATOR_TYPE
from alignzeg.structures import Vocabulary

DESCRIPTION = "pseudo_labels.json"
LABELS, CONFIDENCE = "labels", "confidence"
SUFFIX = "_pseudo"
_KEYS = ("source", "classes", "prompts", "raw_ids", "ignored_raw_ids", "ignore_label")
_MAKE = "make it with: alignzeg pseudo-labels --help"


def file_keys(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each record, by which its files are called: its label file's place, no suffix."""
    files = [os.path.abspath(record["sem_seg_file_name"]) for record in records]
    if not files:
        return []
    folder = os.path.commonpath([os.path.dirname(file) for file in files])
    return [os.path.splitext(os.path.relpath(file, folder))[0] for file in files]


def pseudo_files(root: str | Path, key: str) -> tuple[Path, Path]:
    """The label map and the confidence map of a record, by its key."""
    return Path(root) / LABELS / f"{key}.png", Path(root) / CONFIDENCE / f"{key}.png"


def register_pseudo_labels(root: str | Path) -> str:
    """Registers a folder of pseudo-labels, replacing what was registered from another one.

    All of its classes count as seen: there are masks of each, some from a model. If they were made
    with ALIGNZEG.DATA.HOLD_OUT, they serve a config with the same value: settings of a method that
    trains on pseudo-labels are chosen on pseudo-unseen classes in this way.

    Returns:
        The data set's name, `<source>_pseudo`.

    Raises:
        ValueError: if the folder holds no complete pseudo-labels, or its source is not registered.
    """
    about = _read(Path(root))
    name, source = about["source"] + SUFFIX, about["source"]
    if source not in DatasetCatalog:
        raise ValueError(f"the pseudo-labels in {root} are of the unknown data set {source!r}")
    names = tuple(about["classes"])
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, partial(_records, str(root), source, name))
    MetadataCatalog.get(name).set(
        stuff_classes=list(names),
        ignore_label=about["ignore_label"],
        evaluator_type=EVALUATOR_TYPE,
        vocabulary=Vocabulary(names, (True,) * len(names), tuple(about["prompts"])),
        pseudo_unseen=(),
        hold_out=about.get("hold_out", ""),
        raw_ids=tuple(about["raw_ids"]),
        ignored_raw_ids=tuple(about["ignored_raw_ids"]),
    )
    return name


def _read(root: Path) -> dict[str, Any]:
    path = root / DESCRIPTION
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"no complete pseudo-labels in {root}: {error}; {_MAKE}") from error
    if not isinstance(about, dict) or any(key not in about for key in _KEYS):
        raise ValueError(f"{path} is not a description of pseudo-labels; {_MAKE}")
    return about


def _records(root: str, source: str, name: str) -> list[dict[str, Any]]:
    records = DatasetCatalog.get(source)
    result = []
    for record, key in zip(records, file_keys(records), strict=True):
        labels, confidence = pseudo_files(root, key)
        missing = next((path for path in (labels, confidence) if not path.is_file()), None)
        if missing is not None:
            raise ValueError(
                f"{missing} does not exist, though {source!r} has {record['file_name']}; {_MAKE}"
            )
        files = {"sem_seg_file_name": str(labels), "pseudo_file_name": str(confidence)}
        result.append({**record, **files, "dataset_name": name})
    return result


def setup_pseudo_labels(cfg: CfgNode) -> None:
    """Registers what ALIGNZEG.DATA.PSEUDO.ROOT holds, if it is there; see the check below."""
    root = cfg.ALIGNZEG.DATA.PSEUDO.ROOT
    if root and (Path(root) / DESCRIPTION).is_file():
        register_pseudo_labels(root)


def validate_pseudo_labels(cfg: CfgNode) -> None:
    """Refuses a folder of pseudo-labels that is not there.

    Raises:
        ValueError: naming it, and the command that makes it.
    """
    root = cfg.ALIGNZEG.DATA.PSEUDO.ROOT
    if root and not (Path(root) / DESCRIPTION).is_file():
        source = next(iter(cfg.DATASETS.TRAIN), "NAME").removesuffix(SUFFIX)
        raise ValueError(
            f"ALIGNZEG.DATA.PSEUDO.ROOT is {root!r}, which holds no {DESCRIPTION}; make it with: "
            f"alignzeg pseudo-labels --config-file CONFIG --dataset {source} "
            f"--output {root}"
        )
