"""Text embeddings of prompts, and prototypes kept in memory and on disk."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP
from open_clip.transformer import TextTransformer, text_global_pool
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from alignzeg.modeling.vlm.weights import UNREADABLE

logger = logging.getLogger(__name__)


def _is_causal(text: nn.Module) -> bool:
    """True where the tokens after the end of a sentence cannot change its embedding."""
    pool = getattr(text, "text_pool_type", getattr(text, "pool_type", ""))
    special = getattr(text, "cls_emb", None) is not None or getattr(text, "use_pad_mask", False)
    return text.attn_mask is not None and pool in ("argmax", "eos") and not special


def encode_prompts(clip: nn.Module, tokens: Tensor) -> Tensor:
    """Text embeddings with the context cut to the longest sentence, where that is exact.

    Args:
        clip: an open_clip model.
        tokens: (N, context) token ids.

    Returns:
        (N, D), not normalised; equal to ``clip.encode_text`` up to rounding.
    """
    text = clip if isinstance(clip, CLIP) else clip.text
    if not isinstance(text, CLIP | TextTransformer) or not _is_causal(text):
        return clip.encode_text(tokens)
    pool = text.text_pool_type if isinstance(text, CLIP) else text.pool_type
    eos = text.text_eos_id if isinstance(text, CLIP) else text.eos_id
    ends = tokens.argmax(dim=-1) if pool == "argmax" else (tokens == eos).int().argmax(dim=-1)
    length = int(ends.max()) + 1
    tokens = tokens[:, :length]
    dtype = text.transformer.get_cast_dtype()
    x = text.token_embedding(tokens).to(dtype) + text.positional_embedding[:length].to(dtype)
    x = text.ln_final(text.transformer(x, attn_mask=text.attn_mask[:length, :length]))
    x = text_global_pool(x, tokens, pool, eos_token_id=eos)
    if isinstance(text.text_projection, nn.Linear):
        return text.text_projection(x)
    return x if text.text_projection is None else x @ text.text_projection


def text_channels(clip: nn.Module) -> int:
    """D, the channels of an open_clip model's text space."""
    text = clip if isinstance(clip, CLIP) else clip.text
    projection = text.text_projection
    if isinstance(projection, nn.Linear):
        return projection.out_features
    return text.ln_final.normalized_shape[0] if projection is None else projection.shape[1]


def token_counts(tokenizer: Any, templates: Sequence[str], names: Sequence[str]) -> list[int]:
    """Tokens of each name in the template that needs the most, however many that are.

    Args:
        tokenizer: of open_clip; it cuts off what is longer than the context it is given.
        templates: sentences with one ``{}``.
        names: class names.
    """
    room = 2 * max(len(t) + len(n) for t in templates for n in names) + 8
    padding = int(tokenizer([""], context_length=room)[0, -1])
    counts = []
    for name in names:
        tokens = tokenizer([t.replace("{}", name) for t in templates], context_length=room)
        used = (tokens != padding).any(dim=0).nonzero()
        counts.append(int(used[-1]) + 1)
    return counts


class TextCache:
    """Text prototypes in memory and on disk, by the sha256 of everything they depend on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._memory: dict[str, Tensor] = {}

    def get(self, key: str, shape: tuple[int, int], make: Callable[[], Tensor]) -> Tensor:
        """The stored prototypes, or those that `make` computes; an unreadable file is made anew."""
        if key not in self._memory:
            path = self._folder / f"{key}.safetensors"
            stored = self._read(path, shape)
            if stored is None:
                stored = make().cpu()
                self._write(path, stored)
            self._memory[key] = stored
        return self._memory[key]

    @staticmethod
    def _read(path: Path, shape: tuple[int, int]) -> Tensor | None:
        if not path.is_file():
            return None
        try:
            stored = load_file(path)["text"]
        except UNREADABLE as error:
            logger.warning("text cache %s is unreadable and is made anew: %s", path, error)
            return None
        if (
            tuple(stored.shape) != shape
            or stored.dtype != torch.float32
            or not stored.isfinite().all()
        ):
            logger.warning("text cache %s does not fit and is made anew", path)
            return None
        return stored

    @staticmethod
    def _write(path: Path, text: Tensor) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
            os.close(handle)
            save_file({"text": text.contiguous()}, temporary)
            os.replace(temporary, path)
        except OSError as error:
            logger.warning("text cache %s cannot be written: %s", path, error)
