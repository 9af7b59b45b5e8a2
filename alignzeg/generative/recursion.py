"""When the generator learns, when the classifier does, and what each learns from the other."""

from __future__ import annotations

from dataclasses import dataclass

from detectron2.config import CfgNode


@dataclass(frozen=True)
class Feedback:
    """What becomes of the features that the classifier is sure of.

    Attributes:
        weight: of the ZS-MMD, kappa.
        confidence: probability above which a feature of an unseen class becomes a pseudo-feature.
        count: P, pseudo-features of each unseen class, at most.
        source: "generated" for features of the generator, "pixels" for those of unlabelled pixels
            of the training images.
        use: "zs_mmd" teaches the generator, "self_training" the classifier, "both" both.
    """

    weight: float
    confidence: float
    count: int
    source: str
    use: str = "zs_mmd"


@dataclass(frozen=True)
class Phase:
    """What one step is for.

    Attributes:
        round: 0 is ZS3Net; in later rounds the generator also learns from the classifier.
        generator: whether the generator learns; else the classifier.
        first: whether it is the round's first step.
    """

    round: int
    generator: bool
    first: bool


@dataclass(frozen=True)
class Schedule:
    """Rounds of generator steps, each followed by classifier steps.

    Attributes:
        rounds: R, those after round 0; with 0 it is ZS3Net's schedule.
        generator_steps: in each round, at least 1.
        classifier_steps: likewise.

    Source: arXiv 2103.00086; as a step counter, ours.
    """

    rounds: int
    generator_steps: int
    classifier_steps: int

    @property
    def round_steps(self) -> int:
        """Steps of one round."""
        return self.generator_steps + self.classifier_steps

    @property
    def steps(self) -> int:
        """Steps of all rounds."""
        return (self.rounds + 1) * self.round_steps

    def at(self, step: int) -> Phase:
        """The phase of a step, counted from 0; steps beyond the last belong to later rounds."""
        place = step % self.round_steps
        return Phase(step // self.round_steps, place < self.generator_steps, place == 0)


def build_schedule(cfg: CfgNode) -> Schedule:
    """ALIGNZEG.RECURSION's rounds.

    Raises:
        ValueError: if SOLVER.MAX_ITER is another number of steps.
    """
    node = cfg.ALIGNZEG.RECURSION
    schedule = Schedule(node.ROUNDS, node.GENERATOR_STEPS, node.CLASSIFIER_STEPS)
    if cfg.SOLVER.MAX_ITER != schedule.steps:
        raise ValueError(
            f"SOLVER.MAX_ITER is {cfg.SOLVER.MAX_ITER}, but round 0 and ALIGNZEG.RECURSION.ROUNDS "
            f"{node.ROUNDS} of {node.GENERATOR_STEPS} + {node.CLASSIFIER_STEPS} steps take "
            f"{schedule.steps}; set it to that"
        )
    return schedule
