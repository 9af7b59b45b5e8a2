"""Choosing the bias correction on pseudo-unseen classes, without looking at an unseen label.

A model is trained with some seen classes held out (`ALIGNZEG.DATA.HOLD_OUT: pseudo_unseen`). They
play the unseen ones in an evaluation of that model; the strength of the correction that serves them
best is then used for the real unseen classes. The network runs once per picture; every setting is
scored from the cached proposals.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.structures import ImageList
from torch import nn

from alignzeg.data.labels import label_lookup, read_labels
from alignzeg.evaluation import confusion, metrics_from_confusion
from alignzeg.structures import Outputs, Vocabulary


@dataclass(frozen=True)
class CachedImage:
    """The scored proposals of one picture, and its truth.

    Attributes:
        outputs: batch of one, final proposals only, on the CPU.
        truth: (H, W) vocabulary ids, ignore label where nothing counts.
        padded_size: height and width that the mask logits cover, in pixels.
        image_size: height and width of the network's input.
    """

    outputs: Outputs
    truth: np.ndarray
    padded_size: tuple[int, int]
    image_size: tuple[int, int]


@dataclass(frozen=True)
class Setting:
    """One correction and how it did, in percent; a score is None where no such class is present."""

    gamma: float
    threshold: float
    seen_iou: float | None
    unseen_iou: float | None
    harmonic_iou: float | None


@torch.no_grad()
def cache_proposals(
    model: nn.Module, loader: Iterable[list[dict[str, Any]]], dataset_name: str
) -> list[CachedImage]:
    """Runs an `AlignZeg` model over a test loader and keeps what the correction needs.

    Args:
        model: in eval mode.
        loader: batches of one picture.
        dataset_name: the registered data set that the loader reads.
    """
    cached = []
    for batch in loader:
        (item,) = batch
        lookup = label_lookup(dataset_name, item["vocabulary"])
        truth = lookup[read_labels(item["sem_seg_file_name"], dataset_name)]
        images = ImageList.from_tensors(
            [item["image"].to(model.device).float()], size_divisibility=model.size_divisibility
        )
        outputs = model.outputs(images, item["vocabulary"])
        keep = dataclasses.replace(outputs, proposals=outputs.proposals[-1:])
        size = (images.tensor.shape[-2], images.tensor.shape[-1])
        cached.append(CachedImage(keep, truth, size, images.image_sizes[0]))
    return cached


@torch.no_grad()
def score(
    model: nn.Module, cached: Sequence[CachedImage], vocabulary: Vocabulary
) -> dict[str, Any]:
    """Metrics of the cached pictures under the model's present correction."""
    matrix = np.zeros((len(vocabulary), len(vocabulary) + 1), dtype=np.int64)
    for image in cached:
        masks = image.outputs.proposals[-1].mask_logits[0]
        labels = model.label_map(
            model.votes(model.class_probs(image.outputs, vocabulary)[0], masks),
            masks,
            image.padded_size,
            image.image_size,
            image.truth.shape,
        )
        matrix += confusion(image.truth, labels.cpu().numpy(), len(vocabulary))
    return metrics_from_confusion(matrix, vocabulary.seen)


def sweep(
    model: nn.Module,
    cached: Sequence[CachedImage],
    vocabulary: Vocabulary,
    gammas: Sequence[float],
    thresholds: Sequence[float],
) -> list[Setting]:
    """Scores every combination of gamma and threshold; the model's own values are restored.

    Args:
        model: an `AlignZeg` model whose corrector has `gamma` and, for the indicator, `threshold`.
        cached: from `cache_proposals`.
        vocabulary: classes with the pseudo-unseen ones as unseen.
        gammas: amounts to try, in logits.
        thresholds: probabilities to try; one value is enough for a corrector without a threshold.

    Raises:
        ValueError: if the corrector has no gamma to choose.
    """
    corrector = model.head.corrector
    if not hasattr(corrector, "gamma"):
        raise ValueError(
            f"{type(corrector).__name__} has nothing to calibrate; set ALIGNZEG.CORRECTOR.NAME to "
            "UnseenIndicator or ConstantShift"
        )
    has_threshold = hasattr(corrector, "threshold")
    before = (corrector.gamma, getattr(corrector, "threshold", 0.0))
    settings = []
    for threshold in thresholds if has_threshold else (0.0,):
        for gamma in gammas:
            corrector.gamma = gamma
            if has_threshold:
                corrector.threshold = threshold
            metrics = score(model, cached, vocabulary)
            groups = (metrics["sIoU"], metrics["uIoU"], metrics["hIoU"])
            settings.append(Setting(gamma, threshold, *groups))
    corrector.gamma = before[0]
    if has_threshold:
        corrector.threshold = before[1]
    return settings


def best(settings: Sequence[Setting]) -> Setting:
    """The setting with the highest hIoU; of equals, the mildest (lowest gamma)."""
    return max(
        settings, key=lambda s: (-1.0 if s.harmonic_iou is None else s.harmonic_iou, -s.gamma)
    )
