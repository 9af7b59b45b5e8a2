"""Random outputs, targets and matches, and the criteria that the tests share."""

from __future__ import annotations

import torch
from detectron2.config import get_cfg
from torch.nn import functional as F

from alignzeg.config import add_alignzeg_config
from alignzeg.losses.criteria import (
    ClassCriterion,
    MaskCriterion,
    merge_losses,
)
from alignzeg.registries import build_criteria
from alignzeg.structures import Matches, Outputs, Proposals, SyntheticOutputs, Targets

ALL = [
    "MaskCriterion",
    "ClassCriterion",
    "BackgroundDiversityCriterion",
    "SyntheticCriterion",
    "IndicatorCriterion",
]
LAYERS, BATCH, QUERIES, CLASSES, SIZE = 3, 2, 6, 4, 32
GRID = SIZE // 4
EXAMPLES = 7


def make_outputs(synthetic: int = 5, background: int = 3, dtype=torch.float32) -> Outputs:
    """Outputs whose tensors all take gradients."""

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype, requires_grad=True)

    proposals = tuple(
        Proposals(leaf(BATCH, QUERIES, 2), leaf(BATCH, QUERIES, GRID, GRID)) for _ in range(LAYERS)
    )
    embeds = leaf(BATCH, QUERIES, 2)
    virtual = 2
    return Outputs(
        proposals,
        embeds,
        embeds,
        leaf(BATCH, QUERIES, CLASSES + 1),
        unseen_logits=leaf(BATCH, QUERIES),
        background=F.normalize(leaf(background, 2), dim=-1),
        synthetic=SyntheticOutputs(
            leaf(synthetic, CLASSES + 1 + virtual),
            torch.randint(CLASSES + 1, CLASSES + 1 + virtual, (synthetic,)),
            leaf(synthetic, 2),
            leaf(synthetic, 2),
            imitated=(leaf(synthetic, 3), torch.randn(synthetic, 3, dtype=dtype)),
        ),
        text=F.normalize(torch.randn(CLASSES, 2, dtype=dtype), dim=-1),
        unseen_examples=(leaf(EXAMPLES), torch.arange(EXAMPLES) >= EXAMPLES - 2),
    )


def make_targets(count: int, hidden: float = 0.2) -> Targets:
    ids = torch.randint(-1, count, (SIZE // 2, SIZE // 2))
    ids = ids.repeat_interleave(2, 0).repeat_interleave(2, 1)
    valid = torch.rand(SIZE, SIZE) >= hidden
    if hidden:
        valid[:8, :8] = False
    masks = (ids == torch.arange(count)[:, None, None]) & valid
    return Targets(torch.randint(0, CLASSES, (count,)), masks, valid, name="scene.png")


def make_matches(counts: list[int]) -> list[list[Matches]]:
    return [
        [
            Matches(torch.randperm(QUERIES)[:n].sort().values, torch.randperm(n))
            for n in (min(count, QUERIES) for count in counts)
        ]
        for _ in range(LAYERS)
    ]


def make_batch(*counts: int) -> tuple[Outputs, list[Targets], list[list[Matches]]]:
    return make_outputs(), [make_targets(n) for n in counts], make_matches(list(counts))


def mask_criterion(**changes) -> MaskCriterion:
    values = {
        "mask_weight": 5.0,
        "dice_weight": 2.0,
        "num_points": 0,
        "oversample": 3.0,
        "importance": 0.75,
    }
    return MaskCriterion(**(values | changes))


def class_criterion(**changes) -> ClassCriterion:
    values = {
        "weight": 2.0,
        "background_weight": 0.1,
        "min_valid_share": 0.0,
        "ignore_iou": 2.0,
    }
    return ClassCriterion(**(values | changes))


class Criteria(torch.nn.Module):
    """Several criteria as one."""

    def __init__(self, criteria: list[torch.nn.Module]) -> None:
        super().__init__()
        self.criteria = torch.nn.ModuleList(criteria)

    def forward(self, *batch) -> dict[str, torch.Tensor]:
        return merge_losses(criterion(*batch) for criterion in self.criteria)


def all_criteria(points: int = 0) -> Criteria:
    cfg = get_cfg()
    add_alignzeg_config(cfg)
    cfg.ALIGNZEG.CRITERIA = ALL
    cfg.ALIGNZEG.LOSS.NUM_POINTS = points
    return Criteria(build_criteria(cfg))
