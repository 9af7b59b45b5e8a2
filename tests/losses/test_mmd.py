"""Weighted maximum mean discrepancy against loops, closed forms and known distributions."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck

from alignzeg.losses.mmd import weighted_mmd

BANDWIDTHS = (0.5, 2.0, 5.0)


def looped(fake, real, weights, bandwidths):
    """The definition, one pair at a time, in Python's floats."""

    def kernel(a, b):
        square = sum((p - q) ** 2 for p, q in zip(a, b, strict=True))
        return sum(math.exp(-square / (2 * s * s)) for s in bandwidths) / len(bandwidths)

    x, y, w = fake.tolist(), real.tolist(), weights.tolist()
    n = len(x)
    return (
        sum(kernel(a, b) for a in x for b in x) / n**2
        + sum(
            p * q * kernel(a, b)
            for a, p in zip(y, w, strict=True)
            for b, q in zip(y, w, strict=True)
        )
        - 2 * sum(q * kernel(a, b) / n for a in x for b, q in zip(y, w, strict=True))
    )


def weights_of(*shape: int) -> torch.Tensor:
    return torch.rand(*shape).softmax(dim=-1)


@pytest.mark.parametrize(("n", "m"), [(7, 12), (12, 7), (1, 5), (5, 1), (9, 9)])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_it_equals_the_definition(n, m, offset):
    fake, real, weights = torch.randn(n, 4) + offset, torch.randn(m, 4) + offset, weights_of(m)
    expected = looped(fake.double(), real.double(), weights.double(), BANDWIDTHS)
    assert weighted_mmd(fake, real, weights, BANDWIDTHS).item() == pytest.approx(expected, abs=1e-5)


def test_close_points_far_from_the_others_keep_their_digits():
    real = torch.cat([torch.randn(6, 3), torch.randn(6, 3) + 3000])
    fake = real[::2] + 0.5
    weights = weights_of(12)
    expected = looped(fake.double(), real.double(), weights.double(), BANDWIDTHS)
    assert weighted_mmd(fake, real, weights, BANDWIDTHS).item() == pytest.approx(expected, abs=1e-5)


def test_a_weight_of_zero_is_a_point_that_is_not_there():
    fake, real = torch.randn(5, 3), torch.randn(8, 3)
    weights = torch.cat([weights_of(6), torch.zeros(2)])
    full = weighted_mmd(fake, real, weights, BANDWIDTHS)
    torch.testing.assert_close(full, weighted_mmd(fake, real[:6], weights[:6], BANDWIDTHS))


def test_an_integer_weight_is_a_point_that_is_there_more_often():
    fake, real = torch.randn(5, 3), torch.randn(3, 3)
    often = real.repeat_interleave(torch.tensor([3, 1, 2]), dim=0)
    weighted = weighted_mmd(fake, real, torch.tensor([3.0, 1.0, 2.0]) / 6, BANDWIDTHS)
    torch.testing.assert_close(weighted, weighted_mmd(fake, often, None, BANDWIDTHS))


def test_several_pairs_of_sets_at_once_are_each_on_their_own():
    fake, real, weights = torch.randn(4, 2, 5, 3), torch.randn(4, 2, 8, 3), weights_of(4, 2, 8)
    together = weighted_mmd(fake, real, weights, BANDWIDTHS)
    assert together.shape == (4, 2)
    for i in range(4):
        for j in range(2):
            alone = weighted_mmd(fake[i, j], real[i, j], weights[i, j], BANDWIDTHS)
            torch.testing.assert_close(together[i, j], alone)


def test_identical_sets_have_no_discrepancy_and_a_gradient_of_zero():
    real = torch.randn(6, 4)
    fake = real.clone().requires_grad_()
    mmd = weighted_mmd(fake, real, None, BANDWIDTHS)
    assert mmd.item() == pytest.approx(0, abs=1e-7)
    mmd.backward()
    torch.testing.assert_close(fake.grad, torch.zeros_like(real), atol=1e-6, rtol=0)
    # All points in one place, and every pair of them at distance 0.
    same = torch.ones(5, 4, requires_grad=True)
    weighted_mmd(same, torch.ones(3, 4), None, BANDWIDTHS).backward()
    assert torch.equal(same.grad, torch.zeros(5, 4))


def test_the_gradient_is_that_of_the_value_and_of_the_generated_features_alone():
    fake = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    real = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    weights = weights_of(7).double().requires_grad_()
    assert gradcheck(lambda x: weighted_mmd(x, real.detach(), weights.detach(), BANDWIDTHS), fake)
    weighted_mmd(fake, real, weights, BANDWIDTHS).backward()
    assert real.grad is None
    assert weights.grad is None


def test_blocks_change_neither_value_nor_gradient():
    real, weights = torch.randn(11, 4), weights_of(11)
    values, gradients = [], []
    for block in (None, 1, 3):
        fake = torch.linspace(-1, 1, 28).view(7, 4).requires_grad_()
        value = weighted_mmd(fake, real, weights, BANDWIDTHS, block=block)
        value.backward()
        values.append(value.detach())
        gradients.append(fake.grad)
    for value, gradient in zip(values[1:], gradients[1:], strict=True):
        torch.testing.assert_close(value, values[0])
        torch.testing.assert_close(gradient, gradients[0])


def test_blocks_bound_what_the_backward_pass_keeps():
    """With one block the kernel matrices are kept for the backward pass, with many they are not."""
    kept = {}
    for block in (None, 16):
        fake, real = torch.randn(512, 4, requires_grad=True), torch.randn(512, 4)
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            weighted_mmd(fake, real, None, BANDWIDTHS, block=block)
        kept[block] = max(sizes)
    assert kept[None] == 512 * 512
    assert kept[16] <= 512 * 4


def test_two_gaussians_have_the_discrepancy_that_theory_gives():
    """For x ~ N(a, I), y ~ N(b, I) in D dimensions the kernel's mean is known in closed form."""
    dim, count, shift = 3, 1500, torch.tensor([1.0, -0.5, 0.25])

    def mean_kernel(distance2: float, sigma: float) -> float:
        spread = sigma**2 + 2
        return (sigma**2 / spread) ** (dim / 2) * math.exp(-distance2 / (2 * spread))

    expected = sum(
        2 * mean_kernel(0, s) - 2 * mean_kernel(float(shift.square().sum()), s) for s in BANDWIDTHS
    ) / len(BANDWIDTHS)
    fake, real = torch.randn(count, dim), torch.randn(count, dim) + shift
    found = weighted_mmd(fake, real, None, BANDWIDTHS).item()
    assert expected > 0.05
    # The diagonal adds up to 2 / n; the spread of the estimate is of the order of 1 / sqrt(n).
    assert found == pytest.approx(expected, abs=0.015)


def test_half_precision_is_computed_in_full():
    fake, real = torch.randn(5, 3), torch.randn(6, 3)
    found = weighted_mmd(fake.bfloat16(), real.bfloat16(), None, BANDWIDTHS)
    expected = weighted_mmd(fake.bfloat16().float(), real.bfloat16().float(), None, BANDWIDTHS)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("fake", "real", "weights", "bandwidths", "message"),
    [
        ((0, 3), (4, 3), None, (1.0,), "at least one of each"),
        ((4, 3), (0, 3), None, (1.0,), "at least one of each"),
        ((4, 3), (4, 2), None, (1.0,), "cannot be compared"),
        ((2, 4, 3), (4, 3), None, (1.0,), "cannot be compared"),
        ((4, 3), (4, 3), (3,), (1.0,), r"weights of shape \(3,\)"),
        ((4, 3), (4, 3), None, (1.0, 0.0), r"above 0; got \[1.0, 0.0\]"),
        ((4, 3), (4, 3), None, (), "above 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(fake, real, weights, bandwidths, message):
    weights = None if weights is None else torch.ones(weights)
    with pytest.raises(ValueError, match=message):
        weighted_mmd(torch.zeros(fake), torch.zeros(real), weights, bandwidths)
