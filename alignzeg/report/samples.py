"""Which images of a data set a report shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog

from alignzeg.data.labels import label_lookup, read_labels
from alignzeg.data.pictures import read_rgb
from alignzeg.report.runs import Sample
from alignzeg.structures import Vocabulary

SAMPLES, WORST = 8, 4


def choose_samples(
    dataset: str,
    vocabulary: Vocabulary,
    predictors: Mapping[str, Callable[[str], Any]],
    most: int = SAMPLES,
) -> list[Sample]:
    """The first images of a data set that show an unseen class, with the answer of every run.

    Predictors are those of `alignzeg.inference`, by the name of the run.
    """
    lookup = label_lookup(dataset, vocabulary)
    unseen = set(vocabulary.unseen_ids)
    samples: list[Sample] = []
    for record in DatasetCatalog.get(dataset) if most else ():
        truth = lookup[read_labels(record["sem_seg_file_name"], dataset)]
        if unseen.isdisjoint(np.unique(truth).tolist()):
            continue
        name = record["file_name"]
        answers = {key: predict(name).labels for key, predict in predictors.items()}
        samples.append(Sample(Path(name).stem, read_rgb(name), truth, answers))
        if len(samples) == most:
            break
    return samples


def choose_worst(
    dataset: str,
    vocabulary: Vocabulary,
    predictors: Mapping[str, Callable[[str], Any]],
    accuracies: Mapping[str, float],
    most: int = WORST,
) -> list[Sample]:
    """The images that were named worst, with the answer of every run.

    `accuracies` are `RunResult.images`, the lowest first; names are ends of label file names.
    """
    if not most or not accuracies or not predictors:
        return []
    lookup = label_lookup(dataset, vocabulary)
    records = {Path(record["sem_seg_file_name"]): record for record in DatasetCatalog.get(dataset)}
    samples: list[Sample] = []
    for place, percent in accuracies.items():
        parts = Path(place).parts
        record = next(
            (r for path, r in records.items() if path.parts[-len(parts) :] == parts), None
        )
        if record is None:
            continue
        name = record["file_name"]
        truth = lookup[read_labels(record["sem_seg_file_name"], dataset)]
        answers = {key: predict(name).labels for key, predict in predictors.items()}
        note = f"{Path(name).name}: {percent:.1f} % right"
        samples.append(Sample(Path(name).stem, read_rgb(name), truth, answers, note))
        if len(samples) == most:
            break
    return samples
