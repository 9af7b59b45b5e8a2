"""The trainer of generative methods: Trainer on features instead of images."""

from __future__ import annotations

import logging
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm

from alignzeg.engine.checkpoints.reading import read_checkpoint, seen_names
from alignzeg.engine.training.trainer import Trainer, training_records
from alignzeg.generative.feature_bank import FeatureLoader, build_feature_loader
from alignzeg.generative.recursion import Phase, build_schedule
from alignzeg.registries import TRAINER_REGISTRY
from alignzeg.structures import spelling

logger = logging.getLogger(__name__)


@TRAINER_REGISTRY.register()
class GenerativeTrainer(Trainer):
    """Trains a `GenerativeSegmenter` on features of its own frozen pixel network.

    Rounds are steps like any others: checkpoints, resume and evaluation are those of `Trainer`, and
    SOLVER.CHECKPOINT_PERIOD and TEST.EVAL_PERIOD of one round's steps save and evaluate each.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Builds data, model and optimizer of a validated config."""
        super().__init__(cfg)
        self.data_loader.model = self._trainer.inner_model
        self.schedule = build_schedule(cfg)

    @property
    def phase(self) -> Phase:
        """What the step that is being made is for."""
        return self.schedule.at(self.iter)

    def before_step(self) -> None:
        """Says which round begins, and who learns."""
        super().before_step()
        phase, before = self.phase, self.schedule.at(self.iter - 1)
        if self.iter == self.start_iter or phase.generator != before.generator:
            learner = "generator" if phase.generator else "classifier"
            logger.info("round %d of %d: the %s learns", phase.round, self.schedule.rounds, learner)

    def resume_or_load(self, resume: bool = True, allow_rescale: bool = False) -> None:
        """As `Trainer.resume_or_load`.

        Raises:
            ValueError: if there is nothing to resume and no trained pixel network to start from;
                see `load_pixel_network`.
        """
        if resume and self.checkpointer.has_checkpoint():
            super().resume_or_load(True, allow_rescale)
        else:
            load_pixel_network(self._trainer.inner_model, self.cfg.MODEL.WEIGHTS)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> FeatureLoader:  # type: ignore[override]
        """Endless batches of pixel features."""
        return build_feature_loader(
            cfg,
            training_records(cfg),
            seed=comm.shared_random_seed(),
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
        )


def load_pixel_network(model: Any, path: str) -> None:
    """Takes image encoder and decoder from a checkpoint; its classifier is not used.

    `model` is a `GenerativeSegmenter`. The other one may have been trained on fewer classes, but on
    none that is unseen here.

    Raises:
        ValueError: if there is no such file, it holds other parts, or it has seen an unseen class.
    """
    if not path:
        raise ValueError(
            "GenerativeSegmenter needs a trained pixel network: give MODEL.WEIGHTS the checkpoint "
            "of a PixelSegmenter that has not been trained on the unseen classes"
        )
    loaded = read_checkpoint(path)
    known = seen_names(loaded)
    words = {spelling(name) for name in known}
    leaked = sorted(name for name in model.names[len(model.seen) :] if spelling(name) in words)
    if leaked:
        raise ValueError(
            f"the pixel network in {path!r} was trained on {leaked}, which are unseen here; give "
            "MODEL.WEIGHTS one that has not seen them"
        )
    for name, part in (("backbone", model.backbone), ("branch.decoder", model.branch.decoder)):
        prefix = f"{name}."
        found = {
            key.removeprefix(prefix): value
            for key, value in loaded.get("model", {}).items()
            if key.startswith(prefix)
        }
        try:
            part.load_state_dict(found)
        except RuntimeError as error:
            raise ValueError(
                f"{path!r} does not hold the {name} of this config: "
                f"{' '.join(str(error).split())[:200]}; train a PixelSegmenter with the same "
                "encoder and MODEL.SEM_SEG_HEAD first"
            ) from error
    logger.info("pixel network from %s, trained on %d classes", path, len(known))
