"""How sure sIoU, uIoU and hIoU are: resampling the images of an evaluation.

An IoU over a data set is a ratio of sums over its images, not a mean of values per image. Both
methods here therefore resample *images*, sum their counts anew and compute the ratio again. SciPy's
`bootstrap` and `permutation_test` do that when given image numbers instead of values.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignzeg.evaluation.per_image import PerImage

FIGURES = ("sIoU", "uIoU", "hIoU")
# Numbers held at a time while resampling: images x resamples.
_BATCH_CELLS = 4_000_000
# Share of resamples that may miss a group of classes altogether.
_RARE = 0.02


@dataclass(frozen=True)
class Interval:
    """A figure in percent and its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """One figure of two evaluations of the same images, in percent.

    Attributes:
        first: of the first evaluation.
        second: of the second.
        difference: second minus first, with the interval of the paired bootstrap.
        p_value: of the paired permutation test, two-sided: how often as large a difference comes
            about if it is random which of the two models made each image's prediction.
    """

    first: float
    second: float
    difference: Interval
    p_value: float


def group_ious(counts: NDArray[np.float64], seen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The figures of many confusion matrices at once, by the rules of `metrics_from_confusion`.

    Args:
        counts: (..., 3, K) correct, true and predicted pixels.
        seen: (K,) bool.

    Returns:
        (..., 3) sIoU, uIoU and hIoU in percent; NaN where a group has no true pixel.
    """
    hit, true, predicted = np.moveaxis(counts, -2, 0)
    present = true > 0
    iou = np.where(present, hit / np.maximum(true + predicted - hit, 1), 0.0)
    groups = []
    for group in (seen, ~seen):
        number = (present & group).sum(-1)
        with np.errstate(invalid="ignore"):
            groups.append(100.0 * (iou * group).sum(-1) / np.where(number, number, np.nan))
    s, u = groups
    total = s + u
    harmonic = np.where(total == 0, 0.0, 2 * s * u / np.where(total == 0, 1.0, total))
    return np.stack([s, u, harmonic], -1)


def resampled_counts(table: NDArray[np.float64], picks: NDArray[np.integer]) -> NDArray[np.float64]:
    """Sums the counts of the picked images: (N, 3, K) table, (..., n) row numbers -> (..., 3, K).

    Done as a product with how often each image was picked, which needs no copy of the table.
    """
    flat = picks.reshape(-1, picks.shape[-1]).astype(np.int64)
    offsets = np.arange(len(flat))[:, None] * len(table)
    weights = np.bincount((flat + offsets).ravel(), minlength=len(flat) * len(table))
    sums = weights.reshape(len(flat), len(table)).astype(np.float64) @ table.reshape(len(table), -1)
    return sums.reshape(*picks.shape[:-1], *table.shape[1:])


def intervals(
    evaluation: PerImage, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> dict[str, Interval]:
    """Bootstrap intervals (BCa) of the figures over images.

    Args:
        evaluation: of N images.
        level: confidence level in (0, 1).
        resamples: how often N images are drawn with replacement.
        seed: of the drawing; the same seed gives the same interval.

    Returns:
        Figure -> interval; a figure that is not defined on these images is left out.

    Raises:
        ValueError: with fewer than two images, or when a group of classes is so rare that some
            resamples have none of its pixels.

    Source: B. Efron, Better bootstrap confidence intervals, JASA 82 (1987).
    """
    table, seen = evaluation.class_counts(), np.array(evaluation.seen)
    return _bootstrap(
        lambda picks: group_ious(resampled_counts(table, picks), seen),
        len(table),
        {"level": level, "resamples": resamples, "seed": seed},
    )


def compare(
    first: PerImage,
    second: PerImage,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    permutations: int = 9999,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Paired comparison of two evaluations of the same images.

    `level`, `resamples` and `seed` as in `intervals`. The test uses all 2^N permutations where
    these are not more than `permutations`.

    Raises:
        ValueError: if the images, the classes or the true pixels of the two differ; otherwise as
            `intervals`.
    """
    _check_pair(first, second)
    seen, n = np.array(first.seen), len(first.images)
    tables = first.class_counts(), second.class_counts()
    both = np.concatenate(tables)

    def figures(picks: NDArray[np.integer]) -> NDArray[np.float64]:
        return group_ious(resampled_counts(both, picks), seen)

    def gain(picks: NDArray[np.integer]) -> NDArray[np.float64]:
        return figures(picks + n) - figures(picks)

    values = [group_ious(table.sum(0), seen) for table in tables]
    spans = _bootstrap(gain, n, {"level": level, "resamples": resamples, "seed": seed})
    result = {}
    for column, name in enumerate(FIGURES):
        if name in spans:
            p_value = _permutation(_gain_of(figures, column), n, permutations, seed)
            first_value, second_value = (float(value[column]) for value in values)
            result[name] = Comparison(first_value, second_value, spans[name], p_value)
    return result


def _gain_of(
    figures: Callable[[NDArray[np.integer]], NDArray[np.float64]], column: int
) -> Callable[..., NDArray[np.float64]]:
    """Second minus first of one figure, as a statistic for SciPy: rows of two samples."""

    def statistic(a: NDArray, b: NDArray, axis: int = -1) -> NDArray:
        a, b = np.moveaxis(a, axis, -1), np.moveaxis(b, axis, -1)
        return figures(b)[..., column] - figures(a)[..., column]

    return statistic


def _permutation(
    statistic: Callable[..., NDArray[np.float64]], n: int, permutations: int, seed: int
) -> float:
    """The p-value of swapping, image by image, rows 0..n-1 with rows n..2n-1."""
    # Two seconds of importing, which no training has to wait for.
    from scipy import stats

    test = stats.permutation_test(
        (np.arange(n), np.arange(n) + n),
        statistic,
        permutation_type="samples",
        vectorized=True,
        n_resamples=permutations,
        batch=max(1, _BATCH_CELLS // (2 * n)),
        axis=-1,
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def _bootstrap(
    figures: Callable[[NDArray[np.integer]], NDArray[np.float64]], n: int, how: dict[str, Any]
) -> dict[str, Interval]:
    """Intervals of (..., 3) figures that are functions of the (..., n) images drawn."""
    from scipy import stats

    if n < 2:
        raise ValueError(f"an interval over images needs at least two of them; this has {n}")
    values = figures(np.arange(n))
    result = {}
    for column, name in enumerate(FIGURES):
        if np.isnan(values[column]):
            continue

        def statistic(picks: NDArray, axis: int = -1, column: int = column) -> NDArray:
            return figures(np.moveaxis(picks, axis, -1))[..., column]

        # Where every image has the same ratios there is nothing to resample, and BCa divides by 0.
        with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            found = stats.bootstrap(
                (np.arange(n),),
                statistic,
                n_resamples=how["resamples"],
                batch=max(1, _BATCH_CELLS // n),
                vectorized=True,
                axis=-1,
                confidence_level=how["level"],
                method="BCa",
                rng=np.random.default_rng(how["seed"]),
            )
        drawn = found.bootstrap_distribution
        undefined = np.isnan(drawn)
        if undefined.mean() > _RARE:
            raise ValueError(
                f"{name} is undefined in {100 * undefined.mean():.0f} % of the resamples: too few "
                "images hold pixels of a group of classes; evaluate more images"
            )
        drawn = drawn[~undefined]
        low, high = found.confidence_interval
        if np.ptp(drawn) < 1e-9:
            low = high = values[column]
        elif np.isnan(low) or np.isnan(high):
            # BCa is undefined too; the plain percentiles of the others are not.
            low, high = np.quantile(drawn, [(1 - how["level"]) / 2, (1 + how["level"]) / 2])
        result[name] = Interval(float(values[column]), float(low), float(high))
    return result


def _check_pair(first: PerImage, second: PerImage) -> None:
    for what in ("classes", "seen", "images"):
        ours, theirs = getattr(first, what), getattr(second, what)
        if ours != theirs:
            differ = next(
                (pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]),
                (f"{len(ours)} {what}", f"{len(theirs)}"),
            )
            raise ValueError(
                f"the two evaluations differ in their {what}: {differ[0]!r} and {differ[1]!r}; "
                "evaluate both on the same data set"
            )
    if not np.array_equal(first.class_counts()[:, 1], second.class_counts()[:, 1]):
        raise ValueError(
            "the two evaluations differ in the true pixels of some image; evaluate both on the "
            "same labels"
        )
