"""Region embeddings as pure functions: inside open_clip's plain vision transformer, or pooled.

Shape legend: B images, Q proposals, P patches (row-major grid), W tower width, D text channels, L
blocks. The tiny CLIP is trained through the same functions that a frozen CLIP is read with.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn


def is_plain(visual: VisionTransformer) -> bool:
    """Whether a vision transformer classifies by a class token in plain attention blocks."""
    plain = all(isinstance(block, ResidualAttentionBlock) for block in visual.transformer.resblocks)
    return plain and visual.attn_pool is None and visual.pool_type == "tok"


def patch_grid(visual: VisionTransformer, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of patches of an image whose sides are multiples of the patch."""
    return height // visual.patch_size[0], width // visual.patch_size[1]


def interpolated_positions(visual: VisionTransformer, grid: tuple[int, int]) -> Tensor:
    """(1+P, W) positional embedding for a grid of patches, bicubic if it is not the trained one."""
    positions = visual.positional_embedding
    if not torch.compiler.is_exporting() and tuple(visual.grid_size) == tuple(grid):
        return positions
    spatial = positions[1:].float().reshape(1, *visual.grid_size, -1).permute(0, 3, 1, 2)
    spatial = F.interpolate(spatial, size=grid, mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([positions[:1], spatial.flatten(2)[0].T.to(positions.dtype)])


def vit_states(visual: VisionTransformer, image: Tensor, blocks: int) -> tuple[Tensor, ...]:
    """Run the tower once and keep what enters each of its last blocks.

    Args:
        visual: a plain vision transformer.
        image: (B, 3, H, W) normalised; H and W are multiples of the patch size.
        blocks: how many of the last blocks to keep, 1 <= blocks <= L.

    Returns:
        `blocks` tensors (B, 1+P, W), class token first. The last block itself is not run: regions
        need only what enters it.
    """
    tokens = visual.conv1(image).flatten(2).transpose(1, 2)
    cls = visual.class_embedding.to(tokens.dtype).expand(tokens.shape[0], 1, -1)
    grid = patch_grid(visual, *image.shape[-2:])
    tokens = torch.cat([cls, tokens], dim=1) + interpolated_positions(visual, grid).to(tokens.dtype)
    tokens = visual.ln_pre(tokens)
    layers = visual.transformer.resblocks
    states = []
    for index, block in enumerate(layers):
        if index >= len(layers) - blocks:
            states.append(tokens)
        if index < len(layers) - 1:
            tokens = block(tokens)
    return tuple(states)


def _heads(tokens: Tensor, attention: nn.MultiheadAttention, part: int) -> Tensor:
    """Project (B, N, W) to queries (part 0), keys (1) or values (2): (B, heads, N, W / heads)."""
    width = attention.embed_dim
    rows = slice(part * width, (part + 1) * width)
    bias = None if attention.in_proj_bias is None else attention.in_proj_bias[rows]
    projected = F.linear(tokens, attention.in_proj_weight[rows], bias)
    return projected.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)


def mask_guided_tokens(
    visual: VisionTransformer, states: tuple[Tensor, ...], inside: Tensor
) -> Tensor:
    """Copies of the class token that read only the patches of their region.

    Every copy attends to itself and to the patches inside; patches never see a copy, so they are
    those of the plain image.

    Args:
        visual: the tower that made the states.
        states: what enters each of the last blocks, each (B, 1+P, W).
        inside: (B, Q, P) bool, True where a proposal may look; at least one True in every row.

    Returns:
        (B, Q, D), not normalised.

    Source: arXiv:2208.08984 (MaskCLIP's relative mask tokens), arXiv:2302.12242 (SAN); AlignZeg
    cites both ideas.
    """
    region = states[0][:, :1].expand(-1, inside.shape[1], -1)
    blocked = ~inside[:, None]
    for block, tokens in zip(visual.transformer.resblocks[-len(states) :], states, strict=True):
        attention = block.attn
        own, patches = block.ln_1(region), block.ln_1(tokens[:, 1:])
        query = _heads(own, attention, 0) * attention.head_dim**-0.5
        to_self = (query * _heads(own, attention, 1)).sum(-1, keepdim=True)
        to_patches = query @ _heads(patches, attention, 1).transpose(-1, -2)
        scores = torch.cat([to_self, to_patches.masked_fill(blocked, float("-inf"))], dim=-1)
        weights = scores.float().softmax(dim=-1).to(query.dtype)
        mixed = weights[..., :1] * _heads(own, attention, 2) + weights[..., 1:] @ _heads(
            patches, attention, 2
        )
        region = region + block.ls_1(attention.out_proj(mixed.transpose(1, 2).flatten(2)))
        region = region + block.ls_2(block.mlp(block.ln_2(region)))
    return visual.ln_post(region) @ visual.proj


def dense_values(visual: VisionTransformer, states: tuple[Tensor, ...]) -> Tensor:
    """Patch features in the text space by the value path of the last block.

    The last block's attention mixes patches for the class token's sake; taking each patch's own
    value instead, without the residual and the MLP, keeps it about its place.

    Args:
        visual: the tower that made the states.
        states: what enters the last blocks, each (B, 1+P, W); only the last is read.

    Returns:
        (B, P, D), not normalised.

    Source: arXiv:2112.01071 (MaskCLIP, dense features from the value projection).
    """
    block = visual.transformer.resblocks[-1]
    values = _heads(block.ln_1(states[-1][:, 1:]), block.attn, 2)
    return visual.ln_post(block.attn.out_proj(values.transpose(1, 2).flatten(2))) @ visual.proj


def patches_inside(mask_logits: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which patches a proposal touches.

    Args:
        mask_logits: (B, Q, h, w) logits at any resolution, covering the same image as the grid.
        grid: rows and columns of patches.

    Returns:
        (B, Q, P) bool: a patch is inside if any pixel in it has a probability over one half, which
        gives thin masks a margin. A mask without such a pixel keeps its single best patch, so that
        no row is empty.
    """
    best = F.adaptive_max_pool2d(mask_logits.detach().float(), grid).flatten(2)
    inside = best > 0
    peak = torch.zeros_like(inside).scatter_(2, best.argmax(dim=2, keepdim=True), True)
    return inside | (peak & ~inside.any(dim=2, keepdim=True))


def mask_pooled(dense: Tensor, mask_logits: Tensor, normalize: bool = True) -> Tensor:
    """(B, Q, D): mean of (B, D, Hv, Wv), weighted by the mask probability.

    Args:
        dense: features of all places.
        mask_logits: (B, Q, h, w) at any resolution; a mask that is empty takes its best place.
        normalize: let every place count alike, however long its feature is.
    """
    grid = (dense.shape[2], dense.shape[3])
    shares = F.adaptive_avg_pool2d(mask_logits.float().sigmoid(), grid).flatten(2)
    solid = shares.amax(dim=2, keepdim=True) > 1e-4
    shares = torch.where(solid, shares, patches_inside(mask_logits, grid).float())
    shares = shares / shares.sum(dim=2, keepdim=True)
    places = F.normalize(dense.float(), dim=1) if normalize else dense.float()
    return shares @ places.flatten(2).transpose(1, 2)
