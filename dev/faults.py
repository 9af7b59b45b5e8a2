"""A plugin that makes AlignZeg fail on command, for `dev/stress_failures.py` and the tests.

    tools/train_net.py ... ALIGNZEG.PLUGINS dev/faults.py MODEL.META_ARCHITECTURE FaultyAlignZeg \
        FAULT.KIND loss FAULT.RANK 1 FAULT.ITERATION 3

Which fault it has is part of the weights, so a crash bundle brings it along.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from alignzeg.modeling.meta_arch import AlignZeg

# What becomes NaN in training; then what the process does, in training or in evaluation.
VALUES = ["image", "feature", "cost", "loss", "gradient"]
ENDS = ["raise", "kill", "exit"]
KINDS = ["", *VALUES, *ENDS, *(f"evaluation-{end}" for end in ENDS)]


def add_config(cfg: CfgNode) -> None:
    """The keys of the plugin."""
    cfg.FAULT = CfgNode()
    # One of KINDS.
    cfg.FAULT.KIND = ""
    cfg.FAULT.RANK = 0
    # Of the training, or the image of the evaluation, counted from 0 in each process.
    cfg.FAULT.ITERATION = 1
    # Steps, from ITERATION on, in which it happens.
    cfg.FAULT.TIMES = 1


def build_fault(cfg: CfgNode) -> dict[str, Any]:
    """The node as keyword arguments.

    Raises:
        ValueError: on an unknown kind.
    """
    if cfg.FAULT.KIND not in KINDS:
        raise ValueError(f"FAULT.KIND is {cfg.FAULT.KIND!r}; it can be one of {KINDS}")
    return {key.lower(): value for key, value in cfg.FAULT.items()}


@META_ARCH_REGISTRY.register()
class FaultyAlignZeg(AlignZeg):
    """AlignZeg with a fault in one process at one iteration."""

    def __init__(self, cfg: CfgNode) -> None:
        """Takes what AlignZeg takes."""
        super().__init__(cfg)
        self._plan = build_fault(cfg)
        self._images = 0
        # When it happened, in seconds since 1970.
        self._stamp = Path(cfg.OUTPUT_DIR) / "fault"
        self.register_buffer("fault", torch.zeros((), dtype=torch.int64))
        self.backbone.register_forward_hook(self._spoil_features)
        costs = self.matcher._costs
        self.matcher._costs = lambda *args: self._spoiled("cost", costs(*args))
        weight = next(p for p in self.head.parameters() if p.requires_grad)
        weight.register_hook(lambda gradient: self._spoiled("gradient", gradient))

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """As AlignZeg, with the fault."""
        if not self.training:
            if self._images == self._plan["iteration"]:
                self._end("evaluation-")
            self._images += 1
            return super().forward(batched_inputs)
        self._arm()
        if KINDS[int(self.fault)] == "image":
            batched_inputs[0]["image"] = self._spoiled("image", batched_inputs[0]["image"].float())
        losses = super().forward(batched_inputs)
        losses["loss_dice"] = self._spoiled("loss", losses["loss_dice"])
        return losses

    def _arm(self) -> None:
        if comm.get_world_size() == 1 and int(self.fault):
            return  # a replay
        first, now = self._plan["iteration"], get_event_storage().iter
        due = first <= now < first + self._plan["times"]
        here = due and self._plan["kind"] != "" and comm.get_rank() == self._plan["rank"]
        if here:
            self._end("")
        self.fault.fill_(KINDS.index(self._plan["kind"]) if here else 0)

    def _end(self, prefix: str) -> None:
        if comm.get_rank() != self._plan["rank"]:
            return
        self._stamp.write_text(str(time.time()), encoding="utf-8")
        if self._plan["kind"] == f"{prefix}raise":
            raise RuntimeError("a fault on command")
        if self._plan["kind"] == f"{prefix}kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._plan["kind"] == f"{prefix}exit":
            os._exit(7)

    def _spoil_features(self, _: nn.Module, __: Any, features: dict[str, Tensor]) -> Any:
        name = next(iter(features))
        return {**features, name: self._spoiled("feature", features[name])}

    def _spoiled(self, kind: str, tensor: Tensor) -> Tensor:
        if KINDS[int(self.fault)] != kind or not tensor.numel():
            return tensor
        poison = torch.ones_like(tensor)
        poison.view(-1)[-1] = float("nan")
        return tensor * poison
