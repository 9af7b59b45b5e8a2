"""Text embeddings of prompts, and prototypes kept in memory and on disk."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import TextTransformer, text_global_pool
from safetensors.torch import load_file, save
from torch import Tensor, nn

from alignzeg.files import atomic_write, user_cache
from alignzeg.modeling.pretrained import UNREADABLE
from alignzeg.progress import waiting
from alignzeg.structures import SYNONYM_SEPARATOR

logger = logging.getLogger(__name__)

# Prompts that the text encoder reads at once.
_PROMPT_BATCH = 256


def _is_causal(text: nn.Module) -> bool:
    """True where the tokens after the end of a sentence cannot change its embedding."""
    pool = getattr(text, "text_pool_type", getattr(text, "pool_type", ""))
    special = getattr(text, "cls_emb", None) is not None or getattr(text, "use_pad_mask", False)
    return text.attn_mask is not None and pool in ("argmax", "eos") and not special


def encode_prompts(clip: CLIP | CustomTextCLIP, tokens: Tensor) -> Tensor:
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


def text_channels(clip: CLIP | CustomTextCLIP) -> int:
    """D, the channels of an open_clip model's text space."""
    text = clip if isinstance(clip, CLIP) else clip.text
    projection = text.text_projection
    if isinstance(projection, nn.Linear):
        return projection.out_features
    return text.ln_final.normalized_shape[0] if projection is None else projection.shape[1]


def token_counts(tokenizer: Any, templates: Sequence[str], names: Sequence[str]) -> list[int]:
    """Tokens of each name in the template that needs the most, however many that are."""
    room = 2 * max(len(t) + len(n) for t in templates for n in names) + 8
    padding = int(tokenizer([""], context_length=room)[0, -1])
    counts = []
    for name in names:
        tokens = tokenizer([t.replace("{}", name) for t in templates], context_length=room)
        used = (tokens != padding).any(dim=0).nonzero()
        counts.append(int(used[-1]) + 1)
    return counts


def checked_names(names: Sequence[str]) -> list[str]:
    """The names as a list.

    Raises:
        ValueError: if there are none, or an empty one.
    """
    names = list(names)
    if not names or any(not name.strip() for name in names):
        raise ValueError(f"class names must not be empty; got {names}")
    return names


def prompt_means(
    names: Sequence[str], templates: Sequence[str], encode: Callable[[list[str]], Tensor]
) -> Tensor:
    """Text prototypes: means over templates, then over the several names of a class.

    Args:
        names: K class names; one may hold several, between SYNONYM_SEPARATORs.
        templates: sentences with one ``{}``.
        encode: n prompts to (n, D) embeddings, not normalised.

    Returns:
        (K, D) float32, unit length. What is averaged is normalised before.
    """
    groups = [name.split(SYNONYM_SEPARATOR) for name in names]
    each = [name for group in groups for name in group]
    prompts = [template.replace("{}", name) for name in each for template in templates]
    work = f"embedding {len(each)} names in {len(templates)} sentences each; the cache keeps them"
    with waiting(work):
        parts = [
            F.normalize(encode(prompts[start : start + _PROMPT_BATCH]).float(), dim=-1)
            for start in range(0, len(prompts), _PROMPT_BATCH)
        ]
    means = torch.cat(parts).unflatten(0, (len(each), len(templates))).mean(dim=1)
    means = F.normalize(means, dim=-1)
    if len(each) == len(names):
        return means
    means = torch.stack([part.mean(dim=0) for part in means.split([len(g) for g in groups])])
    return F.normalize(means, dim=-1)


class TextCache:
    """Text prototypes in memory and on disk, by the sha256 of everything they depend on."""

    def __init__(self, folder: str | Path) -> None:
        """Keeps files in `folder`; "" is ``~/.cache/alignzeg/text``, or none without a home."""
        cache = user_cache()
        self._folder = Path(folder).expanduser() if folder else cache and cache / "text"
        self._memory: dict[tuple[str, torch.device], Tensor] = {}

    @torch.inference_mode(False)
    @torch.no_grad()
    def get(
        self,
        identity: Mapping[str, Any],
        shape: tuple[int, int],
        make: Callable[[], Tensor],
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """The stored prototypes, or those that `make` computes; an unreadable file is made anew.

        `identity` is all that they depend on, as JSON holds it. What is made is float32. Each
        device that asks keeps a copy.
        """
        name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        key = (name, torch.device(device))
        if key not in self._memory:
            path = self._folder / f"{name}.safetensors" if self._folder else None
            stored = self._read(path, shape) if path else None
            if stored is None:
                stored = make().cpu()
                if path:
                    self._write(path, stored)
            self._memory[key] = stored.to(device)
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
            atomic_write(path, save({"text": text.contiguous()}))
        except OSError as error:
            logger.warning("text cache %s cannot be written: %s", path, error)
