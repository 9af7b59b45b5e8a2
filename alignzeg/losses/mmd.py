"""Maximum mean discrepancy between two weighted samples, as a pure function."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Distances held at once: 32 MiB in float64.
_BLOCK_ELEMENTS = 2**22


def weighted_mmd(
    fake: Tensor,
    real: Tensor,
    weights: Tensor | None,
    bandwidths: Sequence[float],
    block: int | None = None,
) -> Tensor:
    """Squared maximum mean discrepancy between generated and real features.

    The kernel is the mean of Gaussians, k(x, y) = mean_s exp(-|x - y|^2 / (2 s^2)), and
    MMD^2 = sum_ij k(x_i, x_j) / S^2 + sum_ij w_i w_j k(y_i, y_j) - 2 sum_ij w_j k(x_i, y_j) / S
    (the biased estimate, whose diagonal keeps it >= 0). Leading dimensions are pairs of sets, each
    compared on its own.

    Distances are computed in float64, with the real features' mean as origin, so that neither an
    offset that all features share nor close points far from the origin cost digits. A block of rows
    is recomputed in the backward pass, hence memory grows with S + N, not with S x N.

    Args:
        fake: (..., S, D) generated features; the only input that receives gradient.
        real: (..., N, D) features; S and N may differ.
        weights: (..., N) non-negative, sums to 1 (classifier confidence); None weighs all alike.
        bandwidths: Gaussian kernel standard deviations, in feature units.
        block: rows of the kernel matrix at once; None: as many as keep a block at 32 MiB.

    Returns:
        (...) values in [0, 2] up to rounding, in the dtype of `fake`, float32 for half precision.
        No square root: the gradient is finite at 0.

    Raises:
        ValueError: if S or N is 0, a shape does not fit, or a bandwidth is not above 0.

    Source: ZS-MMD (arXiv 2103.00086); without weights GMMN (arXiv 1502.02761), as in ZS3Net
    (arXiv 1906.00817). [ours: mean, not sum, of the kernels; no root]
    """
    _check(fake, real, weights, bandwidths)
    device = fake.device
    if device.type == "mps":  # which has no float64
        fake, real = fake.cpu(), real.cpu()
    origin = real.detach().double().mean(dim=-2, keepdim=True)
    x, y = fake.double() - origin, real.detach().double() - origin
    if weights is None:
        weights = y.new_full(y.shape[:-1], 1 / y.shape[-2])
    dtype = torch.promote_types(fake.dtype, torch.float32)
    w = weights.detach().to(y.device, dtype)
    uniform = torch.full_like(x[..., 0], 1 / x.shape[-2], dtype=dtype)
    with torch.no_grad():
        own = _mean_kernel(y, y, w, w, bandwidths, block)
    mmd = _mean_kernel(x, x, uniform, uniform, bandwidths, block) + own
    return (mmd - 2 * _mean_kernel(x, y, uniform, w, bandwidths, block)).to(device)


def _mean_kernel(
    x: Tensor, y: Tensor, u: Tensor, w: Tensor, bandwidths: Sequence[float], block: int | None
) -> Tensor:
    """sum_ij u_i w_j k(x_i, y_j) of (..., n, D) and (..., m, D): (...)."""
    sets = x[..., 0, 0].numel()
    rows = block or max(1, _BLOCK_ELEMENTS // (sets * y.shape[-2]))
    if rows >= x.shape[-2]:
        return _block(x, y, u, w, bandwidths)
    parts = zip(x.split(rows, dim=-2), u.split(rows, dim=-1), strict=True)
    blocks = [
        checkpoint(_block, part, y, share, w, bandwidths, use_reentrant=False)
        for part, share in parts
    ]
    return torch.stack(blocks).sum(dim=0)


def _block(x: Tensor, y: Tensor, u: Tensor, w: Tensor, bandwidths: Sequence[float]) -> Tensor:
    squares = x.square().sum(-1)[..., :, None] + y.square().sum(-1)[..., None, :]
    distances = (squares - 2 * x @ y.transpose(-1, -2)).clamp(min=0).to(u.dtype)
    kernel = torch.zeros_like(distances)
    for bandwidth in bandwidths:
        kernel = kernel + (distances / (-2 * bandwidth**2)).exp()
    return (u[..., :, None] * kernel * w[..., None, :]).sum(dim=(-1, -2)) / len(bandwidths)


def _check(fake: Tensor, real: Tensor, weights: Tensor | None, bandwidths: Sequence[float]) -> None:
    alike = fake.ndim == real.ndim >= 2 and fake.shape[:-2] == real.shape[:-2]
    if not alike or fake.shape[-1] != real.shape[-1]:
        raise ValueError(
            f"features of shapes {tuple(fake.shape)} and {tuple(real.shape)} cannot be compared; "
            "they must be (..., S, D) and (..., N, D)"
        )
    if not fake.numel() or not real.numel():
        raise ValueError(
            f"features of shapes {tuple(fake.shape)} and {tuple(real.shape)}: a discrepancy needs "
            "at least one of each"
        )
    if weights is not None and weights.shape != real.shape[:-1]:
        raise ValueError(
            f"weights of shape {tuple(weights.shape)} do not fit features {tuple(real.shape)}"
        )
    if not bandwidths or min(bandwidths) <= 0:
        raise ValueError(f"bandwidths must be above 0; got {list(bandwidths)}")
