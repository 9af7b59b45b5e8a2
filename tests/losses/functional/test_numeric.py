"""Softplus and the loss of nothing."""

from __future__ import annotations

import math

import pytest
import torch

from alignzeg.losses import functional


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_softplus_is_torchs() -> None:
    x = torch.cat([torch.randn(2000) * 20, torch.tensor([0.0, -0.0, 88.0, -88.0, 1e4, -1e4])])
    expected = torch.logaddexp(x.double(), torch.zeros_like(x.double()))
    error = (functional.softplus(x).double() - expected).abs() / expected.clamp(min=1)
    assert error.max() < 5e-7


def test_softplus_gradient_is_the_sigmoid_also_at_zero() -> None:
    x = torch.tensor([-3.0, -0.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(functional.softplus(x).sum(), x)
    assert torch.allclose(grad, x.detach().sigmoid())
    assert grad[2] == 0.5
    assert torch.autograd.gradcheck(functional.softplus, x)
    assert torch.autograd.gradgradcheck(functional.softplus, x)


def test_no_loss_is_zero_whatever_the_tensor_holds() -> None:
    broken = torch.tensor([math.nan, math.inf], requires_grad=True)
    loss = functional.no_loss(broken)
    loss.backward()
    assert loss == 0 and (broken.grad == 0).all()
