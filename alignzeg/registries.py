"""The registries: one registry, one contract. Shapes as in `alignzeg.structures`.

A component is a class registered under its own name, with a typed keyword-only constructor
(`@configurable`); it is chosen by `NAME` in its config node. To add one, see the README.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

VLM_REGISTRY = Registry("VLM")
VLM_REGISTRY.__doc__ = """
Frozen vision-language models. An `nn.Module` without trainable parameters or checkpoint keys:

    embed_text(names) -> (K, D) unit length
    encode_image(image (B, 3, H, W), RGB in 0..255) -> an encoding that the next two accept
    embed_dense(image or encoding) -> (B, D, Hv, Wv)
    embed_regions(image or encoding, mask_logits (B, Q, h, w)) -> (B, Q, D) unit length
    embed_dim, logit_scale, id, hash -> int, float, str, str (of the weights)
"""

PROPOSAL_EXTRACTOR_REGISTRY = Registry("PROPOSAL_EXTRACTOR")
PROPOSAL_EXTRACTOR_REGISTRY.__doc__ = """
Class-agnostic mask extraction. Built as `cls(cfg, input_shape, dense_dim)`:

    forward(features: dict of (B, C, H/s, W/s), dense (B, D, Hv, Wv)) -> tuple[Proposals, ...]

One entry per decoder layer; the last is final.
"""

CLASSIFIER_REGISTRY = Registry("CLASSIFIER")
CLASSIFIER_REGISTRY.__doc__ = """
Proposals to class scores. Built as `cls(cfg, embed_dim, logit_scale)`:

    embed(region_embeds (..., D), query_embeds (..., C)) -> (..., D) unit length
    score(embeds (..., D), text (K, D)) -> (..., K+1) logits; index K is background
    background -> (M, D) unit-length prototypes
"""

SYNTHESIZER_REGISTRY = Registry("SYNTHESIZER")
SYNTHESIZER_REGISTRY.__doc__ = """
Features of classes that were never labelled, for training only. Built as `cls(cfg, embed_dim)`:

    forward(features (N, E), labels (N,), text (K, D)) -> Synthetic, possibly of no samples

The features are region embeddings beside what was learned; the head splits and normalises them.
"""

BIAS_CORRECTOR_REGISTRY = Registry("BIAS_CORRECTOR")
BIAS_CORRECTOR_REGISTRY.__doc__ = """
Correction of the bias towards seen classes. Built as `cls(cfg, embed_dim, logit_scale)`:

    indicate(embeds (..., D), region_embeds (..., D), seen_text (K_seen, D))
        -> (...) logits of "class not seen", or None
    examples(embeds (N, D), region_embeds (N, D), labels (N,), text (K, D), synthetic or None)
        -> (M,) logits and (M,) bool "class not seen" to learn from, or None
    correct(class_logits (..., K+1), unseen_logits (...) or None, unseen (K,) bool) -> (..., K+1)

`seen_text` are the prototypes of the classes seen in training, also when other names are asked for.
"""

HEAD_REGISTRY = Registry("HEAD")
HEAD_REGISTRY.__doc__ = """
Extractor, region embedding, classifier and corrector as one. Built as `cls(cfg, input_shape, vlm)`:

    forward(image (B, 3, H, W), features, text (K, D), seen_text (K_seen, D)) -> Outputs
    score(embeds (..., D), text (K, D)) -> (..., K+1)
    synthesize(region_embeds (N, D), query_embeds (N, C), labels (N,), text (K, D))
        -> SyntheticOutputs or None
    correct(outputs, unseen (K,) bool) -> (B, Q, K+1) scores after bias correction
    vlm, corrector -> the frozen model and the bias corrector
"""

CRITERION_REGISTRY = Registry("CRITERION")
CRITERION_REGISTRY.__doc__ = """
One loss family. Built as `cls(cfg)`:

    forward(outputs: Outputs, targets: list[Targets], matches: list[list[Matches]])
        -> dict of loss name to scalar, already weighted

`matches[layer][image]`. Names must be unique over all criteria of a run.
"""


def build(registry: Registry, name: str, cfg: CfgNode, *args: Any) -> Any:
    """Builds the component `name` of a registry.

    Raises:
        ValueError: if no such component is registered; the message lists those that are.
    """
    if name not in registry:
        known = sorted(key for key, _ in registry)
        raise ValueError(
            f"no {registry._name} named {name!r}; registered: {known}. "
            "A component of your own must be imported first: list its file in ALIGNZEG.PLUGINS"
        )
    return registry.get(name)(cfg, *args)


def build_vlm(cfg: CfgNode) -> Any:
    """Builds `cfg.ALIGNZEG.VLM.NAME`."""
    return build(VLM_REGISTRY, cfg.ALIGNZEG.VLM.NAME, cfg)


def build_extractor(cfg: CfgNode, input_shape: Any, dense_dim: int) -> Any:
    """Builds `cfg.ALIGNZEG.EXTRACTOR.NAME`."""
    return build(
        PROPOSAL_EXTRACTOR_REGISTRY, cfg.ALIGNZEG.EXTRACTOR.NAME, cfg, input_shape, dense_dim
    )


def build_classifier(cfg: CfgNode, embed_dim: int, logit_scale: float) -> Any:
    """Builds `cfg.ALIGNZEG.CLASSIFIER.NAME`."""
    return build(CLASSIFIER_REGISTRY, cfg.ALIGNZEG.CLASSIFIER.NAME, cfg, embed_dim, logit_scale)


def build_synthesizer(cfg: CfgNode, embed_dim: int) -> Any:
    """Builds `cfg.ALIGNZEG.SYNTHESIZER.NAME`, or None where it is empty."""
    name = cfg.ALIGNZEG.SYNTHESIZER.NAME
    return build(SYNTHESIZER_REGISTRY, name, cfg, embed_dim) if name else None


def build_corrector(cfg: CfgNode, embed_dim: int, logit_scale: float) -> Any:
    """Builds `cfg.ALIGNZEG.CORRECTOR.NAME`."""
    return build(BIAS_CORRECTOR_REGISTRY, cfg.ALIGNZEG.CORRECTOR.NAME, cfg, embed_dim, logit_scale)


def build_head(cfg: CfgNode, input_shape: Any, vlm: Any) -> Any:
    """Builds `cfg.ALIGNZEG.HEAD.NAME`."""
    return build(HEAD_REGISTRY, cfg.ALIGNZEG.HEAD.NAME, cfg, input_shape, vlm)


def build_criteria(cfg: CfgNode) -> list[Any]:
    """Builds every criterion listed in `cfg.ALIGNZEG.CRITERIA`."""
    return [build(CRITERION_REGISTRY, name, cfg) for name in cfg.ALIGNZEG.CRITERIA]
