"""The tiny CLIP's one figure: how many regions of fresh scenes it names right."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from alignzeg.data.zeroshapes import SPLIT_FILE, class_names, render_scene, scene_rng
from alignzeg.modeling.vlm import OpenClipVLM


def score_regions(
    embed: Callable[[np.ndarray, Tensor], dict[str, Tensor]],
    text: Tensor,
    scenes: int,
    seed: int = 0,
) -> dict[str, float]:
    """Share of regions of fresh scenes that are named right, in percent.

    Args:
        embed: (image (H,W,3) uint8, mask logits (Q,H,W)) -> named region embeddings (Q, D).
        text: (K, D) unit-norm prototypes of all names.
        scenes: fresh scenes of the stream "clip_eval".
        seed: of the scenes.

    Returns:
        For each kind of embedding: all, unseen, things, stuff, and the things' colour and shape
        alone. A region is one name in one scene, with its exact mask; those under 64 pixels are
        left out.
    """
    names = class_names()
    unseen = set(json.loads(SPLIT_FILE.read_text(encoding="utf-8"))["unseen"])
    hits: dict[str, dict[str, list[bool]]] = {}
    for index in range(scenes):
        scene = render_scene(scene_rng(seed, "clip_eval", index))
        ids, areas = np.unique(scene.label, return_counts=True)
        ids = ids[(ids < len(names)) & (areas >= 64)]
        masks = torch.from_numpy(
            np.where(scene.label == ids[:, None, None], 10.0, -10.0).astype(np.float32)
        )
        for kind, embeds in embed(scene.image, masks).items():
            guesses = (embeds.float() @ text.T).argmax(-1).tolist()
            table = hits.setdefault(kind, {})
            for true, guess in zip(ids.tolist(), guesses, strict=True):
                right = true == guess
                wanted, got = names[true].split(), names[guess].split()
                table.setdefault("all", []).append(right)
                if names[true] in unseen:
                    table.setdefault("unseen", []).append(right)
                table.setdefault("things" if len(wanted) == 2 else "stuff", []).append(right)
                if len(wanted) == 2:
                    table.setdefault("colour", []).append(wanted[0] == got[0])
                    table.setdefault("shape", []).append(wanted[-1] == got[-1])
    return {
        f"{kind}/{group}": round(100 * float(np.mean(values)), 1)
        for kind, table in hits.items()
        for group, values in table.items()
    }


def evaluate(
    weights: str = "",
    scenes: int = 100,
    region_blocks: int = 3,
    templates: Sequence[str] = ("vild",),
    cache_dir: str = "",
) -> dict[str, float]:
    """Name the regions of fresh scenes with the model and code that everything else uses.

    Args:
        weights: a weight file of alignzeg-tiny; "" for the bundled one.
        scenes: fresh scenes, with exact masks.
        region_blocks: blocks for MaskGuidedTokens.
        templates: prompt templates of the names.
        cache_dir: where text prototypes are cached.

    Returns:
        Percentages of :func:`score_regions` for "MaskGuidedTokens" and "MaskPooling".
    """
    common = {"weights": weights, "templates": templates, "cache_dir": cache_dir}
    readers = {
        mode: OpenClipVLM(regions=mode, region_blocks=region_blocks, **common)
        for mode in ("MaskGuidedTokens", "MaskPooling")
    }
    text = readers["MaskPooling"].embed_text(class_names())

    def embed(image: np.ndarray, masks: Tensor) -> dict[str, Tensor]:
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
        return {mode: vlm.embed_regions(pixels, masks[None])[0] for mode, vlm in readers.items()}

    return score_regions(embed, text, scenes)
