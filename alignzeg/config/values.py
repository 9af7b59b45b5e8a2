"""Refuses values that cannot be meant, before any work starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from detectron2.config import CfgNode

from alignzeg.config.detectron2 import DETECTRON2_VALUES, TRAINING_VALUES
from alignzeg.config.keys import Choices, Range
from alignzeg.config.table import ALIGNZEG

# PyTorch takes no larger whole number.
MOST = 2**63 - 1
# Task, metric, value and tolerance of an expected result, as Detectron2 compares them.
_EXPECTED: tuple[Any, ...] = (str, str, (int, float), (int, float))
# Old name -> new name.
RENAMED = {
    "ALIGNZEG.LOSS.COPY_IOU": "ALIGNZEG.LOSS.IGNORE_IOU",
    "ALIGNZEG.TEST.COPY_IOU": "ALIGNZEG.TEST.DUPLICATE_IOU",
    "ALIGNZEG.TEST.FOLD": "ALIGNZEG.TEST.SEMANTIC_INFERENCE",
    "ALIGNZEG.TEST.FOLD_MIB": "ALIGNZEG.TEST.MEMORY_MIB",
}


def new_name(key: str) -> str:
    """What a config key is called now; the key itself where it was not renamed."""
    return RENAMED.get(key, key)


def flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All keys of a nested config, written with dots, and their values."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def allowed_values() -> dict[str, Range | Choices]:
    """What the values of all keys may be, where that is a range or a list of names."""
    ours = {key: entry.values for key, entry in ALIGNZEG.keys("ALIGNZEG.")}
    return {**{key: values for key, values in ours.items() if values}, **DETECTRON2_VALUES}


def validate_values(cfg: CfgNode, training: bool = False) -> None:
    """Refuses numbers out of their range and unknown names; some keys matter in training only.

    Raises:
        ValueError: naming the first key that is wrong, its value and what it may be.
    """
    values = dict(flatten(cfg))
    for key, value in values.items():
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, int) and abs(item) > MOST:
                raise ValueError(f"{key} is {value!r}; no whole number may be beyond {MOST}")
    allowed = allowed_values()
    if cfg.SOLVER.LR_SCHEDULER_NAME != "WarmupMultiStepLR":
        del allowed["SOLVER.STEPS"]
    if training:
        allowed |= TRAINING_VALUES
    for key, values_of in allowed.items():
        values_of.check(key, values[key])
    extractor = cfg.ALIGNZEG.EXTRACTOR
    if extractor.HIDDEN_DIM % extractor.HEADS:
        raise ValueError(
            f"ALIGNZEG.EXTRACTOR.HIDDEN_DIM is {extractor.HIDDEN_DIM}; it must be a multiple of "
            f"ALIGNZEG.EXTRACTOR.HEADS {extractor.HEADS}"
        )
    low, high = cfg.ALIGNZEG.SYNTHESIZER.RANGE
    if low > high:
        raise ValueError(f"ALIGNZEG.SYNTHESIZER.RANGE is [{low}, {high}]; the smaller comes first")
    validate_expected(cfg)


def validate_expected(cfg: CfgNode) -> None:
    """Refuses expected results that Detectron2 cannot compare with."""
    for item in cfg.TEST.EXPECTED_RESULTS:
        fits = isinstance(item, (list, tuple)) and len(item) == len(_EXPECTED)
        if not fits or not all(map(isinstance, item, _EXPECTED)):
            raise ValueError(
                f"TEST.EXPECTED_RESULTS lists {item!r}; an entry is a list such as "
                "['sem_seg', 'hIoU', 69.0, 1.0]: task, metric, value and tolerance"
            )
