"""What others would use: models of transformers, built from a config with random weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import open_clip
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from torch import Tensor, nn

import alignzeg.modeling.vlm.model as vlm_model

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def _resnet(quick: bool) -> object:
    from transformers import ResNetConfig

    small = {"embedding_size": 8, "hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1]}
    names = ["stage1", "stage2", "stage3", "stage4"]
    return ResNetConfig(out_features=names, **(small if quick else {}))


def maskformer(classes: int, quick: bool, auxiliary: bool = False) -> nn.Module:
    """The MaskFormer of transformers: ResNet-50, 100 queries, 6 decoder layers.

    With `auxiliary`, call it with `output_hidden_states`, from which it takes its layers.
    """
    from transformers import DetrConfig, MaskFormerConfig, MaskFormerForInstanceSegmentation

    logging.getLogger("transformers").setLevel(logging.ERROR)

    class LayersOnly(MaskFormerForInstanceSegmentation):
        """Scores what its layers give; the original also scores the zeros that enter the first."""

        def get_logits(self, outputs: Any) -> Any:
            if auxiliary:
                states = outputs.transformer_decoder_hidden_states
                outputs.transformer_decoder_hidden_states = states[1:]
            return super().get_logits(outputs)

    config = MaskFormerConfig(
        backbone_config=_resnet(quick),
        decoder_config=DetrConfig(decoder_layers=6, num_queries=100, dropout=0.0),
        use_auxiliary_loss=auxiliary,
        num_labels=classes,
    )
    return frozen_norm(LayersOnly(config))


def mask2former(classes: int, quick: bool) -> nn.Module:
    """The Mask2Former of transformers: ResNet-50, 100 queries, 6 and 9 layers."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    logging.getLogger("transformers").setLevel(logging.ERROR)
    layers = {"encoder_layers": 1, "decoder_layers": 2} if quick else {}
    config = Mask2FormerConfig(backbone_config=_resnet(quick), num_labels=classes, **layers)
    return frozen_norm(Mask2FormerForUniversalSegmentation(config))


def semantic_fpn(classes: int, quick: bool) -> nn.Module:
    """Detectron2's SemanticSegmentor: ResNet-50, FPN and a convolutional head."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = classes
    if quick:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 16, 4
        cfg.MODEL.RESNETS.STEM_OUT_CHANNELS, cfg.MODEL.FPN.OUT_CHANNELS = 8, 32
        cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    return build_model(cfg)


def frozen_norm(model: nn.Module) -> nn.Module:
    """Batch norm as our encoder has it: statistics and factors stay as they are."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
            module.forward = partial(_normalized_by_statistics, module)  # type: ignore[method-assign]
    return model


def _normalized_by_statistics(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)


@contextmanager
def random_clip() -> Iterator[None]:
    """OpenClipVLM is built with random weights, without a download, inside of this."""

    def build(name: str, weights: str) -> tuple[nn.Module, str]:
        del weights
        torch.manual_seed(0)
        return open_clip.create_model(name, load_weights=False).eval(), f"random {name}"

    with mock.patch.object(vlm_model, "load_clip", build):
        yield
