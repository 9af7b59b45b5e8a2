"""Every config key of this project, once: default, meaning, allowed values, unit and source.

`alignzeg.config.table` makes Detectron2's config node, the checks before a run, and
`docs/config.md`.
"""

from __future__ import annotations

from detectron2.config import CfgNode

from alignzeg.config.table import ALIGNZEG


def add_alignzeg_config(cfg: CfgNode) -> None:
    """Adds the node ALIGNZEG, with its defaults, to a Detectron2 config."""
    cfg.ALIGNZEG = ALIGNZEG.node()
