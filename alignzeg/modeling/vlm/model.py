"""OpenClipVLM: the registered frozen model, made of weights, text, towers and regions.

Shape legend: B images, Q proposals, K names, D text channels, P patches (row-major), Hv Wv the
dense grid.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode, configurable
from open_clip.model import CLIP
from open_clip.transformer import VisionTransformer
from torch import Tensor
from typing_extensions import override

from alignzeg.data.zeroshapes.names import class_names
from alignzeg.modeling.pretrained import state_hash
from alignzeg.modeling.vlm.encoding import EncodedImage, resized
from alignzeg.modeling.vlm.frozen import FrozenVLM
from alignzeg.modeling.vlm.regions import (
    dense_values,
    mask_guided_tokens,
    mask_pooled,
    patch_grid,
    patches_inside,
    vit_states,
)
from alignzeg.modeling.vlm.templates import resolve_templates
from alignzeg.modeling.vlm.text import (
    checked_names,
    context_length,
    encode_prompts,
    prompt_mean,
    read_tokenizer,
    text_channels,
    token_counts,
    unread,
)
from alignzeg.modeling.vlm.text_cache import TextCache
from alignzeg.modeling.vlm.towers import cell_size, convnet_dense
from alignzeg.modeling.vlm.weights import bundled_models, check_clip, load_clip
from alignzeg.registries import VLM_REGISTRY

# Words of the captions that the bundled CLIP was trained with, beside those of class names.
_CAPTION_WORDS = frozenset({"a", "an", "the", "and", "on", "ground", "thing"})


@VLM_REGISTRY.register()
class OpenClipVLM(FrozenVLM):
    """A frozen open_clip model.

    A region is a copy of the class token that read only the patches that its mask touches
    (probability over one half), MaskGuidedTokens, or the mask-weighted mean of normalised dense
    features, MaskPooling.

    Args:
        model_name: a name of ``open_clip.list_models()``, or "alignzeg-tiny", which ships with the
            package.
        weights: "" for bundled weights, a pretrained tag, a local .safetensors or .pt file, or a
            folder of a model hub; see `load_clip`.
        templates: "single", "vild", "imagenet", "default" (vild) or sentences with one ``{}``.
        regions: "MaskGuidedTokens" (ViT) or "MaskPooling" (any tower).
        region_blocks: last blocks that a region's class token runs through, 1 to the depth of the
            ViT.
        image_size: shorter side in pixels that the tower sees; 0 is the model's own.
        logit_scale: cosines times this are logits; 0 is the model's own, at most 100.
        cache_dir: folder of text prototypes; "" is ``~/.cache/alignzeg/text``.

    Raises:
        ValueError: for an unknown model, tag, template or region mode, weights that do not fit, or
            a tower that cannot be read that way; raised before any download where that is possible.
    """

    image_mean: Tensor
    image_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        model_name: str = "alignzeg-tiny",
        weights: str = "",
        templates: Sequence[str] = ("default",),
        regions: str = "MaskGuidedTokens",
        region_blocks: int = 3,
        image_size: int = 0,
        logit_scale: float = 0.0,
        cache_dir: str = "",
    ) -> None:
        resolved = resolve_templates(templates)
        if image_size < 0:
            raise ValueError(
                f"ALIGNZEG.VLM.IMAGE_SIZE is {image_size}: give the shorter side in pixels, or 0"
            )
        check_clip(model_name, weights, regions, region_blocks)
        tokenizer = read_tokenizer(model_name)
        clip, self.former_hash = load_clip(model_name, weights)
        super().__init__(clip.requires_grad_(False))
        self.templates = resolved
        self._tokenizer = tokenizer
        self._preprocess = dict(clip.visual.preprocess_cfg)
        self.id = f"{model_name}/{Path(weights).name or 'bundled'}"
        self.hash = self._content_hash(model_name)
        self._bundled = model_name in bundled_models() and not weights
        self.embed_dim = text_channels(clip)
        self.context_length = tokenizer.context_length = context_length(clip, tokenizer)
        own = self._preprocess["size"]
        self.image_size = image_size or (own if isinstance(own, int) else min(own))
        self.logit_scale = float(logit_scale) or min(float(clip.logit_scale.exp()), 100.0)
        for key in ("mean", "std"):
            values = torch.tensor(self._preprocess[key]).view(1, 3, 1, 1)
            self.register_buffer(f"image_{key}", values, persistent=False)
        self.regions = regions
        self.region_blocks = region_blocks
        identity = {"hash": self.hash, "templates": self.templates}
        self._cache = TextCache(cache_dir, identity, self.embed_dim)

    def _content_hash(self, model_name: str) -> str:
        """sha256 of tensors and preprocessing, whatever file they were in."""
        images = [list(self._preprocess[key]) for key in ("mean", "std")]
        said = json.dumps([model_name, *images, self._preprocess["interpolation"]])
        return hashlib.sha256((said + state_hash(self.clip.state_dict())).encode()).hexdigest()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Constructor arguments from cfg.ALIGNZEG.VLM."""
        node = cfg.ALIGNZEG.VLM
        return {
            "model_name": node.MODEL,
            "weights": node.WEIGHTS,
            "templates": node.TEMPLATES,
            "regions": node.REGIONS,
            "region_blocks": node.REGION_BLOCKS,
            "image_size": node.IMAGE_SIZE,
            "logit_scale": node.LOGIT_SCALE,
            "cache_dir": node.CACHE_DIR,
        }

    @property
    def clip(self) -> CLIP:
        """The frozen open_clip model."""
        return self._hidden[0]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.clip.logit_scale.device

    @property
    def cell(self) -> tuple[int, int]:
        """Rows and columns of pixels that the sides of the image it sees are multiples of."""
        return cell_size(self.clip.visual)

    # ---------------------------------------------------------------------------------------- names
    @property
    def known_words(self) -> frozenset[str] | None:
        """The words that the bundled CLIP was trained with; None for any other model."""
        if not self._bundled:
            return None
        return _CAPTION_WORDS | {word for name in class_names() for word in name.lower().split()}

    def token_counts(self, names: Sequence[str]) -> list[int]:
        """Tokens of each name in the template that needs the most, however many that are."""
        return token_counts(self._tokenizer, self.templates, names)

    def unread(self, names: Sequence[str]) -> list[str]:
        """Those of the names of which the tokenizer knows a part not, or nothing."""
        return unread(self._tokenizer, names)

    @override
    @torch.no_grad()
    def embed_text(self, names: Sequence[str]) -> Tensor:
        return self._cache.get(checked_names(names), self._prototype, self.device)

    def _prototype(self, name: str) -> Tensor:
        def encode(prompts: list[str]) -> Tensor:
            return encode_prompts(self.clip, self._tokenizer(prompts).to(self.device))

        with torch.autocast(self.device.type, enabled=False):
            return prompt_mean(name, self.templates, encode)

    # ------------------------------------------------------------------------------------- images
    def _prepared(self, image: Tensor) -> Tensor:
        """Resize to the model's resolution (aspect kept, sides in whole patches) and normalise."""
        image = resized(image, self.image_size, self.cell, self._preprocess["interpolation"])
        normal = (image / 255 - self.image_mean) / self.image_std
        return normal.to(self.clip.logit_scale.dtype)

    @override
    @torch.no_grad()
    def encode_image(self, image: Tensor) -> EncodedImage:
        pixels, visual = self._prepared(image), self.clip.visual
        if isinstance(visual, VisionTransformer):
            states = vit_states(visual, pixels, self.region_blocks)
            grid = patch_grid(visual, *pixels.shape[-2:])
            dense = dense_values(visual, states).transpose(1, 2).unflatten(2, grid)
            return EncodedImage(dense, states if self.regions == "MaskGuidedTokens" else ())
        return EncodedImage(convnet_dense(visual, pixels))

    @override
    def pool(self, encoded: EncodedImage, mask_logits: Tensor) -> Tensor:
        if self.regions == "MaskPooling":
            return mask_pooled(encoded.dense, mask_logits)
        inside = patches_inside(mask_logits, (encoded.dense.shape[2], encoded.dense.shape[3]))
        return mask_guided_tokens(self.clip.visual, encoded.states, inside)
