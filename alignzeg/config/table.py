"""The table of every config key of this project."""

from __future__ import annotations

from alignzeg.config import data_keys, generative_keys, loss_keys, model_keys, run_keys
from alignzeg.config.keys import Choices, Key, Section
from alignzeg.registries import CRITERION_REGISTRY

ALIGNZEG = Section(
    "All keys of this project.",
    {
        "PLUGINS": Key(
            [], "Python files with components of your own, imported before the model is built."
        ),
        "CRITERIA": Key(
            ["MaskCriterion", "ClassCriterion"],
            "Loss families, by registered name.",
            Choices(CRITERION_REGISTRY),
        ),
        "VLM": model_keys.VLM,
        "ENCODER": model_keys.ENCODER,
        "HEAD": model_keys.HEAD,
        "EXTRACTOR": model_keys.EXTRACTOR,
        "CLASSIFIER": model_keys.CLASSIFIER,
        "SYNTHESIZER": model_keys.SYNTHESIZER,
        "CORRECTOR": model_keys.CORRECTOR,
        "MATCHER": loss_keys.MATCHER,
        "LOSS": loss_keys.LOSS,
        "SEMANTICS": generative_keys.SEMANTICS,
        "GENERATOR": generative_keys.GENERATOR,
        "RECURSION": generative_keys.RECURSION,
        "DATA": data_keys.DATA,
        "TEST": run_keys.TEST,
        "SOLVER": run_keys.SOLVER,
        "CHECKPOINT": run_keys.CHECKPOINT,
        "TRACK": run_keys.TRACK,
    },
)
