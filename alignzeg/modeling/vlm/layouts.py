"""Names that other libraries give the tensors of a CLIP.

The layout of Hugging Face transformers (`CLIPModel`) keeps query, key and value apart and its
projections transposed; open_clip has them stacked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# Files of a folder that a model hub gives, the first that is there is taken.
FOLDER_FILES = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    *("model.safetensors", "pytorch_model.bin"),
)
_TOWERS = {"text_model.": "", "vision_model.": "visual."}
_NAMES = (
    (r"embeddings\.token_embedding\.", "token_embedding."),
    (r"embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"embeddings\.class_embedding$", "class_embedding"),
    (r"embeddings\.patch_embedding\.", "conv1."),
    (r"pre_layrnorm\.", "ln_pre."),
    (r"post_layernorm\.", "ln_post."),
    (r"final_layer_norm\.", "ln_final."),
    (r"encoder\.layers\.", "transformer.resblocks."),
    (r"self_attn\.", "attn."),
    (r"layer_norm([12])\.", r"ln_\1."),
    (r"mlp\.fc1\.", "mlp.c_fc."),
    (r"mlp\.fc2\.", "mlp.c_proj."),
)
_PROJECTIONS = {
    "text_projection.weight": "text_projection",
    "visual_projection.weight": "visual.proj",
}
_PART = re.compile(r"(.*\.attn\.)([qkv])_proj\.(weight|bias)$")


def from_transformers(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a `CLIPModel` of transformers under open_clip's names; any others as they are.

    A tensor whose name has no counterpart keeps it, so that it is reported as too many.
    """
    mark = "vision_model.embeddings."
    head = next((name.partition(mark)[0] for name in given if mark in name), None)
    if head is None:
        return dict(given)
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for full, value in given.items():
        name = _renamed(full.removeprefix(head))
        part = _PART.match(name)
        if name.endswith("embeddings.position_ids"):
            continue  # counted from 0, as everywhere
        if part:
            whole = f"{part.group(1)}in_proj_{part.group(3)}"
            parts.setdefault(whole, {})[part.group(2)] = value
        elif name in _PROJECTIONS:
            found[_PROJECTIONS[name]] = value.T.contiguous()
        else:
            found[name] = value
    for name, three in parts.items():
        if three.keys() >= {"q", "k", "v"}:
            found[name] = torch.cat([three[letter] for letter in "qkv"])
    return found


def _renamed(name: str) -> str:
    for tower, place in _TOWERS.items():
        if name.startswith(tower):
            rest = name.removeprefix(tower)
            for pattern, new in _NAMES:
                rest = re.sub(rf"(?:^|(?<=\.)){pattern}", new, rest)
            return place + rest
    return name
