"""The registries: one registry, one contract, which stands in `alignzeg.contracts`.

A component is a class registered under its own name; it is chosen by `NAME` in its config node.
To add one, see docs/extend.md.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

from alignzeg.contracts import (
    ClassifierContract,
    CorrectorContract,
    CriterionContract,
    ExtractorContract,
    HeadContract,
    SynthesizerContract,
    VLMContract,
)


def _registry(name: str, contract: type) -> Registry:
    registry = Registry(name)
    registry.__doc__ = contract.__doc__
    return registry


VLM_REGISTRY = _registry("VLM", VLMContract)
PROPOSAL_EXTRACTOR_REGISTRY = _registry("PROPOSAL_EXTRACTOR", ExtractorContract)
CLASSIFIER_REGISTRY = _registry("CLASSIFIER", ClassifierContract)
SYNTHESIZER_REGISTRY = _registry("SYNTHESIZER", SynthesizerContract)
BIAS_CORRECTOR_REGISTRY = _registry("BIAS_CORRECTOR", CorrectorContract)
HEAD_REGISTRY = _registry("HEAD", HeadContract)
CRITERION_REGISTRY = _registry("CRITERION", CriterionContract)

TRAINER_REGISTRY = Registry("TRAINER")
TRAINER_REGISTRY.__doc__ = """
Trainers. A meta-architecture names its own in the class attribute TRAINER, else it is `Trainer`.
Built as `cls(cfg)`; a subclass of `alignzeg.engine.Trainer` has all of it:

    checkpointer, model, start_iter
    resume_or_load(resume, allow_rescale)
    train() -> results of the last evaluation
"""


def find(registry: Registry, name: str) -> Any:
    """The component `name` of a registry, a class.

    Raises:
        ValueError: if no such component is registered; the message lists those that are.
    """
    if name not in registry:
        known = sorted(key for key, _ in registry)
        raise ValueError(
            f"no {registry._name} named {name!r}; registered: {known}. "
            "A component of your own must be imported first: list its file in ALIGNZEG.PLUGINS"
        )
    return registry.get(name)


def build(registry: Registry, name: str, cfg: CfgNode, *args: Any) -> Any:
    """Builds the component `name` of a registry; errors as `find`."""
    return find(registry, name)(cfg, *args)


def build_vlm(cfg: CfgNode) -> VLMContract:
    """Builds `cfg.ALIGNZEG.VLM.NAME`."""
    return build(VLM_REGISTRY, cfg.ALIGNZEG.VLM.NAME, cfg)


def build_extractor(cfg: CfgNode, input_shape: Any, dense_dim: int) -> ExtractorContract:
    """Builds `cfg.ALIGNZEG.EXTRACTOR.NAME`."""
    return build(
        PROPOSAL_EXTRACTOR_REGISTRY, cfg.ALIGNZEG.EXTRACTOR.NAME, cfg, input_shape, dense_dim
    )


def build_classifier(cfg: CfgNode, embed_dim: int, logit_scale: float) -> ClassifierContract:
    """Builds `cfg.ALIGNZEG.CLASSIFIER.NAME`."""
    return build(CLASSIFIER_REGISTRY, cfg.ALIGNZEG.CLASSIFIER.NAME, cfg, embed_dim, logit_scale)


def build_synthesizer(cfg: CfgNode, embed_dim: int) -> SynthesizerContract | None:
    """Builds `cfg.ALIGNZEG.SYNTHESIZER.NAME`, or None where it is empty."""
    name = cfg.ALIGNZEG.SYNTHESIZER.NAME
    return build(SYNTHESIZER_REGISTRY, name, cfg, embed_dim) if name else None


def build_corrector(cfg: CfgNode, embed_dim: int, logit_scale: float) -> CorrectorContract:
    """Builds `cfg.ALIGNZEG.CORRECTOR.NAME`."""
    return build(BIAS_CORRECTOR_REGISTRY, cfg.ALIGNZEG.CORRECTOR.NAME, cfg, embed_dim, logit_scale)


def build_head(cfg: CfgNode, input_shape: Any, vlm: VLMContract) -> HeadContract:
    """Builds `cfg.ALIGNZEG.HEAD.NAME`."""
    return build(HEAD_REGISTRY, cfg.ALIGNZEG.HEAD.NAME, cfg, input_shape, vlm)


def build_criteria(cfg: CfgNode) -> list[CriterionContract]:
    """Builds every criterion listed in `cfg.ALIGNZEG.CRITERIA`."""
    return [build(CRITERION_REGISTRY, name, cfg) for name in cfg.ALIGNZEG.CRITERIA]
