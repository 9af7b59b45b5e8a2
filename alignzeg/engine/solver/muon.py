"""Muon for matrices, in the arithmetic that the device is good at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5
_EPS = 1e-7


def orthogonalized(matrix: Tensor) -> Tensor:
    """The matrix with all its singular values brought near 1, by five Newton-Schulz steps.

    In bfloat16 on a CUDA device, else in float32: a processor without instructions for bfloat16
    emulates it, 6 to 240 times slower, and all processors shall give the same numbers.

    Args:
        matrix: (M, N) floats.

    Returns:
        (M, N), bfloat16 or float32. Singular values are about 0.7 to 1.2, as published; those that
        were far below the largest one stay smaller.

    Source: kellerjordan.github.io/posts/muon.
    """
    a, b, c = _COEFFICIENTS
    x = matrix.to(torch.bfloat16 if matrix.device.type == "cuda" else torch.float32)
    tall = len(x) > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=_EPS)
    for _ in range(_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` with Nesterov momentum and AdamW's scale of the learning rate.

    PyTorch's always computes in bfloat16 (2.11 to 2.15). State dicts of the two agree.

    Source: kellerjordan.github.io/posts/muon, the scale after arXiv 2502.16982.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        """Takes groups with "params", all (M, N), "lr" and "weight_decay"."""
        super().__init__(groups, {})

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Makes one step; `closure` recomputes the loss, as with any optimizer of PyTorch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr, decay = group["lr"], group["weight_decay"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                mean = state["momentum_buffer"].lerp_(parameter.grad, 1 - MOMENTUM)
                update = orthogonalized(parameter.grad.lerp(mean, MOMENTUM))
                parameter.mul_(1 - lr * decay)
                parameter.add_(update, alpha=-lr * 0.2 * max(parameter.shape) ** 0.5)
        return loss
