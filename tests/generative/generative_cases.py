"""Recursive training with a few steps."""

from __future__ import annotations

from helpers import CONFIGS

RECURSIVE = CONFIGS / "zeroshapes" / "transductive_recursive_generated.yaml"


SMALL = [
    *("ALIGNZEG.RECURSION.GENERATOR_STEPS", "3", "ALIGNZEG.RECURSION.CLASSIFIER_STEPS", "2"),
    *("ALIGNZEG.RECURSION.ROUNDS", "2", "ALIGNZEG.RECURSION.PSEUDO", "6"),
    *("ALIGNZEG.RECURSION.CONFIDENCE", "0.0", "ALIGNZEG.GENERATOR.SAMPLES", "4"),
    *("ALIGNZEG.GENERATOR.BANK", "32", "SOLVER.MAX_ITER", "15"),
    *("SOLVER.CHECKPOINT_PERIOD", "1", "TEST.EVAL_PERIOD", "5"),
]
