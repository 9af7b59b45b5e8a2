"""Learning rates, parameter groups, Muon, and one optimizer step."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import nn

from alignzeg.engine import (
    setup_config,
)
from alignzeg.engine.run import run_line
from alignzeg.engine.solver.optim import (
    build_lr_scheduler,
    build_optimizer,
    parameter_groups,
    scaled_lr,
)
from alignzeg.engine.training.step import StepTrainer
from alignzeg.engine.training.trainer import build_step_trainer


@pytest.mark.parametrize(
    ("batch", "reference", "lr"),
    [(16, 0, 0.1), (16, 16, 0.1), (8, 16, 0.05), (64, 16, 0.4), (1, 16, 0.00625)],
)
def test_learning_rate_scales_with_the_batch(batch: int, reference: int, lr: float) -> None:
    assert scaled_lr(0.1, batch, reference) == pytest.approx(lr)
    cfg = setup_config(
        "",
        ["SOLVER.BASE_LR", "0.1", "SOLVER.IMS_PER_BATCH", str(batch)]
        + ["ALIGNZEG.SOLVER.REFERENCE_BATCH", str(reference)],
    )
    assert build_optimizer(cfg, nn.Linear(2, 2)).param_groups[0]["lr"] == pytest.approx(lr)
    assert f"learning rate {lr:g} " in run_line(cfg, 1)


def test_poly_schedule_is_its_closed_form() -> None:
    opts = ["SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.MAX_ITER", "20"]
    cfg = setup_config("", [*opts, "SOLVER.WARMUP_ITERS", "4", "SOLVER.WARMUP_FACTOR", "0.1"])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    top = 2 * (1 - 4 / 20) ** 0.9
    warm = [0.2 + (top - 0.2) * i / 4 for i in range(4)]
    poly = [2 * (1 - i / 20) ** 0.9 for i in range(4, 20)]
    assert rates == pytest.approx(warm + poly)


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.linear = nn.Linear(4, 4)
        self.normed_but_linear = nn.Linear(4, 4)
        self.scale = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.queries = nn.Embedding(5, 4)
        self.prototypes = nn.Parameter(torch.zeros(3, 4))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.shared = self.linear


def test_groups_go_by_the_type_of_the_module() -> None:
    model = Parts()
    groups = parameter_groups(
        model,
        lr=1.0,
        backbone_multiplier=0.1,
        weight_decay=0.5,
        weight_decay_norm=0.3,
        weight_decay_bias=0.2,
        weight_decay_embed=0.4,
    )
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found == {
        "backbone.0.weight": (0.1, 0.5),
        "backbone.0.bias": (0.1, 0.2),
        "backbone.1.weight": (0.1, 0.3),
        "backbone.1.bias": (0.1, 0.3),
        "linear.weight": (1.0, 0.5),
        "linear.bias": (1.0, 0.2),
        "normed_but_linear.weight": (1.0, 0.5),
        "normed_but_linear.bias": (1.0, 0.2),
        "scale.weight": (1.0, 0.3),
        "scale.bias": (1.0, 0.3),
        "attention.in_proj_weight": (1.0, 0.5),
        "attention.in_proj_bias": (1.0, 0.2),
        "attention.out_proj.weight": (1.0, 0.5),
        "attention.out_proj.bias": (1.0, 0.2),
        "queries.weight": (1.0, 0.4),
        "prototypes": (1.0, 0.4),
    }
    assert sum(len(g["params"]) for g in groups) == len(found)
    matrices = {names[id(p)] for g in groups if g["matrix"] for p in g["params"]}
    assert matrices == {
        "backbone.0.weight",
        "linear.weight",
        "normed_but_linear.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
    }


class Toy(nn.Module):
    """Mean over a batch of numbers of a loss that is not linear in the weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, batch: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        y = self.net(torch.stack(batch))
        return {"loss_a": (y - 1).square().mean(), "loss_b": F.softplus(y).mean()}


def step(accumulate: int, per_batch: int, **kwargs) -> tuple[StepTrainer, dict[str, float]]:
    images = list(torch.randn(8, 6, generator=torch.Generator().manual_seed(3)))
    batches = [images[i : i + per_batch] for i in range(0, 8, per_batch)]
    model = Toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = StepTrainer(
        model, batches, optimizer, accumulate=accumulate, images_per_step=8, **kwargs
    )
    trainer.iter = 0
    with EventStorage(0) as storage:
        trainer.run_step()
        return trainer, {k: v for k, (v, _) in storage.latest().items()}


@pytest.mark.parametrize(("accumulate", "per_batch"), [(2, 4), (4, 2), (8, 1)])
def test_accumulation_changes_nothing_but_the_memory(accumulate: int, per_batch: int) -> None:
    whole, metrics = step(1, 8)
    parts, partial = step(accumulate, per_batch)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)
    for key in ("loss_a", "loss_b", "total_loss", "[metric]grad_norm"):
        assert partial[key] == pytest.approx(metrics[key], rel=1e-5)
    assert partial["[metric]images_per_second"] > 0


def test_the_whole_gradient_is_clipped() -> None:
    free, metrics = step(1, 8)
    clipped, same = step(1, 8, clip_norm=0.01)
    norm = metrics["[metric]grad_norm"]
    assert norm > 0.01 and same["[metric]grad_norm"] == pytest.approx(norm)
    for a, b in zip(free.model.parameters(), clipped.model.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad * 0.01 / norm, rtol=1e-4, atol=1e-9)


def test_bfloat16_runs_on_the_cpu_and_float16_does_not_start(
    toy_cfg: CfgNode, caplog: pytest.LogCaptureFixture
) -> None:
    full, exact = step(1, 8)
    low, rough = step(1, 8, amp_dtype=torch.bfloat16)
    assert rough["total_loss"] == pytest.approx(exact["total_loss"], rel=0.02)
    assert rough["total_loss"] != exact["total_loss"]
    assert all(p.dtype == torch.float32 for p in low.model.parameters())
    toy_cfg.SOLVER.AMP.ENABLED = True
    model = Toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert build_step_trainer(toy_cfg, model, [], optimizer).amp_dtype is None
    assert "float16 needs CUDA" in caplog.text
    toy_cfg.ALIGNZEG.SOLVER.AMP_DTYPE = "bfloat16"
    assert build_step_trainer(toy_cfg, model, [], optimizer).amp_dtype == torch.bfloat16
