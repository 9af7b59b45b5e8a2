"""A plugin as a user would write one: a meta-architecture of one 1 x 1 convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from alignzeg.data.labels import training_vocabulary
from alignzeg.structures import Vocabulary


def add_config(cfg: CfgNode) -> None:
    cfg.TOY = CfgNode()
    cfg.TOY.SCALE = 1.0
    cfg.TOY.FAIL_AT = -1


class ToyVLM:
    id = "toy"
    hash = "0123"


@META_ARCH_REGISTRY.register()
class ToySegmenter(nn.Module):
    """Classifies every pixel by its colour; in evaluation it scores all asked names."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.seen: Vocabulary = training_vocabulary(cfg)
        self.vlm = ToyVLM()
        self.fail_at = cfg.TOY.FAIL_AT
        self.steps = 0
        self.scale = cfg.TOY.SCALE
        self.conv = nn.Conv2d(3, len(self.seen), 1)

    def forward(self, batch: list[dict]) -> object:
        logits = [self.conv(item["image"][None].float() / 255) * self.scale for item in batch]
        if not self.training:
            return [{"sem_seg": x[0].argmax(0).to(torch.uint8)} for x in logits]
        self.steps += 1
        poison = float("nan") if self.steps == self.fail_at else 1.0
        losses = []
        for x, item in zip(logits, batch, strict=True):
            labels = torch.full(x.shape[-2:], -1)
            for label, mask in zip(item["targets"].labels, item["targets"].masks, strict=True):
                labels[mask] = label
            losses.append(F.cross_entropy(x, labels[None], ignore_index=-1))
        size = 1e-3 * self.conv.weight.square().sum()
        return {"loss_pixel": torch.stack(losses).mean() * poison, "loss_size": size}
