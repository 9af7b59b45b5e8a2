"""How the pixels of a data set are named by many settings of the correction and the ensemble."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignzeg.evaluation.cached_proposals import CachedImage
from alignzeg.evaluation.metrics import confusion
from alignzeg.modeling.label_counts import LabelCounts, count_labels
from alignzeg.modeling.semantic_inference import semantic_inference
from alignzeg.structures import Outputs, Vocabulary

# Threshold, gamma, and the exponents for seen and for unseen classes.
Values = tuple[float, float, tuple[float, float]]
# Class probabilities of all settings together that are held at a time.
_MOST_NUMBERS = 2**24
# Parts of the work, for each thread, that are made before they are needed.
_AHEAD = 2


@dataclass(frozen=True)
class _Part:
    """Settings of one image: their places, the number of each one's answer, and the answers."""

    places: NDArray[np.intp]
    numbers: list[int]
    counts: LabelCounts


@torch.no_grad()
def count_settings(
    model: Any,
    cached: Iterable[CachedImage],
    vocabulary: Vocabulary,
    settings: Sequence[Values],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Counts pixels for every setting; the model's own values are restored.

    Returns:
        (n, K) pixels of each class that were named so, (n, K) pixels that were named each class,
        and (K,) pixels of each class.
    """
    # Neighbours agree on most pixels, so they are counted together.
    order = nearest_first(np.array([(s[0], s[1], *s[2]) for s in settings]))
    shape = (len(settings), len(vocabulary))
    right, named = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    true = np.zeros(len(vocabulary), np.int64)
    with restored(model):
        for part in _ahead(_jobs(model, cached, vocabulary, settings, order)):
            right[part.places] += part.counts.right.cpu().numpy()[part.numbers]
            named[part.places] += part.counts.named.cpu().numpy()[part.numbers]
            # Each image's pixels count once: with the part that holds its first setting.
            if order[0] in part.places:
                true += part.counts.true.cpu().numpy()
    return right, named, true


def _jobs(
    model: Any,
    cached: Iterable[CachedImage],
    vocabulary: Vocabulary,
    settings: Sequence[Values],
    order: NDArray[np.intp],
) -> Iterator[Callable[[], _Part]]:
    """The parts of the work, each with all that it needs; the model is changed here only."""
    for image in cached:
        for places in np.array_split(order, _parts(image, len(settings), len(vocabulary))):
            chosen = [settings[i] for i in places]
            probs = settings_probs(model, image.outputs, vocabulary, chosen)
            # Where nothing comes near a threshold it does not matter: the same scores.
            numbers, firsts = _distinct(probs)
            yield partial(_counted, model, image, places, numbers, probs[firsts])


@torch.no_grad()
def _counted(
    model: Any,
    image: CachedImage,
    places: NDArray[np.intp],
    numbers: list[int],
    probs: Tensor,
) -> _Part:
    return _Part(places, numbers, _counts(model, image, probs))


def _ahead(jobs: Iterator[Callable[[], _Part]]) -> Iterator[_Part]:
    """What the jobs answer, in their order, done by as many threads as PyTorch would use.

    The products of one image are too small to be shared among threads; images are not.
    """
    threads = torch.get_num_threads()
    waiting: deque[Future[_Part]] = deque()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(job))
                if len(waiting) > _AHEAD * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            torch.set_num_threads(threads)


@contextmanager
def restored(model: Any) -> Iterator[None]:
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


def settings_probs(
    model: Any, outputs: Outputs, vocabulary: Vocabulary, settings: Sequence[Values]
) -> Tensor:
    """(n, Q, K) weighted probabilities of an image without the background, one for each setting.

    They are `model.weighted_probs(model.class_probs(...))`; what settings share is done once. The
    model's correction and ensemble are changed.

    Args:
        model: an `AlignZeg` model, whose corrector takes tensors that broadcast for its gamma and
            its threshold.
        outputs: of one image, see `CachedImage`.
        vocabulary: the K classes that it was looked at with.
        settings: n times threshold, gamma and the exponents for seen and for unseen classes.
    """
    corrector = model.head.corrector
    pairs: dict[tuple[float, float], int] = {}
    numbers = [pairs.setdefault(setting[:2], len(pairs)) for setting in settings]
    columns = torch.tensor(list(pairs), dtype=torch.float32, device=model.device)[..., None, None]
    for name, values in zip(("threshold", "gamma"), columns.unbind(1), strict=True):
        if hasattr(corrector, name):
            setattr(corrector, name, values)
    corrected = model.corrected_probs(outputs, vocabulary)
    corrected = corrected.expand(len(pairs), -1, -1)
    probs = corrected[numbers]
    exponents = torch.tensor([setting[2] for setting in settings], device=model.device)
    mixed = exponents.any(1)
    if mixed.any():
        model.ensemble = tuple(exponents[mixed].T[..., None, None])
        frozen = model.frozen_probs(outputs, vocabulary)
        probs[mixed] = model.ensembled(probs[mixed], frozen, vocabulary)
    masks = outputs.proposals[-1].mask_logits[0].float()
    return (probs * model.weighted_probs(masks.new_ones(len(masks), 1), masks))[..., :-1]


def nearest_first(points: NDArray) -> NDArray[np.intp]:
    """An order of (n, d) points in which those that follow each other are near, axis by axis.

    Each axis counts by the ranks of its values. The order is that of a Z-shaped curve: the bits of
    the ranks, interleaved.
    """
    ranks = np.stack([np.unique(axis, return_inverse=True)[1] for axis in points.T])
    sizes = np.maximum(ranks.max(axis=1), 1)[:, None]
    bits = 16
    scaled = ranks * (2**bits - 1) // sizes
    code = [
        (scaled[axis] >> bit) & 1 for bit in reversed(range(bits)) for axis in range(len(ranks))
    ]
    return np.lexsort(code[::-1])


def _parts(image: CachedImage, settings: int, classes: int) -> int:
    """Into how many parts the settings of an image are divided, to bound the memory."""
    queries = image.outputs.proposals[-1].mask_logits.shape[1]
    return min(settings, -(-settings * queries * classes // _MOST_NUMBERS))


def _distinct(probs: Tensor) -> tuple[list[int], list[int]]:
    """For each of (n, Q, K) the number of its value among the distinct, and where those are."""
    places: dict[bytes, int] = {}
    numbers: list[int] = []
    firsts: list[int] = []
    for place, row in enumerate(probs.cpu().numpy()):
        number = places.setdefault(row.tobytes(), len(places))
        if number == len(firsts):
            firsts.append(place)
        numbers.append(number)
    return numbers, firsts


def _counts(model: Any, image: CachedImage, probs: Tensor) -> LabelCounts:
    """Counts of n label maps, at the size of the truth."""
    masks = image.outputs.proposals[-1].mask_logits[0]
    opts = model.inference_opts
    truth = torch.from_numpy(image.truth.astype(np.int32)).to(masks.device)
    if opts["mode"] == "exact" and not opts["reject_below"]:
        return count_labels(probs, masks, truth, image.padded_size, image.image_size)
    classes = probs.shape[2]
    matrices = np.zeros((len(probs), classes, classes + 1), np.int64)
    sizes = (image.padded_size, image.image_size, image.truth.shape)
    for matrix, setting in zip(matrices, probs, strict=True):
        labels = semantic_inference(setting, masks, *sizes, **opts)
        matrix += confusion(image.truth, labels.cpu().numpy(), classes)
    found = torch.from_numpy(matrices)
    right, named = found.diagonal(dim1=1, dim2=2), found[:, :, :classes].sum(1)
    return LabelCounts(right, named, found[0].sum(1))
