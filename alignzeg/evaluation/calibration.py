"""Choosing the bias correction on pseudo-unseen classes, without looking at an unseen label.

A model is trained with some seen classes held out (`ALIGNZEG.DATA.HOLD_OUT: pseudo_unseen`). They
play the unseen ones in an evaluation of that model; the strength of the correction, and the share
of the frozen VLM, that serve them best are then used for the real unseen classes. The network runs
once per image; every setting is scored from the cached proposals.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from detectron2.structures import ImageList
from numpy.typing import NDArray
from torch import Tensor, nn

from alignzeg.data.labels import label_lookup, read_labels
from alignzeg.evaluation import confusion, metrics_from_confusion
from alignzeg.modeling.semantic_inference import label_stripes
from alignzeg.structures import Outputs, Vocabulary


@dataclass(frozen=True)
class CachedImage:
    """The scored proposals of one image, and its truth.

    Attributes:
        outputs: batch of one, final proposals only, on the model's device.
        truth: (H, W) vocabulary ids, ignore label where nothing counts.
        padded_size: height and width that the mask logits cover, in pixels.
        image_size: height and width of the network's input.
    """

    outputs: Outputs
    truth: np.ndarray
    padded_size: tuple[int, int]
    image_size: tuple[int, int]


@dataclass(frozen=True)
class Grid:
    """What to try, all combinations.

    Attributes:
        gammas: amounts of the correction, in logits.
        thresholds: of the indicator, in [0, 1]; ignored by a corrector without a threshold.
        seen_exponents: ALIGNZEG.TEST.ENSEMBLE_SEEN, in [0, 1]; empty: the model's own.
        unseen_exponents: ALIGNZEG.TEST.ENSEMBLE_UNSEEN, likewise.

    Raises:
        ValueError: if there is no gamma or no threshold, or a share is outside [0, 1].
    """

    gammas: Sequence[float]
    thresholds: Sequence[float] = (0.5,)
    seen_exponents: Sequence[float] = ()
    unseen_exponents: Sequence[float] = ()

    def __post_init__(self) -> None:
        if not self.gammas or not self.thresholds:
            raise ValueError("a sweep needs at least one gamma and one threshold")
        shares = (*self.thresholds, *self.seen_exponents, *self.unseen_exponents)
        wrong = [share for share in shares if not 0 <= share <= 1]
        if wrong:
            raise ValueError(f"thresholds and ensemble exponents lie in [0, 1]; got {wrong[0]}")


@dataclass(frozen=True)
class Setting:
    """One correction and how it did, in percent; a score is None where no such class is present.

    Gamma is in logits; threshold and the exponents of the frozen VLM are in [0, 1].
    """

    gamma: float
    threshold: float
    seen_exponent: float
    unseen_exponent: float
    seen_iou: float | None
    unseen_iou: float | None
    harmonic_iou: float | None

    def opts(self) -> str:
        """The setting as KEY VALUE pairs of the command line."""
        return (
            f"ALIGNZEG.CORRECTOR.GAMMA {self.gamma} "
            f"ALIGNZEG.CORRECTOR.THRESHOLD {self.threshold} "
            f"ALIGNZEG.TEST.ENSEMBLE_SEEN {self.seen_exponent} "
            f"ALIGNZEG.TEST.ENSEMBLE_UNSEEN {self.unseen_exponent}"
        )


@torch.no_grad()
def cache_proposals(
    model: nn.Module, loader: Iterable[list[dict[str, Any]]], dataset_name: str
) -> list[CachedImage]:
    """Runs an `AlignZeg` model over a test loader and keeps what the correction needs.

    Args:
        model: in eval mode.
        loader: batches of one image.
        dataset_name: the registered data set that the loader reads.

    Raises:
        ValueError: if the model looks at an image more than once (scales, flips, windows).
    """
    if not model.augmentation.single:
        raise ValueError(
            "a calibration looks at each image once; set TEST.AUG.ENABLED False and "
            "ALIGNZEG.TEST.WINDOW 0"
        )
    cached = []
    for batch in loader:
        (item,) = batch
        lookup = label_lookup(dataset_name, item["vocabulary"])
        truth = lookup[read_labels(item["sem_seg_file_name"], dataset_name)]
        images = ImageList.from_tensors(
            [item["image"].to(model.device).float()],
            model.size_divisibility,
            padding_constraints=model.backbone.padding_constraints,
        )
        outputs = model.outputs(images, item["vocabulary"])
        keep = dataclasses.replace(outputs, proposals=outputs.proposals[-1:])
        size = (images.tensor.shape[-2], images.tensor.shape[-1])
        cached.append(CachedImage(keep, truth, size, images.image_sizes[0]))
    return cached


@torch.no_grad()
def sweep(
    model: nn.Module, cached: Iterable[CachedImage], vocabulary: Vocabulary, grid: Grid
) -> list[Setting]:
    """Scores every combination of a grid; the model's own values are restored.

    Args:
        model: an `AlignZeg` model.
        cached: from `cache_proposals`.
        vocabulary: classes with the pseudo-unseen ones as unseen.
        grid: what to try.

    Returns:
        One entry for each combination; thresholds vary slowest, then gammas, then the exponents.

    Raises:
        ValueError: if the corrector has no gamma to choose and the grid no exponents.
    """
    settings = _settings(model, grid)
    classes = len(vocabulary)
    matrices = np.zeros((len(settings), classes, classes + 1), np.int64)
    with _restored(model):
        for image in cached:
            weighted_probs = _weighted_probs(model, image, vocabulary, settings)
            # Where nothing comes near a threshold it does not matter: the same scores.
            places: dict[bytes, int] = {}
            numbers = [
                places.setdefault(v.cpu().numpy().tobytes(), len(places)) for v in weighted_probs
            ]
            different = {number: v for number, v in zip(numbers, weighted_probs, strict=True)}
            matrices += _matrices(model, image, list(different.values()), classes)[numbers]
    scores = [metrics_from_confusion(matrix, vocabulary.seen) for matrix in matrices]
    return [
        Setting(gamma, threshold, *exponents, score["sIoU"], score["uIoU"], score["hIoU"])
        for (threshold, gamma, exponents), score in zip(settings, scores, strict=True)
    ]


_Values = tuple[float, float, tuple[float, float]]


def _settings(model: nn.Module, grid: Grid) -> list[_Values]:
    """Threshold, gamma and exponents of every combination that means something for this model."""
    corrector = model.head.corrector
    seen = grid.seen_exponents or (model.ensemble[0],)
    unseen = grid.unseen_exponents or (model.ensemble[1],)
    has_gamma = hasattr(corrector, "gamma")
    if not has_gamma and not (grid.seen_exponents or grid.unseen_exponents):
        raise ValueError(
            f"{type(corrector).__name__} has nothing to calibrate; set ALIGNZEG.CORRECTOR.NAME to "
            "UnseenIndicator or ConstantShift, or give exponents of the ensemble to try"
        )
    thresholds = grid.thresholds if hasattr(corrector, "threshold") else (0.0,)
    gammas = grid.gammas if has_gamma else (0.0,)
    return list(product(thresholds, gammas, product(seen, unseen)))


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Gives the model its correction and its ensemble back at the end."""
    corrector, ensemble = model.head.corrector, model.ensemble
    names = [name for name in ("gamma", "threshold") if hasattr(corrector, name)]
    before = {name: getattr(corrector, name) for name in names}
    try:
        yield
    finally:
        model.ensemble = ensemble
        for name, value in before.items():
            setattr(corrector, name, value)


def _weighted_probs(
    model: nn.Module, image: CachedImage, vocabulary: Vocabulary, settings: Sequence[_Values]
) -> list[Tensor]:
    """(Q, K) weighted probabilities of an image without the background, one for each setting.

    They equal `model.weighted_probs(model.class_probs(...))` to the bit; what settings share is
    done once.
    """
    corrector, outputs = model.head.corrector, image.outputs
    masks = outputs.proposals[-1].mask_logits[0].float()
    shares = model.weighted_probs(masks.new_ones(len(masks), 1), masks)
    frozen = None
    if any(any(exponents) for *_, exponents in settings):
        frozen = model.frozen_probs(outputs, vocabulary)
    weighted_probs, previous = [], None
    for threshold, gamma, exponents in settings:
        if (threshold, gamma) != previous:
            for name, value in (("threshold", threshold), ("gamma", gamma)):
                if hasattr(corrector, name):
                    setattr(corrector, name, value)
            corrected = model.corrected_probs(outputs, vocabulary)
            previous = (threshold, gamma)
        probs = corrected
        if any(exponents):
            model.ensemble = exponents
            probs = model.ensembled(corrected, frozen, vocabulary)
        weighted_probs.append((probs[0] * shares)[:, :-1])
    return weighted_probs


def _matrices(
    model: nn.Module, image: CachedImage, weighted_probs: Sequence[Tensor], classes: int
) -> NDArray[np.int64]:
    """(n, K, K + 1) confusion matrices of n label maps, at the size of the truth."""
    matrices = np.zeros((len(weighted_probs), classes, classes + 1), np.int64)
    masks = image.outputs.proposals[-1].mask_logits[0]
    sizes = (image.padded_size, image.image_size, image.truth.shape)
    for rows, answers in label_stripes(weighted_probs, masks, *sizes, **model.inference_opts):
        truth = image.truth[rows]
        for matrix, labels in zip(matrices, answers, strict=True):
            matrix += confusion(truth, labels.cpu().numpy(), classes)
    return matrices


def best(settings: Sequence[Setting]) -> Setting:
    """The setting with the highest hIoU; of equals the mildest: low gamma, then low exponents."""
    return max(
        settings,
        key=lambda s: (
            -1.0 if s.harmonic_iou is None else s.harmonic_iou,
            -s.gamma,
            -s.seen_exponent - s.unseen_exponent,
        ),
    )
