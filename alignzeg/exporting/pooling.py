"""Adaptive pooling to a size that is known when the graph runs, which ONNX has no operator for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


def _bins(length: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First and last place, (count,) int64 each, of the bins that adaptive pooling cuts."""
    index = torch.arange(count, device=device)
    return index * length // count, ((index + 1) * length + count - 1) // count - 1


def _along(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Bins of the last dimension: (..., count, n) values, and (count, n) bool, which are inside.

    A bin has at most n = ceil(length / count) + 1 places; where it has fewer its last one is
    repeated.
    """
    length = x.shape[-1]
    first, last = _bins(length, count, x.device)
    steps = torch.arange((length + count - 1) // count + 1, device=x.device)
    places = first[:, None] + steps
    inside = places <= last[:, None]
    index = torch.minimum(places, last[:, None])
    values = x.index_select(-1, index.flatten())
    return values.reshape(*x.shape[:-1], count, index.shape[1]), inside


def adaptive_max_pool2d(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., *size) of (..., h, w), as `F.adaptive_max_pool2d`."""
    x = _along(x, size[1])[0].amax(-1)
    return _along(x.transpose(-1, -2), size[0])[0].amax(-1).transpose(-1, -2)


def adaptive_avg_pool2d(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., *size) of (..., h, w), as `F.adaptive_avg_pool2d`."""

    def mean(x: Tensor, count: int) -> Tensor:
        values, inside = _along(x, count)
        return (values * inside).sum(-1) / inside.sum(-1)

    return mean(mean(x, size[1]).transpose(-1, -2), size[0]).transpose(-1, -2)


_IN_PLACE_OF = {
    F.adaptive_max_pool2d: adaptive_max_pool2d,
    F.adaptive_avg_pool2d: adaptive_avg_pool2d,
}


class ExportablePooling(TorchFunctionMode):
    """Inside it, adaptive pooling to a size that depends on the input's is done by gathering."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Calls the function, or what stands in for it."""
        del types
        size = args[1] if func in _IN_PLACE_OF and len(args) == 2 else ()
        # One number stands for both sides; those that a network names itself never depend on x.
        if isinstance(size, tuple) and any(isinstance(side, torch.SymInt) for side in size):
            return _IN_PLACE_OF[func](*args)
        return func(*args, **(kwargs or {}))
