"""Muon for the matrices of a network with convolutions, AdamW for all its other parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def _matrix(values: Tensor, parameter: nn.Parameter) -> Tensor:
    """(rows, columns) of values shaped like a parameter, in the order of the parameter's memory.

    A kernel with its channels last is read channel by channel: an update of Muon follows a
    permutation of columns.
    """
    if not parameter.is_contiguous():
        values = values.permute(0, *range(2, values.ndim), 1)
    return values.reshape(len(values), -1)


class MuonWithAdamW(torch.optim.Optimizer):
    """One optimizer out of PyTorch's Muon and AdamW.

    Muon orthogonalises each update of a matrix, so that it moves as far along the directions that
    explain little of the loss as along those that explain much. A convolution's kernel is taken as
    the matrix (out channels, everything else). Muon's learning rate is brought to AdamW's scale.

    `param_groups` are the caller's; learning rates and weight decays are read from them in every
    step, so that schedulers work as with any optimizer.

    Source: Muon (kellerjordan.github.io/posts/muon), the scale after arXiv 2502.16982.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        """Takes the parameters.

        Args:
            groups: as for AdamW, each with "params", "lr", "weight_decay" and "matrix", a bool:
                whether Muon takes the group; its parameters then have at least two dimensions.

        Raises:
            ValueError: if there are no parameters, or a parameter of a matrix group is a vector.
        """
        super().__init__(groups, {"matrix": False})
        vectors = [
            tuple(p.shape)
            for group in self._groups(matrix=True)
            for p in group["params"]
            if p.ndim < 2
        ]
        if vectors:
            raise ValueError(f"Muon takes parameters of two or more dimensions; got {vectors}")
        # Parameters of the same memory, as Muon accepts matrices only.
        self._flat = {
            p: nn.Parameter(_matrix(p.detach(), p))
            for group in self._groups(matrix=True)
            for p in group["params"]
        }
        self._parts = {
            matrix: self._part(matrix) for matrix in (True, False) if self._groups(matrix)
        }

    def _groups(self, matrix: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["matrix"] == matrix]

    def _part(self, matrix: bool) -> torch.optim.Optimizer:
        copies = [
            {
                "params": [self._flat.get(p, p) for p in group["params"]],
                "lr": group["lr"],
                "weight_decay": group["weight_decay"],
            }
            for group in self._groups(matrix)
        ]
        if matrix:
            return torch.optim.Muon(copies, adjust_lr_fn="match_rms_adamw")
        return torch.optim.AdamW(copies)

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
        return {
            **super().state_dict(),
            "parts": [optimizer.state_dict() for optimizer in self._parts.values()],
        }

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
