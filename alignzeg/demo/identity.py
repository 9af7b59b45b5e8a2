"""When an earlier run may be used again: if all that it follows from is as it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from detectron2.config import CfgNode

import alignzeg
from alignzeg.data.fingerprint import data_hash, fingerprint
from alignzeg.demo.plan import Plan
from alignzeg.engine import setup_config
from alignzeg.engine.records.provenance import describe_weights
from alignzeg.files import file_hash
from alignzeg.modeling.pretrained import PACKAGE_PREFIX, weight_file
from alignzeg.modeling.timm_encoder import KEYS, build_timm_fpn_backbone
from alignzeg.registries import build_vlm

PACKAGE = Path(alignzeg.__file__).parent
# What a trained model depends on; report and prediction may change without a new training.
SOURCES = (
    *("config", "data", "engine", "evaluation", "losses", "modeling"),
    *("structures.py", "registries.py", "assets/*.json", "assets/*.safetensors"),
)
_SUFFIXES = (".py", ".json", ".safetensors")


def identity(plan: Plan, name: str) -> str:
    """A hash of everything that a trained model follows from: config, data, code, weights.

    Raises:
        ValueError: if the data set is not there yet, or pretrained weights are not.
        RuntimeError: if a part of the code is not where it is looked for.
    """
    cfg = setup_config(plan.config(name), plan.run_opts(name))
    cfg.OUTPUT_DIR = ""
    digest = hashlib.sha256(cfg.dump().encode())
    digest.update(data_hash(fingerprint((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))).encode())
    digest.update(json.dumps(pretrained_hashes(cfg), sort_keys=True).encode())
    for file in source_files(SOURCES):
        digest.update(str(file.relative_to(PACKAGE)).encode() + b"\0")
        digest.update(file.read_bytes())
    for plugin in cfg.ALIGNZEG.PLUGINS:
        digest.update(Path(plugin).read_bytes())
    return digest.hexdigest()


def source_files(sources: Iterable[str]) -> Iterator[Path]:
    """The files of the package that folders, files and patterns name.

    Raises:
        RuntimeError: if one of them names no file, as it would be left out without a word.
    """
    for source in sources:
        paths = sorted(PACKAGE.glob(source))
        files = [
            file
            for path in paths
            for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
            if file.is_file() and file.suffix in _SUFFIXES
        ]
        if not files:
            raise RuntimeError(f"there is no {source} in {PACKAGE}; mend the list in {__file__}")
        yield from files


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
