"""The frozen vision-language model: any open_clip model, read for names, pictures and regions.

Shape legend: B images, Q proposals, K names, D text channels, P patches (row-major), Hv Wv the
dense grid.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from open_clip.model import CLIP
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer, text_global_pool
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from alignzeg.modeling.regions import (
    check_tower,
    dense_values,
    mask_guided_tokens,
    patch_grid,
    patches_inside,
    vit_states,
)
from alignzeg.modeling.templates import resolve_templates
from alignzeg.registries import VLM_REGISTRY

logger = logging.getLogger(__name__)

ASSETS = Path(__file__).parent.parent / "assets"
REGION_MODES = ("MaskGuidedTokens", "MaskPooling")
_PROMPT_BATCH = 256
_CONV_STRIDE = 32
_UNREADABLE = (
    RuntimeError,
    LookupError,
    ValueError,
    OSError,
    EOFError,
    TypeError,
    AttributeError,
    StopIteration,
    pickle.UnpicklingError,
    SafetensorError,
)


@dataclass(frozen=True)
class EncodedImage:
    """One pass over a batch of pictures, from which dense features and regions are both read.

    Attributes:
        dense: (B, D, Hv, Wv) patch features in the text space, not normalised.
        states: what enters each of the last blocks, each (B, 1+P, W); empty unless regions are
            read by MaskGuidedTokens.
    """

    dense: Tensor
    states: tuple[Tensor, ...] = ()


# ------------------------------------------------------------------------------ weights
def bundled_models() -> dict[str, Path]:
    """Names of the models this package ships, each with its JSON config."""
    return {path.stem: path for path in sorted(ASSETS.glob("*.json"))}


def _check_model(model_name: str) -> None:
    """Make the bundled configs known to open_clip and refuse an unknown model."""
    for path in bundled_models().values():
        open_clip.add_model_config(path)
    if model_name not in open_clip.list_models():
        close = [
            name for name in open_clip.list_models() if model_name[:5].lower() == name[:5].lower()
        ]
        raise ValueError(
            f"unknown CLIP model {model_name!r}: set ALIGNZEG.VLM.MODEL to one of "
            f"{sorted(bundled_models())} "
            f"or to a name of open_clip.list_models(), such as {close[:6] or ['ViT-B-16', 'RN50']}"
        )


def _trained_with_quick_gelu(model_name: str, weights: str) -> bool | None:
    """What is known, without opening the weights, about the activation they were trained with."""
    base = model_name.removesuffix("-quickgelu")
    family = (model_name, base, f"{base}-quickgelu")
    for name in family:
        if open_clip.is_pretrained_cfg(name, weights):
            return bool(open_clip.get_pretrained_cfg(name, weights).get("quick_gelu", False))
    path = Path(weights)
    if path.suffix == ".safetensors" and path.is_file():
        try:
            with safe_open(path, framework="pt") as stream:
                said = (stream.metadata() or {}).get("quick_gelu", "").lower()
        except _UNREADABLE:
            return None
        if said:
            return said == "true"
    quick = {
        tag
        for name in family
        for tag in open_clip.list_pretrained_tags_by_model(name)
        if open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)
    }
    return True if any(tag in path.name.lower().replace("-", "_") for tag in quick) else None


def _check_activation(model_name: str, weights: str) -> None:
    """Refuse weights trained with the other activation; nothing is downloaded before this."""
    trained = _trained_with_quick_gelu(model_name, weights)
    built = bool(open_clip.get_model_config(model_name).get("quick_gelu", False))
    if trained is None or trained == built:
        return
    base = model_name.removesuffix("-quickgelu")
    fix = f"{base}-quickgelu" if trained else base
    raise ValueError(
        f"model {model_name!r} is built with {'QuickGELU' if built else 'GELU'}, but weights "
        f"{weights!r} were "
        f"trained with {'QuickGELU' if trained else 'GELU'}: set ALIGNZEG.VLM.MODEL to {fix!r}, "
        "or choose other weights"
    )


def _weight_file(model_name: str, weights: str) -> Path:
    """The local weight file; a pretrained tag is downloaded by open_clip if it is not cached."""
    if not weights:
        path = ASSETS / f"{model_name}.safetensors"
        if model_name in bundled_models() and path.is_file():
            return path
        tags = open_clip.list_pretrained_tags_by_model(model_name)
        raise ValueError(
            f"model {model_name!r} comes without weights: set ALIGNZEG.VLM.WEIGHTS to a local file"
            + (f" or to one of its tags {tags}" if tags else "")
        )
    if open_clip.is_pretrained_cfg(model_name, weights):
        try:
            return Path(
                open_clip.download_pretrained(open_clip.get_pretrained_cfg(model_name, weights))
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise ValueError(
                f"the weights {weights!r} of {model_name!r} could not be downloaded ({error}): "
                "check the network, or set ALIGNZEG.VLM.WEIGHTS to a local file"
            ) from error
    path = Path(weights).expanduser()
    if path.is_file():
        return path
    tags = open_clip.list_pretrained_tags_by_model(model_name)
    raise ValueError(
        f"ALIGNZEG.VLM.WEIGHTS is {weights!r}, which is neither a file nor a pretrained tag of "
        f"{model_name!r}; its tags: {tags or 'none'}"
    )


def _file_hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back open_clip's warning that a model has no weights yet: they are loaded next."""
    root = logging.getLogger()

    def expected(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("No pretrained weights loaded")

    root.addFilter(expected)
    try:
        yield
    finally:
        root.removeFilter(expected)


def load_clip(model_name: str, weights: str) -> tuple[CLIP, str]:
    """Build an open_clip model and load its weights, without running any code stored with them.

    Args:
        model_name: a name of ``open_clip.list_models()``, or a bundled one.
        weights: "" for bundled weights, a pretrained tag of the model, or a path (safetensors
            preferred).

    Returns:
        The model in evaluation mode (fp32) and the sha256 of its weight file.

    Raises:
        ValueError: unknown model or tag, missing, unreadable or unfitting weights, or weights
            trained with the other GELU.
    """
    _check_model(model_name)
    _check_activation(model_name, weights)
    path = _weight_file(model_name, weights)
    tag = open_clip.get_pretrained_cfg(model_name, weights) if weights else {}
    kept = {key: tag[key] for key in ("mean", "std", "interpolation") if key in tag}
    with _quiet():
        model = open_clip.create_model(
            model_name, load_weights=False, force_preprocess_cfg=kept or None
        )
    try:
        open_clip.load_checkpoint(model, str(path), strict=True, weights_only=True)
    except _UNREADABLE as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"weight file {str(path)!r} cannot be loaded into {model_name!r} ({reason[0][:200]}): "
            "it is damaged, of another "
            "model, or not plain weights; set ALIGNZEG.VLM.MODEL to the model it was saved from, "
            "or save its "
            "state_dict as safetensors"
        ) from error
    return model.eval(), _file_hash(path)


# ------------------------------------------------------------------------------ text
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


class _TextCache:
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
        except _UNREADABLE as error:
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


# ------------------------------------------------------------------------------ pictures
def _resnet_dense(visual: ModifiedResNet, image: Tensor) -> Tensor:
    """(B, D, h, w) of an open_clip ResNet: the value path of its attention pooling.

    Source: arXiv:2112.01071 (MaskCLIP).
    """
    maps = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(image)))))
    pool = visual.attnpool
    return pool.c_proj(pool.v_proj(maps.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


def _timm_dense(visual: TimmModel, image: Tensor) -> Tensor:
    """(B, D, h, w) of a timm ConvNet: its head applied at every place, not to the mean."""
    maps = visual.trunk.forward_features(image)
    head = visual.trunk.head
    maps = head.norm(maps) if hasattr(head, "norm") else maps
    places = maps.permute(0, 2, 3, 1)
    return visual.head(getattr(head, "pre_logits", nn.Identity())(places)).permute(0, 3, 1, 2)


def _check_visual(visual: nn.Module, model_name: str, regions: str, blocks: int) -> None:
    """Refuse what cannot be read as asked."""
    if regions not in REGION_MODES:
        raise ValueError(f"ALIGNZEG.VLM.REGIONS is {regions!r}: choose one of {list(REGION_MODES)}")
    if isinstance(visual, VisionTransformer):
        check_tower(visual)
        depth = len(visual.transformer.resblocks)
        if not 1 <= blocks <= depth:
            raise ValueError(
                f"ALIGNZEG.VLM.REGION_BLOCKS is {blocks}: {model_name!r} has {depth} blocks, "
                f"choose 1 to {depth}"
            )
        return
    if regions == "MaskGuidedTokens":
        raise ValueError(
            f"MaskGuidedTokens needs a vision transformer and {model_name!r} is none: set "
            "ALIGNZEG.VLM.REGIONS to "
            "MaskPooling, or ALIGNZEG.VLM.MODEL to a ViT such as ViT-B-16"
        )
    convnet = (
        isinstance(visual, TimmModel)
        and hasattr(visual.trunk, "stages")
        and "pool" not in visual.head._modules
    )
    if not convnet and not isinstance(visual, ModifiedResNet):
        raise ValueError(
            f"the image tower of {model_name!r} ({type(visual).__name__}) has no dense features "
            "this project can read: "
            "set ALIGNZEG.VLM.MODEL to a ViT, an open_clip ResNet (RN50, ...) or a ConvNeXt"
        )


@VLM_REGISTRY.register()
class OpenClipVLM(nn.Module):
    """A frozen open_clip model.

    The CLIP is not a submodule: it has no trainable parameter, no key in a checkpoint and none
    missing from one, and `train()` does not reach it; devices and dtypes do.

    Args:
        model_name: a name of ``open_clip.list_models()``, or "alignzeg-tiny", which ships with the
            package.
        weights: "" for bundled weights, a pretrained tag, or a local .safetensors or .pt file.
        templates: "single", "vild", "imagenet" or sentences with one ``{}``.
        regions: "MaskGuidedTokens" (ViT) or "MaskPooling" (any tower).
        region_blocks: last blocks that a region's class token runs through, 1 to the depth of the
            ViT.
        image_size: shorter side in pixels that the tower sees; 0 is the model's own.
        cache_dir: folder of text prototypes; "" is ``~/.cache/alignzeg/text``.

    Raises:
        ValueError: for an unknown model, tag, template or region mode, weights that do not fit, or
            a tower that cannot be read that way; raised before any download where that is possible.
    """

    @configurable
    def __init__(
        self,
        *,
        model_name: str = "alignzeg-tiny",
        weights: str = "",
        templates: Sequence[str] = ("vild",),
        regions: str = "MaskGuidedTokens",
        region_blocks: int = 3,
        image_size: int = 0,
        cache_dir: str = "",
    ) -> None:
        super().__init__()
        self.templates = resolve_templates(templates)
        if image_size < 0:
            raise ValueError(
                f"ALIGNZEG.VLM.IMAGE_SIZE is {image_size}: give the shorter side in pixels, or 0"
            )
        clip, self._hash = load_clip(model_name, weights)
        _check_visual(clip.visual, model_name, regions, region_blocks)
        clip.requires_grad_(False)
        self._hidden = (clip,)
        self._tokenizer = open_clip.get_tokenizer(model_name)
        self._id = f"{model_name}/{Path(weights).name or 'bundled'}"
        self._preprocess = dict(clip.visual.preprocess_cfg)
        own = self._preprocess["size"]
        self.image_size = image_size or (own if isinstance(own, int) else min(own))
        self.regions = regions
        self.region_blocks = region_blocks
        self._cache = _TextCache(
            Path(cache_dir).expanduser()
            if cache_dir
            else Path.home() / ".cache" / "alignzeg" / "text"
        )

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
            "cache_dir": node.CACHE_DIR,
        }

    # -------------------------------------------------------------------------------- module habits
    @property
    def clip(self) -> CLIP:
        """The frozen open_clip model."""
        return self._hidden[0]

    def _apply(self, fn: Callable, recurse: bool = True) -> OpenClipVLM:
        self.clip._apply(fn, recurse)
        return super()._apply(fn, recurse)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.clip.logit_scale.device

    @property
    def id(self) -> str:
        """Model and weights by name, for checkpoints and messages."""
        return self._id

    @property
    def hash(self) -> str:
        """sha256 of the weight file."""
        return self._hash

    @property
    def embed_dim(self) -> int:
        """D, the channels of the text space."""
        text = self.clip if isinstance(self.clip, CLIP) else self.clip.text
        projection = text.text_projection
        if isinstance(projection, nn.Linear):
            return projection.out_features
        return text.ln_final.normalized_shape[0] if projection is None else projection.shape[1]

    @property
    def logit_scale(self) -> float:
        """exp(logit_scale), at most 100: cosines times this are logits."""
        return min(float(self.clip.logit_scale.exp()), 100.0)

    # ---------------------------------------------------------------------------------------- names
    @torch.no_grad()
    def embed_text(self, names: Sequence[str]) -> Tensor:
        """Text prototypes of class names.

        Args:
            names: K class names, not empty.

        Returns:
            (K, D) float32, unit length: the normalised mean over templates of normalised prompt
            embeddings.

        Raises:
            ValueError: if there are no names, or an empty one.
        """
        names = list(names)
        if not names or any(not name.strip() for name in names):
            raise ValueError(f"class names must not be empty; got {names}")
        identity = {"id": self.id, "hash": self.hash, "templates": self.templates, "names": names}
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        shape = (len(names), self.embed_dim)
        return self._cache.get(key, shape, lambda: self._prototypes(names)).to(self.device)

    def _prototypes(self, names: list[str]) -> Tensor:
        prompts = [template.replace("{}", name) for name in names for template in self.templates]
        parts = []
        with torch.autocast(self.device.type, enabled=False):
            for start in range(0, len(prompts), _PROMPT_BATCH):
                tokens = self._tokenizer(prompts[start : start + _PROMPT_BATCH]).to(self.device)
                parts.append(F.normalize(encode_prompts(self.clip, tokens).float(), dim=-1))
        means = torch.cat(parts).unflatten(0, (len(names), len(self.templates))).mean(dim=1)
        return F.normalize(means, dim=-1)

    # ------------------------------------------------------------------------------------- pictures
    def _prepared(self, image: Tensor) -> Tensor:
        """Resize to the model's resolution (aspect kept, sides in whole patches) and normalise."""
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(
                f"pictures must be (B, 3, H, W) RGB in 0..255; got {tuple(image.shape)}"
            )
        visual = self.clip.visual
        unit = (
            visual.patch_size
            if isinstance(visual, VisionTransformer)
            else (_CONV_STRIDE, _CONV_STRIDE)
        )
        scale = self.image_size / min(image.shape[-2:])
        size = [
            max(1, round(side * scale / step)) * step
            for side, step in zip(image.shape[-2:], unit, strict=True)
        ]
        image = image.float()
        if size != list(image.shape[-2:]):
            image = F.interpolate(
                image, size=size, mode="bicubic", align_corners=False, antialias=True
            ).clamp(0, 255)
        mean = image.new_tensor(self._preprocess["mean"]).view(1, 3, 1, 1)
        std = image.new_tensor(self._preprocess["std"]).view(1, 3, 1, 1)
        return ((image / 255 - mean) / std).to(self.clip.logit_scale.dtype)

    @torch.no_grad()
    def encode_image(self, image: Tensor) -> EncodedImage:
        """One pass over pictures; give the result to `embed_dense` and `embed_regions`.

        Args:
            image: (B, 3, H, W) RGB in 0..255, any size, not normalised.

        Returns:
            What both of the next need.

        Raises:
            ValueError: if the shape is not (B, 3, H, W).
        """
        pixels, visual = self._prepared(image), self.clip.visual
        if isinstance(visual, VisionTransformer):
            states = vit_states(visual, pixels, self.region_blocks)
            grid = patch_grid(visual, *pixels.shape[-2:])
            dense = dense_values(visual, states).transpose(1, 2).unflatten(2, grid)
            return EncodedImage(dense, states if self.regions == "MaskGuidedTokens" else ())
        return EncodedImage(
            (_resnet_dense if isinstance(visual, ModifiedResNet) else _timm_dense)(visual, pixels)
        )

    def embed_dense(self, image: Tensor | EncodedImage) -> Tensor:
        """Dense features in the text space.

        Args:
            image: pictures (B, 3, H, W) RGB in 0..255, or what `encode_image` made of them.

        Returns:
            (B, D, Hv, Wv), not normalised; Hv and Wv are the tower's grid of patches.
        """
        return (image if isinstance(image, EncodedImage) else self.encode_image(image)).dense

    @torch.no_grad()
    def embed_regions(self, image: Tensor | EncodedImage, mask_logits: Tensor) -> Tensor:
        """Embeddings of mask proposals.

        Args:
            image: pictures (B, 3, H, W) RGB in 0..255, or what `encode_image` made of them.
            mask_logits: (B, Q, h, w) at any resolution, covering the same picture.

        Returns:
            (B, Q, D) unit length. MaskGuidedTokens: a copy of the class token that read only the
            patches that the mask touches (probability over one half). MaskPooling: the
            mask-weighted mean of normalised dense features. A mask that is empty takes its most
            likely patch.

        Raises:
            ValueError: if the masks are not (B, Q, h, w) with the pictures' B.
        """
        encoded = image if isinstance(image, EncodedImage) else self.encode_image(image)
        dense = encoded.dense
        if mask_logits.ndim != 4 or mask_logits.shape[0] != dense.shape[0]:
            raise ValueError(
                f"mask_logits must be ({dense.shape[0]}, Q, h, w); got {tuple(mask_logits.shape)}"
            )
        grid = (dense.shape[2], dense.shape[3])
        if mask_logits.shape[1] == 0:
            return dense.new_zeros(dense.shape[0], 0, dense.shape[1], dtype=torch.float32)
        if self.regions == "MaskGuidedTokens":
            regions = mask_guided_tokens(
                self.clip.visual, encoded.states, patches_inside(mask_logits, grid)
            )
        else:
            regions = _pooled(dense, mask_logits)
        return F.normalize(regions.float(), dim=-1)


def _pooled(dense: Tensor, mask_logits: Tensor) -> Tensor:
    """(B, Q, D): mean of normalised (B, D, Hv, Wv), weighted by the mask probability."""
    grid = (dense.shape[2], dense.shape[3])
    shares = F.adaptive_avg_pool2d(mask_logits.float().sigmoid(), grid).flatten(2)
    solid = shares.amax(dim=2, keepdim=True) > 1e-4
    shares = torch.where(solid, shares, patches_inside(mask_logits, grid).float())
    shares = shares / shares.sum(dim=2, keepdim=True)
    return shares @ F.normalize(dense.float(), dim=1).flatten(2).transpose(1, 2)
