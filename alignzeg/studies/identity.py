"""When an earlier run may be used again: if all that it follows from is as it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from alignzeg.data.fingerprint import data_hash, fingerprint
from alignzeg.engine import setup_config
from alignzeg.engine.records.provenance import describe_weights
from alignzeg.files import file_hash
from alignzeg.modeling.pretrained import PACKAGE_PREFIX, weight_file
from alignzeg.modeling.timm_encoder import KEYS, build_timm_fpn_backbone
from alignzeg.registries import build_vlm


def described(config: str | Path, opts: Sequence[str]) -> dict[str, str]:
    """Hashes of everything but code that a trained model and its figures follow from.

    Args:
        config: YAML file.
        opts: KEY VALUE pairs over it. Where files are written does not count; MODEL.WEIGHTS counts
            by its content.

    Returns:
        "config", "data", "weights" and "plugins", each a hexadecimal hash.

    Raises:
        ValueError: if the config cannot work, or the data set or pretrained weights are not there.
    """
    cfg = setup_config(config, opts)
    parts = {
        "data": data_hash(fingerprint((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))),
        "weights": json.dumps(pretrained_hashes(cfg), sort_keys=True),
        "plugins": json.dumps([file_hash(file) for file in cfg.ALIGNZEG.PLUGINS]),
    }
    cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS, cfg.ALIGNZEG.VLM.CACHE_DIR = "", "", ""
    parts["config"] = cfg.dump()
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in parts.items()}


def pretrained_hashes(cfg: CfgNode) -> dict[str, object]:
    """Of the weights that a training starts from; weights of timm are known by their name."""
    encoder = cfg.ALIGNZEG.ENCODER.TIMM_WEIGHTS
    used = cfg.MODEL.BACKBONE.NAME == build_timm_fpn_backbone.__name__
    stored = used and (encoder.startswith(PACKAGE_PREFIX) or Path(encoder).is_file())
    return {
        "vlm": str(build_vlm(cfg).hash),
        "encoder": file_hash(weight_file(encoder, KEYS.weights)) if stored else "",
        "weights": describe_weights(cfg.MODEL.WEIGHTS),
    }
