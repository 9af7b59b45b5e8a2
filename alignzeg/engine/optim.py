"""Optimizer, learning rate and the training step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.layers.batch_norm import LayerNorm as ChannelLayerNorm
from detectron2.projects.deeplab import build_lr_scheduler as build_detectron2_lr_scheduler
from detectron2.solver import LRMultiplier, LRScheduler, WarmupParamScheduler
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils.events import get_event_storage
from fvcore.common.param_scheduler import PolynomialDecayParamScheduler
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from alignzeg.engine.muon import MuonWithAdamW

__all__ = [
    "AMP_DTYPES",
    "LR_SCHEDULERS",
    "OPTIMIZERS",
    "StepTrainer",
    "build_lr_scheduler",
    "build_optimizer",
    "parameter_groups",
    "scaled_lr",
]

AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
LR_SCHEDULERS = [
    "WarmupPolyLR",
    "WarmupCosineLR",
    "WarmupMultiStepLR",
    "WarmupStepWithFixedGammaLR",
]
OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
    "AdamW": torch.optim.AdamW,
    "Muon": MuonWithAdamW,
}
NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
    ChannelLayerNorm,
)
# The layers whose matrices are meant to shrink; every other tensor of more than one dimension is
# a learned table (queries, prototypes, position encodings).
MATRICES = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.MultiheadAttention)


def scaled_lr(base_lr: float, batch: int, reference_batch: int) -> float:
    """The learning rate of a total batch, by the linear rule.

    Args:
        base_lr: learning rate meant for `reference_batch`.
        batch: images per optimizer step, over all processes and accumulated batches.
        reference_batch: images; 0 leaves the learning rate alone.

    Source: arXiv:1706.02677.
    """
    return base_lr * batch / reference_batch if reference_batch else base_lr


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    backbone_multiplier: float,
    weight_decay: float,
    weight_decay_norm: float = 0.0,
    weight_decay_bias: float = 0.0,
    weight_decay_embed: float = 0.0,
) -> list[dict[str, Any]]:
    """Splits trainable parameters by learning rate and weight decay, by the type of their module.

    Args:
        model: its attribute `backbone`, if any, is the image encoder.
        lr: learning rate of everything but the image encoder.
        backbone_multiplier: learning rate of the image encoder, relative to `lr`.
        weight_decay: of the matrices of linear, convolution and attention layers.
        weight_decay_norm: of normalisation layers.
        weight_decay_bias: of biases and other vectors and scalars.
        weight_decay_embed: of embedding tables and of parameters that a module owns directly.

    Returns:
        Groups with "params", "lr", "weight_decay" and "matrix", whether the parameters are the
        matrices that shrink; each trainable parameter occurs once.
    """
    backbone = getattr(model, "backbone", None)
    encoder = {id(p) for p in backbone.parameters()} if isinstance(backbone, nn.Module) else set()
    done: set[int] = set()
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in done:
                continue
            done.add(id(parameter))
            matrix = parameter.ndim >= 2 and isinstance(module, MATRICES)
            if isinstance(module, NORMS):
                decay = weight_decay_norm
            elif parameter.ndim < 2:
                decay = weight_decay_bias
            else:
                decay = weight_decay if matrix else weight_decay_embed
            rate = lr * (backbone_multiplier if id(parameter) in encoder else 1.0)
            groups.setdefault((rate, decay, matrix), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay, "matrix": matrix}
        for (rate, decay, matrix), parameters in groups.items()
    ]


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """ALIGNZEG.SOLVER.OPTIMIZER over `parameter_groups`; clipping of tensors is added here.

    Clipping of the whole model (CLIP_TYPE full_model) is part of `StepTrainer`.

    Raises:
        ValueError: if the model has nothing to train.
    """
    solver = cfg.SOLVER
    lr = scaled_lr(solver.BASE_LR, solver.IMS_PER_BATCH, cfg.ALIGNZEG.SOLVER.REFERENCE_BATCH)
    groups = parameter_groups(
        model,
        lr=lr,
        backbone_multiplier=cfg.ALIGNZEG.SOLVER.BACKBONE_MULTIPLIER,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS or 0.0,
        weight_decay_embed=cfg.ALIGNZEG.SOLVER.WEIGHT_DECAY_EMBED,
    )
    if not groups:
        raise ValueError(f"{cfg.MODEL.META_ARCHITECTURE} has no trainable parameter")
    optimizer = OPTIMIZERS[cfg.ALIGNZEG.SOLVER.OPTIMIZER](groups)
    if solver.CLIP_GRADIENTS.CLIP_TYPE == "full_model":
        return optimizer
    return maybe_add_gradient_clipping(cfg, optimizer)


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Detectron2's schedules; WarmupPolyLR takes MAX_ITER from the config, also in a resumed run.

    That of Detectron2's DeepLab project would take it from the checkpoint. It is used only where
    POLY_LR_CONSTANT_ENDING asks for it.
    """
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME != "WarmupPolyLR" or solver.POLY_LR_CONSTANT_ENDING:
        return build_detectron2_lr_scheduler(cfg, optimizer)
    schedule = WarmupParamScheduler(
        PolynomialDecayParamScheduler(1.0, solver.POLY_LR_POWER),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=solver.MAX_ITER)


class StepTrainer(SimpleTrainer):
    """One optimizer step over several batches, with mixed precision and whole-model clipping.

    Puts into the event storage: every loss term (mean over the step), `total_loss`,
    `[metric]grad_norm` (L2, over all parameters, before clipping) and `[metric]images_per_second`
    (of all processes).
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict[str, Any]]],
        optimizer: torch.optim.Optimizer,
        *,
        accumulate: int = 1,
        images_per_step: int = 0,
        clip_norm: float = 0.0,
        amp_dtype: torch.dtype | None = None,
    ) -> None:
        """Takes what Detectron2's SimpleTrainer takes, and how to make the step.

        Args:
            model: maps a batch to a dict of losses; may be wrapped for several processes.
            data_loader: endless batches.
            optimizer: over the model's parameters.
            accumulate: batches per step; the step's gradient is the mean of theirs.
            images_per_step: over all processes, for the throughput.
            clip_norm: largest L2 norm of the whole gradient; 0 turns clipping off.
            amp_dtype: of autocast, or None for full precision.
        """
        super().__init__(model, data_loader, optimizer)
        self.accumulate = accumulate
        self.images_per_step = images_per_step
        self.clip_norm = clip_norm
        self.amp_dtype = amp_dtype
        self.device_type = next(p for p in model.parameters() if p.requires_grad).device.type
        # Only float16 can underflow; for everything else the scaler does nothing.
        self.scaler = torch.amp.GradScaler(
            self.device_type, enabled=amp_dtype == torch.float16 and self.device_type == "cuda"
        )

    def run_step(self) -> None:
        """Makes one optimizer step.

        Raises:
            FloatingPointError: if the gradient is not finite, in every process at once and before
                the weights change. With float16 the scaler skips such steps instead.
        """
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        losses: dict[str, Tensor] = {}
        data_time = 0.0
        names: list[str] = []
        for index in range(self.accumulate):
            fetch = time.perf_counter()
            data = next(self._data_loader_iter)
            data_time += time.perf_counter() - fetch
            names += [str(item.get("file_name", "?")) for item in data if isinstance(item, dict)]
            for key, value in self._backward(data, last=index + 1 == self.accumulate).items():
                losses[key] = losses.get(key, 0) + value
        self.scaler.unscale_(self.optimizer)
        norm = self._clip()
        if not self.scaler.is_enabled() and not bool(torch.isfinite(norm)):
            terms = {key: round(value.item(), 6) for key, value in losses.items()}
            raise FloatingPointError(
                f"the gradient is not finite at iteration {self.iter}; losses of this process: "
                f"{terms}; its images: {names}"
            )
        self.after_backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._write_metrics(losses, data_time)
        storage = get_event_storage()
        seconds = time.perf_counter() - start
        storage.put_scalar("[metric]grad_norm", norm.item())
        storage.put_scalar("[metric]images_per_second", self.images_per_step / seconds)

    def _backward(self, data: list[dict[str, Any]], last: bool) -> dict[str, Tensor]:
        # Processes exchange gradients once a step, with its last batch.
        several = isinstance(self.model, DistributedDataParallel)
        quiet = self.model.no_sync() if several and not last else contextlib.nullcontext()
        with quiet:
            with torch.autocast(
                self.device_type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None
            ):
                losses = {k: v / self.accumulate for k, v in self.model(data).items()}
            self.scaler.scale(sum(losses.values())).backward()
        return {key: value.detach() for key, value in losses.items()}

    def _clip(self) -> Tensor:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        return nn.utils.clip_grad_norm_(parameters, self.clip_norm or float("inf"))

    def state_dict(self) -> dict[str, Any]:
        """Adds the state of the gradient scaler."""
        return {**super().state_dict(), "grad_scaler": self.scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores optimizer and gradient scaler."""
        super().load_state_dict(state_dict)
        self.scaler.load_state_dict(state_dict["grad_scaler"])
