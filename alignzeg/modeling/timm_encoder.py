"""Image encoders of timm, with weights from the package index, a file or timm, and FPN on top."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import FPN
from timm.layers import freeze_batch_norm_2d
from timm.models import FeatureInfo
from torch import Tensor, nn

from alignzeg.modeling.freezing import freeze, validate_freezing
from alignzeg.modeling.pretrained import UNREADABLE, Keys, build_timm, check_weights, reason

STRIDES = (4, 8, 16, 32)
KEYS = Keys("ALIGNZEG.ENCODER.TIMM_MODEL", "ALIGNZEG.ENCODER.TIMM_WEIGHTS")
_GROUPS = 8


class TimmPyramid(Backbone):
    """The features of a timm network at strides 4, 8, 16 and 32, named res2 to res5.

    Batch norm is frozen: statistics and factors are those of the weights, in training too, so that
    small batches do not spoil them and the number of processes does not change the result.

    Args:
        model_name: a name of ``timm.list_models()``.
        weights: "" for random ones, "pretrained" or a tag of timm, a file, or "package:NAME".
        freeze_at: stages without gradient, 0 to 5, counted as Detectron2 does: 0 none, 1 the stem
            (all before the first stage of stride 4), 2 also that stage, 3 also that of stride 8,
            4 also that of stride 16, 5 all.

    Raises:
        ValueError: for an unknown network, weights that do not fit, a network that does not give
            these strides or whose stages cannot be told apart.
    """

    @configurable
    def __init__(self, *, model_name: str, weights: str = "", freeze_at: int = 0) -> None:
        super().__init__()
        network, _ = build_timm(model_name, weights, KEYS, features=True)
        # torch's types let a module's attributes be tensors or modules alone.
        info = cast(FeatureInfo, network.feature_info)
        strides = info.reduction()
        if not set(STRIDES) <= set(strides):
            raise ValueError(
                f"{KEYS.model} is {model_name!r}, which gives features at strides {strides}; "
                f"{list(STRIDES)} are needed, as ResNets, EfficientNets or ConvNeXts give them"
            )
        # Of several stages with one stride, the last has seen most.
        self._places = [len(strides) - 1 - strides[::-1].index(stride) for stride in STRIDES]
        self.network = freeze_batch_norm_2d(network).to(memory_format=torch.channels_last)
        self._out_features = [f"res{level + 2}" for level in range(len(STRIDES))]
        channels = info.channels()
        self._out_feature_channels = {
            name: channels[place]
            for name, place in zip(self._out_features, self._places, strict=True)
        }
        self._out_feature_strides = dict(zip(self._out_features, STRIDES, strict=True))
        self._try(model_name)
        if freeze_at:
            freeze(self.stages(), freeze_at)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Constructor arguments from cfg.ALIGNZEG.ENCODER and cfg.MODEL.BACKBONE."""
        return {
            "model_name": cfg.ALIGNZEG.ENCODER.TIMM_MODEL,
            "weights": cfg.ALIGNZEG.ENCODER.TIMM_WEIGHTS,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
        }

    def _try(self, model_name: str) -> None:
        """One small forward pass, so that what cannot be read is refused here."""
        side = 2 * STRIDES[-1]
        try:
            with torch.no_grad():
                features = self(torch.zeros(1, 3, side, side))
            found = {name: tuple(level.shape[1:]) for name, level in features.items()}
        except (*UNREADABLE, AssertionError) as error:
            raise ValueError(
                f"{KEYS.model} is {model_name!r}, which does not take images of {side} x {side} "
                f"pixels ({reason(error)}); choose a network for images of any size"
            ) from error
        wanted = {
            name: (shape.channels, side // shape.stride, side // shape.stride)
            for name, shape in self.output_shape().items()
        }
        if found != wanted:
            raise ValueError(f"{KEYS.model} is {model_name!r}, which gives {found}, not {wanted}")

    def stages(self) -> list[list[nn.Parameter]]:
        """Parameters of the stem and of the stages that end at strides 4, 8, 16 and 32, in turn.

        Raises:
            ValueError: if timm does not say where the network's stages end.
        """
        modules = dict(self.network.model.named_modules())
        order = list(modules)
        names = self.network.feature_info.module_name()
        if any(name not in modules for name in names):
            raise ValueError(
                "MODEL.BACKBONE.FREEZE_AT must be 0 for this network: timm does not say where its "
                "stages end"
            )

        def inside(module: str) -> list[int]:
            return [
                place
                for place, name in enumerate(order)
                if name == module or name.startswith(f"{module}.")
            ]

        first = self._places[0]
        start = inside(names[first - 1])[-1] + 1 if first else inside(names[0])[0]
        ends = [start, *(inside(names[place])[-1] + 1 for place in self._places)]
        begins = [0, *ends[:-1]]
        return [
            [
                parameter
                for name in order[begin:end]
                for parameter in modules[name].parameters(recurse=False)
            ]
            for begin, end in zip(begins, ends, strict=True)
        ]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(B, C, H/s, W/s) at every stride s of a normalised (B, 3, H, W) image."""
        # Convolutions of one thread are a third faster with the channels last.
        features = self.network(image.contiguous(memory_format=torch.channels_last))
        return {
            name: features[place]
            for name, place in zip(self._out_features, self._places, strict=True)
        }


def validate_timm_encoder(cfg: CfgNode) -> None:
    """Refuses settings of `build_timm_fpn_backbone`; nothing is read or downloaded.

    Raises:
        ValueError: naming the key, its value and the fix.
    """
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    if channels % _GROUPS:
        raise ValueError(
            f"MODEL.FPN.OUT_CHANNELS is {channels}; build_timm_fpn_backbone needs a multiple of "
            f"{_GROUPS}, such as 96"
        )
    validate_freezing(cfg, cfg.ALIGNZEG.ENCODER.TIMM_WEIGHTS)
    check_weights(cfg.ALIGNZEG.ENCODER.TIMM_MODEL, cfg.ALIGNZEG.ENCODER.TIMM_WEIGHTS, KEYS)


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """A timm network (ALIGNZEG.ENCODER.TIMM_MODEL) with FPN: p2 to p5 at strides 4, 8, 16, 32.

    MODEL.BACKBONE.FREEZE_AT is the number of frozen stages: 0 none, 1 the stem, 2 the stem and the
    first stage, and so on to 5, all. MODEL.FPN.OUT_CHANNELS are the channels of every level.
    """
    del input_shape  # three channels, as the weights have
    validate_timm_encoder(cfg)
    bottom_up = TimmPyramid(cfg)
    names = list(bottom_up.output_shape())
    return FPN(bottom_up, names, cfg.MODEL.FPN.OUT_CHANNELS, norm=partial(nn.GroupNorm, _GROUPS))
