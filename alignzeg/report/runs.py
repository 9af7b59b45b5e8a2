"""What a report knows about a run, read from the files that training and evaluation left."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignzeg.evaluation.per_image import FILE_PATTERN, PerImage, load_per_image
from alignzeg.evaluation.uncertainty import intervals
from alignzeg.files import files_below

logger = logging.getLogger(__name__)

Points = list[tuple[int, float]]

# Losses of earlier decoder layers end in _0, _1, ...; they follow the final one closely.
_AUXILIARY = re.compile(r"_\d+$")


@dataclass(frozen=True)
class RunResult:
    """One trained and evaluated model. Whatever is missing is left out of the report.

    Attributes:
        name: short key, such as "baseline".
        label: what readers see.
        metrics: figures of the last evaluation, in percent.
        classes: one row per class with "name", "seen", "IoU" (percent or None).
        groups: pixels by true and predicted group, {"seen": {"seen": ..., "unseen": ...}, ...}.
        protocol: what was evaluated, as the evaluator describes it.
        losses: (iteration, value) of every logged loss, final decoder layer only.
        evaluations: (iteration, value in percent) of every figure of the periodic evaluations.
        command: what trains it again.
        config: its whole config as YAML text.
        intervals: low and high end of the 95 % interval over images of some figures, in percent.
        confusion: (K, K + 1) pixels by true and named class, the last column "none of these".
        images: percent of the labelled pixels that were named right, by label file; empty where
            the evaluation kept no counts of single images.
    """

    name: str
    label: str
    metrics: Mapping[str, float | None]
    classes: list[dict[str, Any]] = field(default_factory=list)
    groups: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    losses: Mapping[str, Points] = field(default_factory=dict)
    evaluations: Mapping[str, Points] = field(default_factory=dict)
    command: str = ""
    config: str = ""
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    confusion: list[list[int]] = field(default_factory=list)
    images: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One validation image.

    Attributes:
        name: shown under it.
        image: (H, W, 3) uint8 RGB.
        truth: (H, W) class ids; ids without a class are unlabelled.
        predictions: (H, W) class ids by run name.
        note: what is said of it.
    """

    name: str
    image: NDArray[np.uint8]
    truth: NDArray
    predictions: Mapping[str, NDArray]
    note: str = ""


def read_run(
    name: str, label: str, folder: str | Path, dataset: str, command: str = ""
) -> RunResult:
    """Collects a run from its OUTPUT_DIR.

    Raises:
        ValueError: if there is no evaluation of that data set; logs and config may be missing.
    """
    folder = Path(folder)
    name_of_file = f"evaluation_{dataset}.json"
    found = [path for path in files_below(folder) if path.name == name_of_file]
    found.sort(key=lambda path: path.stat().st_mtime)
    if not found:
        raise ValueError(f"no evaluation_{dataset}.json below {folder}; was the run evaluated?")
    evaluation = read_evaluation(found[-1])
    losses, evaluations = read_log(folder / "metrics.json")
    config = folder / "config.yaml"
    kept = read_images(found[-1].with_name(FILE_PATTERN.format(dataset)))
    return RunResult(
        name=name,
        label=label,
        metrics=evaluation.get("metrics", {}),
        classes=evaluation.get("classes", []),
        groups=evaluation.get("groups", {}),
        protocol=evaluation.get("protocol", {}),
        losses=losses,
        evaluations=evaluations,
        command=command,
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
        intervals={} if kept is None else _spans(kept),
        confusion=evaluation.get("confusion", []),
        images={} if kept is None else accuracies(kept),
    )


def read_evaluation(path: Path) -> dict[str, Any]:
    """What an evaluation wrote.

    Raises:
        ValueError: if the file holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kinds = {"metrics": dict, "groups": dict, "protocol": dict, "classes": list}
        if not all(isinstance(content.get(key, kind()), kind) for key, kind in kinds.items()):
            raise TypeError
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no evaluation of alignzeg; evaluate the run again") from error
    return content


def read_images(path: Path) -> PerImage | None:
    """Counts of single images; None where they were not kept or cannot be read."""
    if not path.is_file():
        return None
    try:
        return load_per_image(path)
    except ValueError as error:
        logger.warning("no intervals and no worst images: %s", error)
        return None


def _spans(kept: PerImage) -> dict[str, tuple[float, float]]:
    """Low and high end of the 95 % interval of each figure."""
    try:
        spans = intervals(kept)
    except ValueError as error:
        logger.warning("no intervals: %s", error)
        return {}
    return {key: (span.low, span.high) for key, span in spans.items()}


def accuracies(kept: PerImage) -> dict[str, float]:
    """Percent of the labelled pixels of each image that were named right, the lowest first."""
    right, true = kept.class_counts()[:, :2].sum(2).T
    order = np.argsort(np.where(true > 0, right / np.maximum(true, 1), np.inf), kind="stable")
    return {kept.images[i]: float(100 * right[i] / true[i]) for i in order if true[i]}


def read_log(path: Path) -> tuple[dict[str, Points], dict[str, Points]]:
    """Losses and periodic evaluations of a metrics.json: name -> (iteration, value).

    A run that was resumed wrote some iterations twice; the later line counts. Lines that are cut
    off are skipped.
    """
    losses: dict[str, dict[int, float]] = {}
    evaluations: dict[str, dict[int, float]] = {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in lines:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        iteration = entry.get("iteration")
        if iteration is None:
            continue
        for key, value in entry.items():
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                continue
            if key.startswith("sem_seg/"):
                evaluations.setdefault(key.removeprefix("sem_seg/"), {})[iteration] = value
            elif (key == "total_loss" or key.startswith("loss_")) and not _AUXILIARY.search(key):
                losses.setdefault(key, {})[iteration] = value
    return _sorted(losses), _sorted(evaluations)


def _sorted(table: Mapping[str, Mapping[int, float]]) -> dict[str, Points]:
    return {key: sorted(points.items()) for key, points in table.items()}
