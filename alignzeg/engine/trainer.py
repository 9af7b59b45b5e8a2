"""The trainer: Detectron2's, with this project's data, optimizer, step and checkpoints."""

from __future__ import annotations

import argparse
import logging
import os
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, TrainerBase, default_setup
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from alignzeg.data.catalog import get_vocabulary
from alignzeg.data.mapper import ZeroShotMapper
from alignzeg.engine.checkpoint import AlignZegCheckpointer
from alignzeg.engine.optim import (
    AMP_DTYPES,
    StepTrainer,
    build_lr_scheduler,
    build_optimizer,
    scaled_lr,
)
from alignzeg.evaluation import ZeroShotEvaluator

logger = logging.getLogger(__name__)


def start_run(cfg: CfgNode, args: argparse.Namespace) -> CfgNode:
    """Starts logging, seeds every generator and writes the config into OUTPUT_DIR.

    To be called once in every process, after the processes have found each other. A SEED below 0
    is replaced by a random one, which is logged and saved like any other.

    Args:
        cfg: a valid config, not frozen.
        args: the command line, for the log.

    Returns:
        The same config, frozen.
    """
    if cfg.SEED < 0:
        cfg.SEED = comm.shared_random_seed()
    cfg.freeze()
    setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name="alignzeg", abbrev_name="alignzeg")
    logger.info(run_line(cfg, comm.get_world_size()))
    default_setup(cfg, args)
    return cfg


def run_line(cfg: CfgNode, world_size: int) -> str:
    """One line with what decides a training: batches, learning rate, device and seed."""
    total, accumulate = cfg.SOLVER.IMS_PER_BATCH, cfg.ALIGNZEG.SOLVER.ACCUMULATE
    reference = cfg.ALIGNZEG.SOLVER.REFERENCE_BATCH
    lr = scaled_lr(cfg.SOLVER.BASE_LR, total, reference)
    rule = f"BASE_LR {cfg.SOLVER.BASE_LR:g} for batch {reference}" if reference else "not scaled"
    device = cfg.MODEL.DEVICE
    if device == "cpu" and not torch.cuda.is_available():
        device = "cpu (no CUDA device is available)"
    return (
        f"total batch {total} = {world_size} processes x {total // (world_size * accumulate)} "
        f"images x {accumulate} accumulated; learning rate {lr:g} ({rule}); "
        f"device {device}; seed {cfg.SEED}"
    )


def build_step_trainer(
    cfg: CfgNode, model: nn.Module, loader: Iterable[Any], optimizer: torch.optim.Optimizer
) -> StepTrainer:
    """The training step that the config asks for."""
    amp = AMP_DTYPES[cfg.ALIGNZEG.SOLVER.AMP_DTYPE] if cfg.SOLVER.AMP.ENABLED else None
    if amp == torch.float16 and not cfg.MODEL.DEVICE.startswith("cuda"):
        logger.warning(
            "training in full precision: float16 needs CUDA. "
            "ALIGNZEG.SOLVER.AMP_DTYPE bfloat16 also works on a CPU"
        )
        amp = None
    clip = cfg.SOLVER.CLIP_GRADIENTS
    return StepTrainer(
        model,
        loader,
        optimizer,
        accumulate=cfg.ALIGNZEG.SOLVER.ACCUMULATE,
        images_per_step=cfg.SOLVER.IMS_PER_BATCH,
        clip_norm=clip.CLIP_VALUE if clip.ENABLED and clip.CLIP_TYPE == "full_model" else 0.0,
        amp_dtype=amp,
    )


def build_parallel_model(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """The model, wrapped if there are several processes."""
    return create_ddp_model(
        model,
        broadcast_buffers=False,
        find_unused_parameters=cfg.ALIGNZEG.SOLVER.FIND_UNUSED_PARAMETERS,
        device_ids=[comm.get_local_rank()] if cfg.MODEL.DEVICE.startswith("cuda") else None,
    )


class Trainer(DefaultTrainer):
    """Trains and evaluates whatever MODEL.META_ARCHITECTURE names.

    Detectron2's hooks do the rest: learning rate, checkpoints every SOLVER.CHECKPOINT_PERIOD,
    evaluation every TEST.EVAL_PERIOD, and the log, `metrics.json` and TensorBoard in OUTPUT_DIR.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Builds data, model and optimizer of a validated config."""
        TrainerBase.__init__(self)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        self.cfg = cfg
        loader = self.build_train_loader(cfg)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self._trainer = build_step_trainer(cfg, build_parallel_model(cfg, model), loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = AlignZegCheckpointer(
            model, cfg.OUTPUT_DIR, config=cfg.dump(), trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model on its device; logs how many parameters it trains."""
        model = build_model(cfg)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        logger.info(
            "%s with %.2f M trainable parameters", cfg.MODEL.META_ARCHITECTURE, trained / 1e6
        )
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """See `alignzeg.engine.optim.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """Detectron2's schedules and WarmupPolyLR."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[Any]:
        """Endless batches of IMS_PER_BATCH / ACCUMULATE images over all processes."""
        return build_detection_train_loader(
            cfg,
            mapper=ZeroShotMapper(cfg, True),
            total_batch_size=cfg.SOLVER.IMS_PER_BATCH // cfg.ALIGNZEG.SOLVER.ACCUMULATE,
        )

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[Any]:
        """Every image of a test set once, one at a time, split over the processes."""
        return build_detection_test_loader(cfg, dataset_name, mapper=ZeroShotMapper(cfg, False))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """The evaluator of a test set, writing into OUTPUT_DIR/inference."""
        hold_out = cfg.ALIGNZEG.DATA.HOLD_OUT
        return ZeroShotEvaluator(
            dataset_name,
            get_vocabulary(dataset_name, hold_out),
            os.path.join(cfg.OUTPUT_DIR, "inference"),
            recall=cfg.ALIGNZEG.TEST.RECALL,
            hold_out=hold_out,
            per_image=cfg.ALIGNZEG.TEST.SAVE_PER_IMAGE,
        )


def evaluate(cfg: CfgNode, *, resume: bool = False) -> dict[str, Any]:
    """Evaluates a checkpoint on every test set.

    Args:
        cfg: a validated config.
        resume: evaluate the last checkpoint in OUTPUT_DIR, if there is one, not MODEL.WEIGHTS.

    Returns:
        Results by task; empty in all processes but the first.
    """
    model = Trainer.build_model(cfg)
    checkpointer = AlignZegCheckpointer(model, cfg.OUTPUT_DIR, strict=True)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    return Trainer.test(cfg, model)


def train(cfg: CfgNode, *, resume: bool = False) -> dict[str, Any] | None:
    """Trains to SOLVER.MAX_ITER, from MODEL.WEIGHTS or, to resume, from the last checkpoint."""
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer.train()
