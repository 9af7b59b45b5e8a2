"""Optimizers and learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers.batch_norm import LayerNorm as ChannelLayerNorm
from detectron2.projects.deeplab import build_lr_scheduler as build_detectron2_lr_scheduler
from detectron2.solver import LRMultiplier, LRScheduler, WarmupParamScheduler
from detectron2.solver.build import maybe_add_gradient_clipping
from fvcore.common.param_scheduler import PolynomialDecayParamScheduler
from torch import Tensor, nn

from alignzeg.engine.solver.muon import Muon

NORMS = (
    *(nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm),
    ChannelLayerNorm,
)
# The layers whose matrices are meant to shrink; every other tensor of more than one dimension is
# a learned table (queries, prototypes, position encodings).
MATRICES = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.MultiheadAttention)


def scaled_lr(base_lr: float, batch: int, reference_batch: int) -> float:
    """The learning rate of a total batch, by the linear rule.

    `batch` counts the images of an optimizer step, over all processes and accumulated batches. A
    reference of 0 leaves the rate alone.

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
        model: its attribute `backbone`, if any, is the image encoder; of an FPN or a simple feature
            pyramid the network below it. The pyramid itself starts from nothing and learns at the
            full rate, as MaskFormer's pixel decoder.
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
    encoder = getattr(backbone, "bottom_up", getattr(backbone, "net", backbone))
    slow = {id(p) for p in encoder.parameters()} if isinstance(encoder, nn.Module) else set()
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
            rate = lr * (backbone_multiplier if id(parameter) in slow else 1.0)
            groups.setdefault((rate, decay, matrix), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay, "matrix": matrix}
        for (rate, decay, matrix), parameters in groups.items()
    ]


def _matrix(values: Tensor, parameter: nn.Parameter) -> Tensor:
    """(rows, columns) of values shaped like a parameter, in the order of the parameter's memory.

    A kernel with its channels last is read channel by channel: an update of Muon follows a
    permutation of columns.
    """
    if not parameter.is_contiguous():
        values = values.permute(0, *range(2, values.ndim), 1)
    return values.reshape(len(values), -1)


class MuonWithAdamW(torch.optim.Optimizer):
    """One optimizer out of Muon and PyTorch's AdamW.

    Muon orthogonalises each update of a matrix, so that it moves as far along the directions that
    explain little of the loss as along those that explain much. A convolution's kernel is taken as
    the matrix (out channels, everything else). Muon's learning rate is brought to AdamW's scale.

    `param_groups` are the caller's; learning rates and weight decays are read from them in every
    step, so that schedulers work as with any optimizer.

    Source: Muon (kellerjordan.github.io/posts/muon), the scale after arXiv 2502.16982.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        """Takes groups as AdamW, each with "params", "lr", "weight_decay" and "matrix", a bool.

        That says whether Muon takes the group; its parameters then have two dimensions or more.

        Raises:
            ValueError: if there are no parameters, or a parameter of a matrix group is a vector.
        """
        super().__init__(groups, {"matrix": False})
        matrices = [p for group in self._groups(matrix=True) for p in group["params"]]
        vectors = [tuple(p.shape) for p in matrices if p.ndim < 2]
        if vectors:
            raise ValueError(f"Muon takes parameters of two or more dimensions; got {vectors}")
        # Parameters of the same memory, as Muon accepts matrices only.
        self._flat = {p: nn.Parameter(_matrix(p.detach(), p)) for p in matrices}
        self._parts: dict[bool, torch.optim.Optimizer] = {}
        kinds: tuple[tuple[bool, Any], ...] = ((True, Muon), (False, torch.optim.AdamW))
        for matrix, kind in kinds:
            copies = [
                {
                    **{key: group[key] for key in ("lr", "weight_decay")},
                    "params": [self._flat.get(p, p) for p in group["params"]],
                }
                for group in self._groups(matrix)
            ]
            if copies:
                self._parts[matrix] = kind(copies)

    def _groups(self, matrix: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["matrix"] == matrix]

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Makes one step; `closure` recomputes the loss, as with any optimizer of PyTorch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for parameter, flat in self._flat.items():
            flat.grad = None if parameter.grad is None else _matrix(parameter.grad, parameter)
        for matrix, optimizer in self._parts.items():
            for inner, group in zip(optimizer.param_groups, self._groups(matrix), strict=True):
                inner["lr"], inner["weight_decay"] = group["lr"], group["weight_decay"]
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The groups' settings, and the states of both optimizers in order."""
        parts = [optimizer.state_dict() for optimizer in self._parts.values()]
        return {**super().state_dict(), "parts": parts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` gave.

        Raises:
            ValueError: if it comes from another kind of optimizer or from other groups.
        """
        parts = state_dict.get("parts")
        if parts is None or len(parts) != len(self._parts):
            raise ValueError(
                "the optimizer's state is not that of Muon over the same parameters; resume with "
                "the ALIGNZEG.SOLVER.OPTIMIZER that the checkpoint was trained with"
            )
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "parts"})
        for optimizer, state in zip(self._parts.values(), parts, strict=True):
            optimizer.load_state_dict(state)


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
    kinds: dict[str, Any] = {"AdamW": torch.optim.AdamW, "Muon": MuonWithAdamW}
    optimizer = kinds[cfg.ALIGNZEG.SOLVER.OPTIMIZER](groups)
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
