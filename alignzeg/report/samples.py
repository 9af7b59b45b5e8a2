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

SAMPLES = 8


def choose_samples(
    dataset: str,
    vocabulary: Vocabulary,
    predictors: Mapping[str, Callable[[str], Any]],
    most: int = SAMPLES,
) -> list[Sample]:
    """The first images of a data set that show an unseen class, with the answer of every run.

    Args:
        dataset: a registered data set.
        vocabulary: its classes.
        predictors: for each run's name, an `alignzeg.inference.Predictor`.
        most: images to show.
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
