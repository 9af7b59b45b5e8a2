"""The values that a number in the config may have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode

from alignzeg.engine.settings.reading import flatten

# More loading workers than this in one process is a slip of the finger.
MOST_WORKERS = 512
# PyTorch takes no larger whole number.
MOST = 2**63 - 1
_A = "ALIGNZEG."


@dataclass(frozen=True)
class Range:
    """What a number, or every number of a list, must be.

    Attributes:
        low: smallest value.
        high: largest value.
        above: whether `low` itself is too small.
        length: of the list; None for a number, 0 for a list of any length but empty.
    """

    low: float = 0.0
    high: float = math.inf
    above: bool = False
    length: int | None = None

    def holds(self, value: Any) -> bool:
        """Whether a value is allowed; NaN and infinity never are."""
        if self.length is not None:
            if not isinstance(value, (list, tuple)):
                return False
            single = Range(self.low, self.high, self.above)
            fits = len(value) == self.length if self.length else len(value) > 0
            return fits and all(single.holds(item) for item in value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        low = value > self.low if self.above else value >= self.low
        return low and value <= self.high and not math.isinf(value)

    def __str__(self) -> str:
        """For the message."""
        text = f"more than {self.low:g}" if self.above else f"{self.low:g} or more"
        if not math.isinf(self.high):
            text = f"{'above ' if self.above else ''}{self.low:g} to {self.high:g}"
        if self.length is None:
            return text
        count = f"{self.length} numbers" if self.length else "numbers"
        return f"a list of {count}, each {text}"


def _all(names: Iterable[str], allowed: Range) -> dict[str, Range]:
    return dict.fromkeys(names, allowed)


COUNT, POSITIVE, SHARE, LEAST_0 = Range(1), Range(above=True), Range(0, 1), Range()
RANGES: Mapping[str, Range] = {
    **_all(
        (
            *(f"{_A}EXTRACTOR.{key}" for key in ("NUM_QUERIES", "HIDDEN_DIM", "LAYERS")),
            *(f"{_A}EXTRACTOR.{key}" for key in ("HEADS", "FFN_DIM")),
            f"{_A}CLASSIFIER.NUM_BACKGROUND",
            *(f"{_A}CORRECTOR.{key}" for key in ("HIDDEN_DIM", "TOP_COSINES")),
            *(f"{_A}GENERATOR.{key}" for key in ("HIDDEN_DIM", "SAMPLES", "BANK")),
            *(f"{_A}RECURSION.{key}_STEPS" for key in ("GENERATOR", "CLASSIFIER")),
            f"{_A}RECURSION.PSEUDO",
            *(f"{_A}LOSS.{key}" for key in ("OVERSAMPLE_RATIO", "RANK_PAIRS")),
            f"{_A}TEST.FOLD_MIB",
            f"{_A}SOLVER.ACCUMULATE",
            *("SOLVER.MAX_ITER", "SOLVER.IMS_PER_BATCH", "SOLVER.CHECKPOINT_PERIOD"),
            *("INPUT.MAX_SIZE_TRAIN", "INPUT.MAX_SIZE_TEST", "MODEL.FPN.OUT_CHANNELS"),
        ),
        COUNT,
    ),
    **_all(
        (
            f"{_A}CLASSIFIER.ADAPTER_DIM",
            *(f"{_A}MATCHER.{key}_COST" for key in ("CLASS", "MASK", "DICE")),
            *(f"{_A}LOSS.{key}_WEIGHT" for key in ("CLASS", "BACKGROUND", "MASK", "DICE")),
            *(f"{_A}LOSS.{key}_WEIGHT" for key in ("SYNTHETIC", "DIVERSITY", "INDICATOR")),
            *(f"{_A}LOSS.GENERATOR_WEIGHT", f"{_A}RECURSION.WEIGHT", f"{_A}RECURSION.ROUNDS"),
            *(f"{_A}LOSS.{key}" for key in ("NUM_POINTS", "COPY_IOU", "ENHANCE_WEIGHT")),
            *(f"{_A}LOSS.{key}" for key in ("ENHANCE_GAMMA", "RANK_WEIGHT", "RANK_SLOPE")),
            *(f"{_A}SOLVER.{key}" for key in ("REFERENCE_BATCH", "BACKBONE_MULTIPLIER")),
            *(f"{_A}SOLVER.{key}" for key in ("WEIGHT_DECAY_EMBED", "MAX_SKIPPED_STEPS")),
            *(f"{_A}CHECKPOINT.{key}" for key in ("KEEP", "GRACE")),
            *(f"{_A}VLM.{key}" for key in ("REGION_BLOCKS", "IMAGE_SIZE", "LOGIT_SCALE")),
            *(f"{_A}TEST.{key}" for key in ("COPY_IOU", "REJECT_BELOW")),
            *(f"{_A}{key}" for key in ("DATA.CROP_SIZE", "SYNTHESIZER.RATIO")),
            *("SOLVER.WEIGHT_DECAY", "SOLVER.WEIGHT_DECAY_NORM", "SOLVER.WARMUP_ITERS"),
            *("SOLVER.REFERENCE_WORLD_SIZE", "SOLVER.POLY_LR_POWER", "TEST.EVAL_PERIOD"),
            *("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "INPUT.MIN_SIZE_TEST"),
        ),
        LEAST_0,
    ),
    **_all(
        (
            *(f"{_A}LOSS.{key}" for key in ("IMPORTANCE_RATIO", "MIN_VALID_SHARE")),
            *(f"{_A}TEST.ENSEMBLE_{key}" for key in ("SEEN", "UNSEEN")),
            f"{_A}DATA.PSEUDO.WEIGHT",
            f"{_A}CORRECTOR.LEFT_OUT",
            *("SOLVER.WARMUP_FACTOR", "SOLVER.MOMENTUM", f"{_A}CORRECTOR.THRESHOLD"),
            *(f"{_A}LOSS.PIXEL_BALANCE", f"{_A}RECURSION.CONFIDENCE", f"{_A}GENERATOR.DROPOUT"),
        ),
        SHARE,
    ),
    f"{_A}DATA.OWN.IGNORE_LABEL": Range(-1, 65535),
    f"{_A}DATA.CROP_MAX_CLASS_SHARE": Range(0, 1, above=True),
    f"{_A}LOSS.DIVERSITY_MARGIN": Range(-1, 1),
    f"{_A}LOSS.ENHANCE_BIAS": Range(-1e6, 1e6),
    f"{_A}LOSS.RANK_MARGIN": Range(0, 2),
    f"{_A}CORRECTOR.GAMMA": Range(-1e6, 1e6),
    f"{_A}SYNTHESIZER.ALPHA": POSITIVE,
    f"{_A}VLM.RIDGE": POSITIVE,
    f"{_A}SYNTHESIZER.RANGE": Range(0, 1, length=2),
    f"{_A}GENERATOR.BANDWIDTHS": Range(above=True, length=0),
    f"{_A}ENCODER.SMALL_CHANNELS": Range(1, length=4),
    "SOLVER.BASE_LR": POSITIVE,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": POSITIVE,
    "SOLVER.STEPS": Range(1, length=0),
    "INPUT.MIN_SIZE_TRAIN": Range(0, length=0),
    "MODEL.PIXEL_MEAN": Range(-1e6, 1e6, length=3),
    "MODEL.PIXEL_STD": Range(above=True, length=3),
    "DATALOADER.NUM_WORKERS": Range(0, MOST_WORKERS),
    # NumPy's generator takes no larger seed.
    "SEED": Range(-(2**31), 2**32 - 1025),
}
# Lists whose numbers are counted in something that has no halves.
WHOLE = (f"{_A}ENCODER.SMALL_CHANNELS", "INPUT.MIN_SIZE_TRAIN", "SOLVER.STEPS")


def validate_ranges(cfg: CfgNode) -> None:
    """Refuses numbers that cannot be meant.

    Raises:
        ValueError: naming the first key that is wrong, its value and what it may be.
    """
    values = dict(flatten(cfg))
    for key, value in values.items():
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, int) and abs(item) > MOST:
                raise ValueError(f"{key} is {value!r}; no whole number may be beyond {MOST}")
    for key, allowed in RANGES.items():
        value = values[key]
        if key == "SOLVER.STEPS" and cfg.SOLVER.LR_SCHEDULER_NAME != "WarmupMultiStepLR":
            continue
        if not allowed.holds(value):
            raise ValueError(f"{key} is {value!r}; it must be {allowed}")
        if key in WHOLE and any(item != int(item) for item in value):
            raise ValueError(f"{key} is {value!r}; its numbers must be whole")
    extractor = cfg.ALIGNZEG.EXTRACTOR
    if extractor.HIDDEN_DIM % extractor.HEADS:
        raise ValueError(
            f"ALIGNZEG.EXTRACTOR.HIDDEN_DIM is {extractor.HIDDEN_DIM}; it must be a multiple of "
            f"ALIGNZEG.EXTRACTOR.HEADS {extractor.HEADS}"
        )
    low, high = cfg.ALIGNZEG.SYNTHESIZER.RANGE
    if low > high:
        raise ValueError(f"ALIGNZEG.SYNTHESIZER.RANGE is [{low}, {high}]; the smaller comes first")
