"""The trainer: Detectron2's, with this project's data, optimizer, step and checkpoints."""

from __future__ import annotations

import logging
import os
import sys
import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import nn

from alignzeg.data.fingerprint import data_hash, fingerprint
from alignzeg.data.labels import eval_vocabulary, training_vocabulary, without_hidden
from alignzeg.data.mapper import ZeroShotMapper
from alignzeg.data.worker_registration import Carrying
from alignzeg.engine.checkpoints.checkpoint import AlignZegCheckpointer
from alignzeg.engine.checkpoints.state import set_rng_state
from alignzeg.engine.failures.crash import write_bundle
from alignzeg.engine.failures.finite import naming_images
from alignzeg.engine.processes import peer_monitor
from alignzeg.engine.processes.process_exit import StopRequest
from alignzeg.engine.records.provenance import made_by
from alignzeg.engine.records.tracking import build_tracking
from alignzeg.engine.solver.optim import build_lr_scheduler, build_optimizer
from alignzeg.engine.training import resume as resuming
from alignzeg.engine.training.hooks import EvaluationHook, LossCurve, SaveHook, build_keep_best
from alignzeg.engine.training.sampling import TrainLoader, start_worker
from alignzeg.engine.training.step import StepTrainer
from alignzeg.evaluation import ZeroShotEvaluator
from alignzeg.registries import TRAINER_REGISTRY

logger = logging.getLogger(__name__)


def training_records(cfg: CfgNode) -> Sequence[Mapping[str, Any]]:
    """The training images of a config, one record each."""
    records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
    if not cfg.ALIGNZEG.DATA.SKIP_UNSEEN_IMAGES:
        return records
    kept = without_hidden(records, training_vocabulary(cfg))
    logger.info("%d of %d training images show seen classes only", len(kept), len(records))
    return kept


def build_step_trainer(
    cfg: CfgNode, model: nn.Module, loader: Iterable[Any], optimizer: torch.optim.Optimizer
) -> StepTrainer:
    """The training step that the config asks for."""
    amp = getattr(torch, cfg.ALIGNZEG.SOLVER.AMP_DTYPE) if cfg.SOLVER.AMP.ENABLED else None
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
        max_skipped=cfg.ALIGNZEG.SOLVER.MAX_SKIPPED_STEPS,
        write_crash=partial(write_bundle, os.path.join(cfg.OUTPUT_DIR, "crash"), cfg.dump()),
    )


def build_parallel_model(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """The model, wrapped if there are several processes.

    After its first step PyTorch sorts gradients anew for their exchange, unless it looks for unused
    parameters. From three processes on, the order of a sum depends on the place, so that the first
    step after a resume would differ in the last bits.
    """
    find = cfg.ALIGNZEG.SOLVER.FIND_UNUSED_PARAMETERS or comm.get_world_size() > 2
    ids = [comm.get_local_rank()] if cfg.MODEL.DEVICE.startswith("cuda") else None
    return create_ddp_model(
        model, broadcast_buffers=False, find_unused_parameters=find, device_ids=ids
    )


@TRAINER_REGISTRY.register()
class Trainer(DefaultTrainer):
    """Trains and evaluates whatever MODEL.META_ARCHITECTURE names.

    A checkpoint, every SOLVER.CHECKPOINT_PERIOD steps and when the process is asked to stop by
    SIGTERM or SIGUSR1, holds all that decides how the run goes on. Hooks do the rest: learning
    rate, evaluation every TEST.EVAL_PERIOD, and the log, `metrics.json` and TensorBoard in
    OUTPUT_DIR. The config is a validated one.
    """

    build_optimizer = staticmethod(build_optimizer)
    build_lr_scheduler = staticmethod(build_lr_scheduler)

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        self.cfg = cfg
        loader = self.build_train_loader(cfg)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self._trainer = build_step_trainer(cfg, build_parallel_model(cfg, model), loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = AlignZegCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            config=cfg.dump(),
            keep=cfg.ALIGNZEG.CHECKPOINT.KEEP,
            of_rank=lambda: resuming.rank_state(loader),
            trainer=weakref.proxy(self),
        )
        # Of the training data; known to the first process.
        self.fingerprints = fingerprint(cfg.DATASETS.TRAIN) if comm.is_main_process() else {}
        self.checkpointer.about["data"] = comm.all_gather(data_hash(self.fingerprints))[0]
        self.stop = StopRequest(cfg.ALIGNZEG.CHECKPOINT.GRACE)
        self._rng: Mapping[str, Any] | None = None
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's, with our own for saving and evaluating, and one for the exact losses."""
        replaced = (type(None), hooks.PeriodicCheckpointer, hooks.EvalHook)
        theirs = [hook for hook in super().build_hooks() if not isinstance(hook, replaced)]
        writers = [hook for hook in theirs if isinstance(hook, hooks.PeriodicWriter)]
        best = build_keep_best(self.cfg, self.checkpointer)
        return [
            *(hook for hook in theirs if hook not in writers),
            *([LossCurve(self.cfg.OUTPUT_DIR)] if comm.is_main_process() else []),
            SaveHook(self.checkpointer, self.cfg.SOLVER.CHECKPOINT_PERIOD, self.stop),
            EvaluationHook(self.cfg.TEST.EVAL_PERIOD, self._test, self.stop, best),
            *writers,
            *build_tracking(self.cfg),
        ]

    def _test(self) -> dict[str, Any]:
        self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def resume_or_load(self, resume: bool = True, allow_rescale: bool = False) -> None:
        """Goes on from the last intact checkpoint in OUTPUT_DIR, or loads MODEL.WEIGHTS.

        Raises:
            ValueError: if none of the checkpoints is intact, or the model, the VLM, the classes,
                the training data or (unless allowed) the number of processes is another one;
                MODEL.WEIGHTS may be of other classes.
        """
        path = self.checkpointer.get_checkpoint_file() if resume else ""
        if not path:
            self.checkpointer.other_classes = True
            loaded = self.checkpointer.load(self.cfg.MODEL.WEIGHTS, checkpointables=[])
            resuming.report_other_classes(self.cfg, loaded)
            return
        # A weight that the file does not have would otherwise stay as it was drawn.
        self.checkpointer.strict = True
        loaded = self.checkpointer.load(path, checkpointables=[])
        now = {"trainer": self.state_dict(), "ranks": [resuming.rank_state(self.data_loader)]}
        resuming.check_kinds(path, loaded, now)
        config, data = self.checkpointer.config, self.checkpointer.about["data"]
        changes = resuming.check_resumable(path, loaded, config, data, allow_rescale)
        rates = resuming.Rates(self._trainer.optimizer, self.scheduler)
        try:
            self.load_state_dict(loaded["trainer"])
            rates.restore()
        except (LookupError, TypeError, RuntimeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"the state of the training in {path!r} does not fit this config "
                f"({type(error).__name__} {error}); resume with the config it was saved with"
            ) from error
        self.start_iter = self.iter + 1
        what = f"{len(changes)} config keys have changed:" if changes else "the config is unchanged"
        logger.info("resuming from %s at iteration %d; %s", path, self.start_iter, what)
        for change in changes:
            logger.warning("config changed: %s", change)
        ranks = loaded["ranks"]
        self._rng = resuming.restore_rank(self.data_loader, ranks, self.cfg.SEED, self.start_iter)

    def before_train(self) -> None:
        """Lets the hooks prepare; the random generators stand where the checkpoint says."""
        if self._rng is not None:
            set_rng_state(self._rng)
        super().before_train()
        if self._rng is not None:
            set_rng_state(self._rng)

    def after_train(self) -> None:
        """Lets the hooks finish; after a failure nothing is evaluated, and the others are told."""
        if self.iter >= self.max_iter:
            super().after_train()
            return
        error = sys.exc_info()[1]
        if error is not None:
            peer_monitor.end(error)
        for hook in self._hooks:
            if not isinstance(hook, hooks.EvalHook):
                hook.after_train()

    def train(self) -> dict[str, Any] | None:
        """Runs to the last step; SIGTERM and SIGUSR1 save and end it, see `SaveHook`."""
        with self.stop.listening():
            return super().train()

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model on its device; logs how many parameters it trains."""
        model = build_model(cfg)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        name = cfg.MODEL.META_ARCHITECTURE
        logger.info("%s with %.2f M trainable parameters", name, trained / 1e6)
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        """Endless batches of IMS_PER_BATCH / ACCUMULATE images over all processes."""
        batches = cfg.ALIGNZEG.SOLVER.ACCUMULATE * comm.get_world_size()
        return TrainLoader(
            training_records(cfg),
            ZeroShotMapper(cfg, True),
            images=cfg.SOLVER.IMS_PER_BATCH // batches,
            seed=comm.shared_random_seed(),
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
            workers=cfg.DATALOADER.NUM_WORKERS,
            group_by_shape=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        )

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[Any]:
        """Every image of a test set once, one at a time, split over the processes."""
        mapper = Carrying(ZeroShotMapper(cfg, False))
        loader = build_detection_test_loader(cfg, dataset_name, mapper=mapper)
        loader.worker_init_fn = start_worker
        return loader

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
        """Evaluates on every test set; an error says at which image."""
        if evaluators is None:
            evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
            known = made_by(cfg, model)
            for evaluator in evaluators:
                if isinstance(evaluator, ZeroShotEvaluator):
                    evaluator.made_by = known
        with naming_images(model):
            return super().test(cfg, model, evaluators)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """The evaluator of a test set, writing into OUTPUT_DIR/inference."""
        return ZeroShotEvaluator(
            dataset_name,
            eval_vocabulary(cfg, dataset_name),
            os.path.join(cfg.OUTPUT_DIR, "inference"),
            recall=cfg.ALIGNZEG.TEST.RECALL,
            hold_out=cfg.ALIGNZEG.DATA.HOLD_OUT,
            per_image=cfg.ALIGNZEG.TEST.SAVE_PER_IMAGE,
        )
