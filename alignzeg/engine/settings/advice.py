"""Settings that can run, but cannot be meant: warnings before the first step."""

from __future__ import annotations

from detectron2.config import CfgNode


def advice(cfg: CfgNode) -> list[str]:
    """What a training with this config should be warned of, one line each."""
    solver = cfg.SOLVER
    lines = []
    if solver.WARMUP_ITERS >= solver.MAX_ITER > 0 and solver.WARMUP_ITERS:
        lines.append(
            f"SOLVER.WARMUP_ITERS is {solver.WARMUP_ITERS}, but SOLVER.MAX_ITER only "
            f"{solver.MAX_ITER}: the learning rate never gets near SOLVER.BASE_LR and little is "
            f"learnt; set SOLVER.WARMUP_ITERS to {solver.MAX_ITER // 10}, or train longer"
        )
    return lines
