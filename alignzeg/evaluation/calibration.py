"""Choosing the bias correction on pseudo-unseen classes, without looking at an unseen label.

A model is trained with some seen classes held out (`ALIGNZEG.DATA.HOLD_OUT: pseudo_unseen`). They
play the unseen ones in an evaluation of that model; the strength of the correction, and the share
of the frozen VLM, that serve them best are then used for the real unseen classes. The network runs
once per image; every setting is scored from the cached proposals.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from numpy.typing import NDArray

from alignzeg.data.custom import is_custom
from alignzeg.evaluation.cached_proposals import CachedImage
from alignzeg.evaluation.metrics import harmonic_mean
from alignzeg.evaluation.settings_counts import Values, count_settings
from alignzeg.structures import Vocabulary

if TYPE_CHECKING:
    from rich.table import Table

# Rows of the table, beside that of no correction.
_SHOWN = 5


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

    @property
    def scores(self) -> tuple[float | None, float | None, float | None]:
        """sIoU, uIoU and hIoU."""
        return self.seen_iou, self.unseen_iou, self.harmonic_iou

    def opts(self) -> str:
        """The setting as KEY VALUE pairs of the command line."""
        return (
            f"ALIGNZEG.CORRECTOR.GAMMA {self.gamma} "
            f"ALIGNZEG.CORRECTOR.THRESHOLD {self.threshold} "
            f"ALIGNZEG.TEST.ENSEMBLE_SEEN {self.seen_exponent} "
            f"ALIGNZEG.TEST.ENSEMBLE_UNSEEN {self.unseen_exponent}"
        )


def sweep(
    model: Any,
    cached: Iterable[CachedImage],
    vocabulary: Vocabulary,
    grid: Grid,
    also: Sequence[Values] = (),
) -> list[Setting]:
    """Scores every combination of a grid; the model's own values are restored.

    Args:
        model: an `AlignZeg` model.
        cached: from `iterate_proposals`.
        vocabulary: classes with the pseudo-unseen ones as unseen.
        grid: what to try.
        also: what to try beside it: threshold, gamma and the exponents for seen and unseen classes.

    Returns:
        One entry for each combination; thresholds vary slowest, then gammas, then the exponents.
        Those of `also` follow.

    Raises:
        ValueError: if the corrector has no gamma to choose and the grid no exponents.
    """
    settings = [*_settings(model, grid), *also]
    right, named, true = count_settings(model, cached, vocabulary, settings)
    scores = [_scores(*rows, true, vocabulary) for rows in zip(right, named, strict=True)]
    return [
        Setting(gamma, threshold, *exponents, *score)
        for (threshold, gamma, exponents), score in zip(settings, scores, strict=True)
    ]


def _settings(model: Any, grid: Grid) -> list[Values]:
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


def _scores(
    right: NDArray, named: NDArray, true: NDArray, vocabulary: Vocabulary
) -> tuple[float | None, float | None, float | None]:
    """sIoU, uIoU and hIoU in percent, as `metrics_from_confusion` has them."""
    seen = np.asarray(vocabulary.seen)
    iou = np.array(
        [
            100.0 * int(r) / max(1, int(t + n - r))
            for r, n, t in zip(right, named, true, strict=True)
        ]
    )
    groups = [iou[group & (true > 0)] for group in (seen, ~seen)]
    first, second = (float(values.mean()) if len(values) else None for values in groups)
    return first, second, harmonic_mean(first, second)


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


def config_text(config_file: str | Path, place: str | Path, dataset: str, chosen: Setting) -> str:
    """A YAML file at a place that is the config with a setting; it names the config relatively."""
    base = os.path.relpath(Path(config_file).absolute(), Path(place).absolute().parent)
    tree: dict[str, Any] = {"_BASE_": base}
    words = chosen.opts().split()
    for key, value in zip(words[::2], words[1::2], strict=True):
        *path, last = key.split(".")
        node = tree
        for name in path:
            node = node.setdefault(name, {})
        node[last] = float(value)
    about = f"# Chosen on pseudo-unseen classes of {dataset} by alignzeg calibrate.\n"
    return about + yaml.safe_dump(tree, sort_keys=False)


def table(settings: Iterable[Setting], uncorrected: Setting) -> Table:
    """No correction and the best settings; of those that score alike, the mildest."""
    from rich.table import Table

    shown = Table("percent", *("gamma", "theta", "a seen", "a unseen", "sIoU", "uIoU", "hIoU"))
    rows = [("no correction", uncorrected)]
    left = list(settings)
    while left and len(rows) <= _SHOWN:
        chosen = best(left)
        rows.append((f"{len(rows)}.", chosen))
        left = [other for other in left if other.scores != chosen.scores]
    for name, row in rows:
        values = (row.gamma, row.threshold, row.seen_exponent, row.unseen_exponent)
        scores = ("–" if score is None else f"{score:.2f}" for score in row.scores)
        shown.add_row(name, *(f"{value:g}" for value in values), *scores)
    return shown


def harmonic(setting: Setting) -> float:
    """The hIoU of a setting in percent; -1 where it is not defined."""
    return -1.0 if setting.harmonic_iou is None else setting.harmonic_iou


def default_dataset(cfg: CfgNode) -> str:
    """The data set that a config's correction is chosen on.

    Raises:
        ValueError: if the config names none that is meant for it.
    """
    (name, *others) = cfg.DATASETS.TEST or ("",)
    kept = f"{name.removesuffix('_val')}_calib"
    if not others and kept in DatasetCatalog:
        return kept
    if not others and name in DatasetCatalog and is_custom(name):
        return str(name)
    raise ValueError(
        f"DATASETS.TEST is {list(cfg.DATASETS.TEST)}, which keeps no data set to calibrate on, "
        f"such as {kept}; give --dataset, with pictures that are not those of the final test"
    )
