"""Small building blocks shared by the heads. Nothing here reads the config."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

# Image pixels of a cell: of the masks, and of the features that are read to refine them.
MASK_STRIDE = 4
REFINED_STRIDES = (32, 16, 8)


class PixelNormalizer(nn.Module):
    """Images as Detectron2's image encoders take them.

    Args:
        mean: three numbers in 0..255, in the encoder's order of channels.
        std: likewise.
        input_format: that order, "RGB" or "BGR".

    Raises:
        ValueError: if it is neither.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], input_format: str) -> None:
        super().__init__()
        if input_format not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is {input_format!r}; it can be 'RGB' or 'BGR'")
        self.bgr = input_format == "BGR"
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in 0..255 to the same in the encoder's order, normalised."""
        return ((images.flip(1) if self.bgr else images) - self.mean) / self.std


def pointwise_by_onednn(module: nn.Module, device: torch.device) -> None:
    """Lets a CPU compute kernels of 1 x 1 by oneDNN where channels come last, with one thread too.

    With one thread and fewer than 16 images PyTorch takes an older algorithm for these, which takes
    longer on batches with the channels last; by how much depends on the processor. It takes oneDNN
    for dilated kernels, and dilation changes nothing in a kernel of one place. Networks with the
    channels first gain nothing and are left alone.

    Args:
        module: if it has kernels with the channels last, its kernels of 1 x 1 get a dilation of 2
            on a CPU, else of 1.
        device: where the module is.
    """
    kernels = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    if not any(
        part.weight.is_contiguous(memory_format=torch.channels_last)
        and not part.weight.is_contiguous()
        for part in kernels
    ):
        return
    for part in kernels:
        if part.kernel_size == (1, 1):
            part.dilation = (2, 2) if device.type == "cpu" else (1, 1)


class ImageModel(nn.Module):
    """What meta-architectures share: images are normalised, kernels are tuned to the device.

    Attributes:
        normalizer: set by the subclass.
        makes_proposals: whether there are masks behind an answer.
    """

    makes_proposals = True
    normalizer: PixelNormalizer

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.normalizer.mean.device

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # All moves of a module go through here: `to`, `cpu`, `cuda`, `half`.
        super()._apply(fn, recurse)
        pointwise_by_onednn(self, self.device)
        return self


class MLP(nn.Sequential):
    """Linear layers with GELU between them.

    Args:
        sizes: channels of the input, of every hidden layer and of the output; at least two.
    """

    def __init__(self, *sizes: int) -> None:
        layers: list[nn.Module] = []
        for inside, outside in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [nn.Linear(inside, outside), nn.GELU()]
        super().__init__(*layers[:-1])


class AttentionBlock(nn.Module):
    """Pre-norm residual attention, then a pre-norm residual feed-forward block if asked for.

    Args:
        dim: channels C of queries and keys.
        heads: attention heads; divides `dim`.
        ffn_dim: channels inside the feed-forward block; 0 leaves it out.
        cross: normalise keys on their own (cross-attention) instead of sharing the queries' norm.
    """

    def __init__(self, dim: int, heads: int, ffn_dim: int = 0, *, cross: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.key_norm = nn.LayerNorm(dim) if cross else None
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.ffn = nn.Sequential(nn.LayerNorm(dim), MLP(dim, ffn_dim, dim)) if ffn_dim else None

    def forward(
        self,
        x: Tensor,
        keys: Tensor | None = None,
        *,
        position: Tensor | None = None,
        key_position: Tensor | None = None,
        blocked: Tensor | None = None,
    ) -> Tensor:
        """Lets `x` attend to `keys` (to itself where they are None).

        Args:
            x: (B, L, C) queries.
            keys: (B, M, C) keys and values.
            position: (L, C) or (B, L, C), added to the queries before attention.
            key_position: (M, C) or (B, M, C), added to the keys but not to the values.
            blocked: (B, L, M) bool, true where a query must not look; no row may be all true.

        Returns:
            (B, L, C)
        """
        queries = self.norm(x)
        if keys is None:
            values, key_position = queries, position
        else:
            assert self.key_norm is not None
            values = self.key_norm(keys)
        if blocked is not None:
            blocked = blocked.repeat_interleave(self.attention.num_heads, dim=0)
        attended, _ = self.attention(
            queries if position is None else queries + position,
            values if key_position is None else values + key_position,
            values,
            attn_mask=blocked,
            need_weights=False,
        )
        x = x + attended
        return x if self.ffn is None else x + self.ffn(x)


def sine_position(height: int, width: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Two-dimensional sine position encoding; the same tensor for the same arguments.

    Args:
        height: rows of the grid.
        width: columns of the grid.
        dim: channels; a multiple of 4.
        device: where to put the result.

    Returns:
        (height * width, dim), values in [-1, 1]; half of the channels code the row.

    Raises:
        ValueError: if `dim` is no multiple of 4.

    Source: DETR (arXiv 2005.12872), normalised coordinates.
    """
    if dim % 4:
        raise ValueError(f"a sine position encoding needs channels in multiples of 4; got {dim}")
    # A graph must not depend on the sizes that it was traced with.
    if torch.compiler.is_compiling():
        return _sine_position(height, width, dim, device)
    return _kept_sine_position(height, width, dim, device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _kept_sine_position(height: int, width: int, dim: int, device: torch.device | None) -> Tensor:
    return _sine_position(height, width, dim, device)


def _sine_position(height: int, width: int, dim: int, device: torch.device | None) -> Tensor:
    frequency = torch.exp(torch.arange(dim // 4, device=device) * (-math.log(10000.0) / (dim // 4)))

    def encode(length: int) -> Tensor:
        place = (torch.arange(length, device=device) + 0.5) / length * 2 * math.pi
        angle = place[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=-1)

    rows = encode(height)[:, None].expand(-1, width, -1)
    columns = encode(width)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1).reshape(height * width, dim)


def resize(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Bilinear resize of (B, C, H, W) to (B, C, *size); the tensor itself if it has that size."""
    # An exported graph must not depend on the sizes that it was traced with.
    if not torch.compiler.is_exporting() and x.shape[-2:] == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def geometric_ensemble(
    probs: Tensor, frozen_probs: Tensor, exponents: Tensor, normalized: bool = False
) -> Tensor:
    """Geometric mean of the trained and the frozen class probabilities.

    Args:
        probs: (..., K) trained probabilities in [0, 1]; they may sum to less than 1.
        frozen_probs: (..., K) the frozen VLM's probabilities in [0, 1].
        exponents: (K,) a in [0, 1], the share of the frozen model for each class.
        normalized: scale the result to the sum of the trained probabilities. Without it a proposal
            that the two models disagree on loses against its neighbours, whose masks leak.

    Returns:
        (..., K) probs^(1-a) * frozen_probs^a.

    Source: ZegFormer (arXiv 2112.07910), equation 6; normalised as fc-clip (arXiv 2308.02487).
    """
    mixed = probs.pow(1 - exponents) * frozen_probs.pow(exponents)
    if not normalized:
        return mixed
    total = mixed.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(mixed.dtype).tiny)
    return mixed * (probs.sum(dim=-1, keepdim=True) / total)


def proposal_weights(mask_logits: Tensor, least_iou: float) -> Tensor:
    """One vote for every group of proposals that show the same thing, shared among them.

    Semantic inference sums over proposals. Ten copies of a large region, each leaking a little over
    its border, would outvote the one proposal of the small thing beside it.

    Args:
        mask_logits: (Q, h, w).
        least_iou: IoU of two binarised masks, in (0, 1], from which they count as copies.

    Returns:
        (Q,) in (0, 1], 1 over the sum of the IoUs with all copies, itself included.
    """
    masks = (mask_logits > 0).flatten(1).to(mask_logits.dtype)
    both = masks @ masks.T
    areas = masks.sum(dim=1)
    ious = both / (areas[:, None] + areas[None] - both).clamp(min=1)
    index = torch.arange(len(ious), device=ious.device)
    copies = ious.masked_fill(ious < least_iou, 0).masked_fill(index[:, None] == index, 1)
    return 1 / copies.sum(dim=1)


def mask_quality(mask_logits: Tensor) -> Tensor:
    """How sure masks are: the mean probability inside each of them.

    Args:
        mask_logits: (..., h, w).

    Returns:
        (...) mean probability of the cells where it exceeds one half, in (0.5, 1]; the highest
        probability of a mask without such a cell.
    """
    probs = mask_logits.float().sigmoid().flatten(-2)
    inside = probs > 0.5
    mean = (probs * inside).sum(-1) / inside.sum(-1).clamp(min=1)
    return torch.where(inside.any(-1), mean, probs.amax(-1))


def with_foreground_share(class_logits: Tensor, shares: Tensor) -> Tensor:
    """Class scores whose softmax leaves the background what a given share leaves.

    Args:
        class_logits: (..., K+1), background last; its score is replaced.
        shares: (...) in [0, 1], what all classes but the background shall have together.

    Returns:
        (..., K+1); the softmax of its first K entries is that of the scores, times the share.
    """
    scores = class_logits[..., :-1]
    odds = torch.logit(shares.to(scores.dtype), eps=1e-6)
    background = scores.logsumexp(-1) - odds
    return torch.cat([scores, background.unsqueeze(-1)], dim=-1)
