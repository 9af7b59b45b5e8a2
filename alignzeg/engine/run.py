"""What a command does with a config: train, or evaluate."""

from __future__ import annotations

import logging
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm

from alignzeg.data.lint import validate_names
from alignzeg.engine.checkpoints.checkpoint import AlignZegCheckpointer
from alignzeg.engine.records.provenance import record_run
from alignzeg.engine.settings import advice
from alignzeg.engine.training.trainer import Trainer
from alignzeg.registries import TRAINER_REGISTRY, find

logger = logging.getLogger(__name__)


def trainer_of(cfg: CfgNode) -> type[Trainer]:
    """The trainer for MODEL.META_ARCHITECTURE; see TRAINER_REGISTRY."""
    architecture = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    return find(TRAINER_REGISTRY, str(getattr(architecture, "TRAINER", Trainer.__name__)))


def evaluate(cfg: CfgNode, *, resume: bool = False, trust_pickle: bool = False) -> dict[str, Any]:
    """Evaluates a checkpoint on every test set.

    If resumed, the last checkpoint in OUTPUT_DIR, if there is one, takes the place of
    MODEL.WEIGHTS, which `trust_pickle` reads even if it is a pickle from anywhere.

    Returns:
        Results by task; empty in all processes but the first.
    """
    model = Trainer.build_model(cfg)
    checkpointer = AlignZegCheckpointer(
        model, cfg.OUTPUT_DIR, strict=True, trust_pickle=trust_pickle
    )
    path = checkpointer.get_checkpoint_file() if resume else ""
    checkpointer.load(path or cfg.MODEL.WEIGHTS, checkpointables=[])
    if comm.is_main_process():
        validate_names(cfg, model)
    record_run(cfg, model, action="evaluate")
    return Trainer.test(cfg, model)


def train(
    cfg: CfgNode, *, resume: bool = False, allow_rescale: bool = False, trust_pickle: bool = False
) -> dict[str, Any] | None:
    """Trains to SOLVER.MAX_ITER, from MODEL.WEIGHTS or, to resume, from the last checkpoint.

    `allow_rescale` goes on also with another number of processes; `trust_pickle` reads
    MODEL.WEIGHTS even if it is a pickle from anywhere.
    """
    trainer = trainer_of(cfg)(cfg)
    trainer.checkpointer.trust_pickle = trust_pickle
    trainer.resume_or_load(resume=resume, allow_rescale=allow_rescale)
    if comm.is_main_process():
        for line in advice(cfg):
            logger.warning("%s", line)
        validate_names(cfg, trainer._trainer.inner_model)
    first = trainer.start_iter
    record_run(cfg, trainer.model, action="train", iteration=first, resumed=resume and first > 0)
    return trainer.train()
