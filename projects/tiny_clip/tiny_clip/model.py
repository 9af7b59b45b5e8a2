"""The tiny CLIP as a model: built, started well, scored on a batch, saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.pos_embed import get_2d_sincos_pos_embed
from open_clip.transformer import VisionTransformer
from safetensors.torch import save_file
from torch import Tensor, nn

import alignzeg
from alignzeg.data.zeroshapes import class_names
from alignzeg.modeling.vlm.regions import dense_values, mask_guided_tokens, vit_states
from tiny_clip.recipe import Recipe
from tiny_clip.sampling import CLUTTER, STYLES, TEMPLATES, Batch, say

ASSETS = Path(alignzeg.__file__).parent / "assets"


def give_sense_of_place(visual: VisionTransformer) -> None:
    """Start a vision transformer with local attention, which saves a small one thousands of steps.

    Positions start as 2-D sines and cosines instead of noise, and every head's keys as its queries,
    both one random orthogonal projection: alike and neighbouring patches attend to each other.

    Source: arXiv:2305.09828 (mimetic initialization), simplified.
    """
    width = visual.positional_embedding.shape[1]
    places = get_2d_sincos_pos_embed(width, visual.grid_size[0], cls_token=True)
    with torch.no_grad():
        visual.positional_embedding.copy_(0.4 * torch.from_numpy(places))
        for block in visual.transformer.resblocks:
            heads = [
                nn.init.orthogonal_(torch.empty(block.attn.head_dim, width), gain=0.6)
                for _ in range(block.attn.num_heads)
            ]
            block.attn.in_proj_weight[:width] = torch.cat(heads)
            block.attn.in_proj_weight[width : 2 * width] = torch.cat(heads)


def build_model(seed: int) -> tuple[open_clip.CLIP, Callable]:
    """A fresh tiny CLIP from the bundled config, and open_clip's tokenizer for it."""
    open_clip.add_model_config(ASSETS / "alignzeg-tiny.json")
    torch.manual_seed(seed)
    model = open_clip.create_model("alignzeg-tiny", precision="fp32")
    give_sense_of_place(model.visual)
    return model, open_clip.get_tokenizer("alignzeg-tiny")


def save_weights(model: open_clip.CLIP, path: Path, command: str, seed: int, steps: int) -> None:
    """Half-precision safetensors with what made them in the metadata; appears atomically."""
    tensors = {
        key: value.detach().to(torch.float16).contiguous()
        for key, value in model.state_dict().items()
    }
    temporary = path.with_suffix(".writing")
    metadata = {"command": command, "seed": str(seed), "steps": str(steps), "format": "pt"}
    save_file(tensors, temporary, metadata=metadata)
    temporary.chmod(0o644)
    temporary.replace(path)


def normalise(model: open_clip.CLIP, images: np.ndarray) -> Tensor:
    """(B, H, W, 3) 0..255 -> (B, 3, H, W) as the model's preprocessing says."""
    cfg = model.visual.preprocess_cfg
    pixels = (
        torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32)).permute(0, 3, 1, 2) / 255
    )
    mean, std = torch.tensor(cfg["mean"]).view(3, 1, 1), torch.tensor(cfg["std"]).view(3, 1, 1)
    return (pixels - mean) / std


def encode_captions(model: open_clip.CLIP, tokenizer: Callable, captions: Sequence[str]) -> Tensor:
    """(N, D) unit-norm embeddings of captions."""
    return F.normalize(model.encode_text(tokenizer(list(captions))).float(), dim=-1)


def contrast(
    embeds: Tensor, words: Sequence[str | None], text: dict[str, Tensor], scale: Tensor
) -> Tensor:
    """Cross-entropy of crops over the captions of one style.

    Each caption stands once: no false negatives, and every hard negative is present.
    """
    keys = list(text)
    rows = [index for index, word in enumerate(words) if word is not None]
    if not rows:
        return embeds.sum() * 0
    column = {key: index for index, key in enumerate(keys)}
    target = torch.tensor([column[words[index]] for index in rows])
    prototypes = torch.stack([text[key] for key in keys])
    return F.cross_entropy(scale * embeds[rows] @ prototypes.T, target, label_smoothing=0.02)


def losses(
    model: open_clip.CLIP,
    tokenizer: Callable,
    rng: np.random.Generator,
    batch: Batch,
    recipe: Recipe,
) -> Tensor:
    """The weighted loss of one batch, a scalar."""
    labels = [*class_names(), CLUTTER]
    valid = np.flatnonzero(batch.names.ravel() >= 0)
    called = [labels[index] for index in batch.names.ravel()[valid]]
    inside = torch.from_numpy(batch.windows)
    inside = torch.where(inside.any(-1, keepdim=True), inside, torch.ones_like(inside))
    inside = torch.cat([torch.ones_like(inside[:, :1]), inside], dim=1)
    possible = {s: sorted({say(name, s) or "" for name in labels} - {""}) for s in STYLES}
    vocabulary = sorted({word for words in possible.values() for word in words})
    captions = [TEMPLATES[rng.integers(len(TEMPLATES))].format(word) for word in vocabulary]
    captions += batch.captions
    with torch.autocast("cpu", torch.bfloat16):
        states = vit_states(model.visual, normalise(model, batch.images), recipe.region_blocks)
        tokens = mask_guided_tokens(model.visual, states, inside)
        dense = dense_values(model.visual, states)
        shares = inside[:, 1:].to(dense.dtype)
        pooled = (shares / shares.sum(-1, keepdim=True)) @ F.normalize(dense, dim=-1)
        encoded = encode_captions(model, tokenizer, captions)
    text = dict(zip(vocabulary, encoded, strict=False))
    tokens = F.normalize(tokens.float(), dim=-1)
    crops = tokens[:, 1:].flatten(0, 1)[valid]
    means = F.normalize(pooled.float(), dim=-1).flatten(0, 1)[valid]
    scale = model.logit_scale.exp().clamp(max=100)
    weights = {"full": 1.0, "shape": recipe.shape_weight, "colour": recipe.colour_weight}
    total = torch.zeros(())
    for style, candidates in possible.items():
        words = [say(name, style) for name in called]
        options = {word: text[word] for word in candidates}
        of_tokens = contrast(crops, words, options, scale)
        of_means = contrast(means, words, options, scale)
        total = total + weights[style] * (of_tokens + recipe.dense_weight * of_means)
    pairs = scale * tokens[:, 0] @ encoded[len(vocabulary) :].T
    own = torch.arange(len(batch.captions))
    return (
        total
        + recipe.whole_weight * (F.cross_entropy(pairs, own) + F.cross_entropy(pairs.T, own)) / 2
    )
