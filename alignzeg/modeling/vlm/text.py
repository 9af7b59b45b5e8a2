"""What a text encoder reads of class names: tokens, and embeddings of prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import TextTransformer, text_global_pool
from torch import Tensor, nn

from alignzeg.modeling.pretrained import UNREADABLE, reason
from alignzeg.modeling.vlm.towers import MEANWHILE


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


def read_tokenizer(model_name: str) -> Any:
    """The tokenizer of an open_clip model; some are files of the Hugging Face Hub.

    Raises:
        ValueError: if it is not there.
    """
    try:
        return open_clip.get_tokenizer(model_name)
    except (*UNREADABLE, ImportError) as error:
        raise ValueError(
            f"the tokenizer of {model_name!r} cannot be had ({reason(error)}): it needs the "
            f"network once, and the package transformers; or {MEANWHILE}"
        ) from error


def context_length(clip: CLIP | CustomTextCLIP, tokenizer: Any) -> int:
    """Tokens that a model reads: as many as it has positions for, where it says so."""
    text = clip if isinstance(clip, CLIP) else clip.text
    if isinstance(text, CLIP | TextTransformer) and getattr(text, "cls_emb", None) is None:
        return int(text.context_length)
    return int(tokenizer.context_length)


def text_channels(clip: CLIP | CustomTextCLIP) -> int:
    """D, the channels of an open_clip model's text space."""
    text = clip if isinstance(clip, CLIP) else clip.text
    if isinstance(text, HFTextEncoder):
        return int(text.output_dim)
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


def unread(tokenizer: Any, names: Sequence[str]) -> list[str]:
    """Names of which a tokenizer of open_clip leaves out a part, or that leave no token at all."""
    inner = getattr(tokenizer, "tokenizer", None)
    unknown = getattr(inner, "unk_token_id", None)
    nothing, *rows = tokenizer(["", *names])
    return [
        name
        for name, row in zip(names, rows, strict=True)
        if torch.equal(row, nothing) or (unknown is not None and bool((row == unknown).any()))
    ]


def checked_names(names: Sequence[str]) -> list[str]:
    """The names as a list.

    Raises:
        ValueError: if there are none, or an empty one.
    """
    names = list(names)
    if not names or any(not name.strip() for name in names):
        raise ValueError(f"class names must not be empty; got {names}")
    return names


def prompt_mean(
    name: str, templates: Sequence[str], encode: Callable[[list[str]], Tensor]
) -> Tensor:
    """(D,) float32, unit length: mean over the templates of normalised embeddings of a name.

    Args:
        name: one name, without synonyms.
        templates: sentences with one ``{}``.
        encode: n prompts to (n, D) embeddings, not normalised.
    """
    prompts = [template.replace("{}", name) for template in templates]
    return F.normalize(F.normalize(encode(prompts).float(), dim=-1).mean(dim=0), dim=0)
