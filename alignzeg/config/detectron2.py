"""The values that Detectron2's own keys may have here; their defaults and meanings are its own."""

from __future__ import annotations

from collections.abc import Mapping

from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY

from alignzeg.config.keys import COUNT, LEAST_0, POSITIVE, SHARE, Choices, Range

# More loading workers than this in one process is a typing error.
MOST_WORKERS = 512

DETECTRON2_VALUES: Mapping[str, Range | Choices] = {
    "MODEL.META_ARCHITECTURE": Choices(META_ARCH_REGISTRY),
    "MODEL.BACKBONE.NAME": Choices(BACKBONE_REGISTRY),
    "MODEL.FPN.OUT_CHANNELS": COUNT,
    "MODEL.PIXEL_MEAN": Range(-1e6, 1e6, length=3),
    "MODEL.PIXEL_STD": Range(above=True, length=3),
    "INPUT.MAX_SIZE_TRAIN": COUNT,
    "INPUT.MAX_SIZE_TEST": COUNT,
    "INPUT.MIN_SIZE_TRAIN": Range(0, length=0, whole=True),
    "INPUT.MIN_SIZE_TEST": LEAST_0,
    "DATALOADER.NUM_WORKERS": Range(0, MOST_WORKERS),
    "SOLVER.MAX_ITER": COUNT,
    "SOLVER.IMS_PER_BATCH": COUNT,
    "SOLVER.CHECKPOINT_PERIOD": COUNT,
    "SOLVER.BASE_LR": POSITIVE,
    "SOLVER.LR_SCHEDULER_NAME": Choices(
        ("WarmupPolyLR", "WarmupCosineLR", "WarmupMultiStepLR", "WarmupStepWithFixedGammaLR")
    ),
    "SOLVER.STEPS": Range(1, length=0, whole=True),
    "SOLVER.WEIGHT_DECAY": LEAST_0,
    "SOLVER.WEIGHT_DECAY_NORM": LEAST_0,
    "SOLVER.MOMENTUM": SHARE,
    "SOLVER.WARMUP_ITERS": LEAST_0,
    "SOLVER.WARMUP_FACTOR": SHARE,
    "SOLVER.POLY_LR_POWER": LEAST_0,
    "SOLVER.REFERENCE_WORLD_SIZE": LEAST_0,
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": LEAST_0,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": POSITIVE,
    "TEST.EVAL_PERIOD": LEAST_0,
    # NumPy's generator takes no larger seed.
    "SEED": Range(-(2**31), 2**32 - 1025),
}
# These matter to a training alone, and another kind of evaluation may leave them as they are.
TRAINING_VALUES: Mapping[str, Choices] = {
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": Choices(("full_model", "norm", "value")),
    "DATALOADER.SAMPLER_TRAIN": Choices(("TrainingSampler",)),
}
