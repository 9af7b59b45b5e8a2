"""Gradient accumulation on the real model: eight batches of one image are one batch of eight."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils.events import EventStorage

from alignzeg.data.mapper import ZeroShotMapper
from alignzeg.engine import Trainer
from alignzeg.engine.training.trainer import build_step_trainer

IMAGES = 8


@pytest.fixture
def cfg(tiny_cfg: CfgNode) -> CfgNode:
    """AlignZeg without what compares the images of a batch with each other.

    The mask losses are divided by the number of masks in a batch and the class loss by the weight
    of its proposals, as in the published peers. So that these agree in all batches, every image
    has two masks here and all proposals count. Mixing features of one batch is left out.
    """
    tiny_cfg.ALIGNZEG.SYNTHESIZER.NAME = ""
    tiny_cfg.ALIGNZEG.CORRECTOR.NAME = "NoCorrection"
    tiny_cfg.ALIGNZEG.CRITERIA = ["MaskCriterion", "ClassCriterion", "BackgroundDiversityCriterion"]
    tiny_cfg.ALIGNZEG.LOSS.MIN_VALID_SHARE = 0.0
    tiny_cfg.ALIGNZEG.LOSS.IGNORE_IOU = 2.0
    tiny_cfg.SOLVER.IMS_PER_BATCH = IMAGES
    return tiny_cfg


def with_two_masks(sample: dict[str, Any]) -> dict[str, Any]:
    targets = sample["targets"]
    assert len(targets.labels) >= 2
    two = dataclasses.replace(targets, labels=targets.labels[:2], masks=targets.masks[:2])
    return {**sample, "targets": two}


def step(cfg: CfgNode, per_batch: int) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The gradient and the losses of one step over the same images."""
    mapper = ZeroShotMapper(cfg, True)
    records = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    mapped = [mapper(record) for record in records]
    samples = [with_two_masks(x) for x in mapped if len(x["targets"].labels) >= 2][:IMAGES]
    # A scene may show fewer than two seen classes; others then come twice.
    samples += samples[: IMAGES - len(samples)]
    batches = [samples[i : i + per_batch] for i in range(0, IMAGES, per_batch)]
    cfg.ALIGNZEG.SOLVER.ACCUMULATE = IMAGES // per_batch
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    trainer = build_step_trainer(cfg, model, batches, optimizer)
    trainer.iter = 0
    with EventStorage(0) as storage:
        trainer.run_step()
        losses = {key: value for key, (value, _) in storage.latest().items() if "loss" in key}
    gradient = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return gradient, losses


def test_eight_times_one_is_four_times_two_is_one_times_eight(cfg: CfgNode) -> None:
    cfg.INPUT.RANDOM_FLIP = "none"
    whole, losses = step(cfg, IMAGES)
    assert len(whole) > 50
    norm = torch.stack([g.norm() for g in whole.values()]).norm()
    for per_batch in (1, 2):
        parts, same_losses = step(cfg, per_batch)
        assert parts.keys() == whole.keys()
        off = torch.stack([(whole[name] - parts[name]).norm() for name in whole]).norm()
        assert off <= 1e-5 * norm, f"{off / norm:.2e}"
        for name, value in losses.items():
            assert same_losses[name] == pytest.approx(value, rel=1e-5), name
