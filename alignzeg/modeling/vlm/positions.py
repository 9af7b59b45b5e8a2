"""Positions of a weight file that was trained at another resolution or with longer sentences.

They are kept as the file has them, and interpolated once, for the image at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor, nn


def take_positions(clip: CLIP | CustomTextCLIP, state: Mapping[str, Tensor]) -> list[str]:
    """Gives a model room for the positions of a state, where only their number differs.

    Returns:
        What has changed, one clause each.
    """
    moved = []
    visual = clip.visual
    if isinstance(visual, VisionTransformer):
        grid = _other_grid(visual, "positional_embedding", state.get("visual.positional_embedding"))
        if grid:
            visual.grid_size = (grid, grid)
            visual.image_size = (grid * visual.patch_size[0], grid * visual.patch_size[1])
            moved.append(_said(grid, visual.image_size[0]))
    elif isinstance(visual, ModifiedResNet):
        name = "positional_embedding"
        grid = _other_grid(visual.attnpool, name, state.get(f"visual.attnpool.{name}"))
        if grid:
            visual.image_size = grid * 32
            moved.append(_said(grid, visual.image_size))
    text = clip if isinstance(clip, CLIP) else clip.text
    if isinstance(text, CLIP | TextTransformer) and getattr(text, "cls_emb", None) is None:
        prefix = "" if isinstance(clip, CLIP) else "text."
        given = state.get(f"{prefix}positional_embedding")
        if given is not None and _wider(text, "positional_embedding", given):
            text.context_length = text.num_pos = count = len(given)
            if text.attn_mask is not None:
                text.attn_mask = torch.full((count, count), float("-inf")).triu_(1)
            moved.append(f"the text encoder reads {count} tokens")
    return moved


def _said(grid: int, size: int) -> str:
    return (
        f"its positions are of {grid} x {grid} places; ALIGNZEG.VLM.IMAGE_SIZE 0 is {size} pixels"
    )


def _other_grid(module: nn.Module, name: str, given: Tensor | None) -> int:
    """The side of a square grid of positions and a class token, given room; 0: there is no need."""
    side = 0 if given is None or given.ndim != 2 else isqrt(max(len(given) - 1, 0))
    if given is None or side < 1 or side**2 + 1 != len(given) or not _wider(module, name, given):
        return 0
    return side


def _wider(module: nn.Module, name: str, given: Tensor) -> bool:
    """Replaces a parameter if only the number of rows of another differs; whether it did."""
    own = getattr(module, name)
    if given.ndim != 2 or given.shape[1] != own.shape[1] or len(given) == len(own):
        return False
    setattr(module, name, nn.Parameter(own.new_empty(given.shape)))
    return True
