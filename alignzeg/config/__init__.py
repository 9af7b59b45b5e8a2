"""Every config key of this project: default, unit and source. All of them live under ALIGNZEG.

[paper] marks a value of the AlignZeg paper (arXiv 2404.05667), [M2F] of Mask2Former, [ours] a
choice of this project.
"""

from __future__ import annotations

from detectron2.config import CfgNode

from alignzeg.config.parts import (
    add_classification,
    add_encoder,
    add_extractor,
    add_generation,
    add_losses,
    add_vlm,
)
from alignzeg.config.running import add_checkpoint, add_data, add_inference, add_solver


def add_alignzeg_config(cfg: CfgNode) -> None:
    """Adds the node ALIGNZEG, with its defaults, to a Detectron2 config."""
    node = cfg.ALIGNZEG = CfgNode()
    # Python files with components of your own, imported before the model is built.
    node.PLUGINS = []
    # Loss families, by registered name.
    node.CRITERIA = ["MaskCriterion", "ClassCriterion"]
    add_vlm(node)
    add_encoder(node)
    add_extractor(node)
    add_classification(node)
    add_losses(node)
    add_generation(node)
    add_data(node)
    add_inference(node)
    add_solver(node)
    add_checkpoint(node)
