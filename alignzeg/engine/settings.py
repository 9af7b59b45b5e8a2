"""The config of a run, and everything that can be wrong with it, found before any work starts."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from alignzeg.arguments import require_folder
from alignzeg.config.keys import Choices
from alignzeg.config.reading import config_from_file, config_from_yaml
from alignzeg.config.values import validate_values
from alignzeg.data.checks import classes_found, shared_images
from alignzeg.data.custom import is_custom, setup_custom_data
from alignzeg.data.labels import eval_vocabulary, known_names
from alignzeg.data.pseudo import setup_pseudo_labels, validate_pseudo_labels
from alignzeg.engine.checkpoints.reading import require_trust
from alignzeg.modeling.timm_encoder import build_timm_fpn_backbone, validate_timm_encoder
from alignzeg.modeling.vlm import ImageNetVLM, OpenClipVLM
from alignzeg.modeling.vlm.classifier import check_classifier
from alignzeg.modeling.vlm.sentences import SentenceEncoder
from alignzeg.modeling.vlm.weights import check_clip

logger = logging.getLogger(__name__)

# Figures of an evaluation that a checkpoint can be chosen by; higher is better.
FIGURES = ("pAcc", "mIoU", "sIoU", "uIoU", "hIoU")


def setup_config(config_file: str | Path = "", opts: Sequence[str] = ()) -> CfgNode:
    """Builds the config of a run, see `config_from_file`, and registers the data sets it describes.

    Raises:
        ValueError: as `config_from_file`, or on data sets that cannot be what the config says.
    """
    cfg = config_from_file(config_file, opts)
    setup_custom_data(cfg)
    setup_pseudo_labels(cfg)
    return cfg


def setup_config_of(file: str | Path, **allowed: Any) -> CfgNode:
    """`setup_config` of the config.yaml in somebody's run, whose plugins run only if allowed.

    What is `allowed` is said by `plugins` and `trust_code`, see `config_from_yaml`.

    Raises:
        ValueError: as `config_from_yaml`, or on data sets that cannot be what the config says.
    """
    text = Path(file).read_text(encoding="utf-8-sig")
    cfg = config_from_yaml(text, (), Path(file).parent, **allowed)
    setup_custom_data(cfg)
    setup_pseudo_labels(cfg)
    return cfg


def validate(
    cfg: CfgNode,
    *,
    world_size: int = 1,
    training: bool = True,
    needs_weights: bool = False,
    trust_pickle: bool = False,
) -> None:
    """Refuses a config that cannot run.

    An evaluation needs less than a training. `trust_pickle` takes weights that are a pickle from
    anywhere.

    Raises:
        ValueError: naming the first key that is wrong, its value and what it could be. Missing
            files of the data sets are found too.
    """
    validate_values(cfg, training)
    require_folder(cfg.OUTPUT_DIR, "OUTPUT_DIR")
    validate_pretrained(cfg)
    validate_weights(cfg, needs_weights, trust_pickle)
    if training:
        validate_training(cfg, world_size)
    validate_datasets(cfg, training)


def validate_pretrained(cfg: CfgNode) -> None:
    """Refuses networks, packages and folders that are not there, and VLMs that cannot be read.

    Nothing is downloaded.
    """
    if cfg.MODEL.BACKBONE.NAME == build_timm_fpn_backbone.__name__:
        validate_timm_encoder(cfg)
    vlm = cfg.ALIGNZEG.VLM
    if vlm.NAME == ImageNetVLM.__name__:
        check_classifier(vlm.MODEL, vlm.WEIGHTS, vlm.OUTPUT_STRIDE)
        SentenceEncoder(vlm.TEXT_WEIGHTS)
    elif vlm.NAME == OpenClipVLM.__name__:
        check_clip(vlm.MODEL, vlm.WEIGHTS, vlm.REGIONS, vlm.REGION_BLOCKS)


def validate_weights(cfg: CfgNode, needed: bool, trust_pickle: bool = False) -> None:
    """Refuses a weight file that is not there, or an untrusted pickle."""
    weights = cfg.MODEL.WEIGHTS
    if not weights and needed:
        raise ValueError(
            "MODEL.WEIGHTS is empty; give the checkpoint to evaluate, as --weights FILE"
        )
    if weights and "://" not in weights and not os.path.isfile(weights):
        raise ValueError(f"MODEL.WEIGHTS is {weights!r}, but there is no such file")
    if weights.endswith(".pkl"):
        require_trust(weights, weights, trust_pickle)


def validate_training(cfg: CfgNode, world_size: int) -> None:
    """Refuses batches, learning rates, a choice of checkpoints and trackers that cannot be."""
    total, accumulate = cfg.SOLVER.IMS_PER_BATCH, cfg.ALIGNZEG.SOLVER.ACCUMULATE
    batches = accumulate * world_size
    if total % batches:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {total}, the total batch of one step; it must be a multiple "
            f"of {world_size} processes x ALIGNZEG.SOLVER.ACCUMULATE {accumulate}, such as "
            f"{batches * max(1, total // batches)}"
        )
    if cfg.SOLVER.REFERENCE_WORLD_SIZE and cfg.ALIGNZEG.SOLVER.REFERENCE_BATCH:
        raise ValueError(
            "SOLVER.REFERENCE_WORLD_SIZE and ALIGNZEG.SOLVER.REFERENCE_BATCH would both scale the "
            "learning rate; set one of them to 0"
        )
    best = cfg.ALIGNZEG.CHECKPOINT.BEST
    if best:
        names = [""] if len(cfg.DATASETS.TEST) == 1 else [f"{n}/" for n in cfg.DATASETS.TEST]
        known = [f"{name}sem_seg/{figure}" for name in names for figure in FIGURES]
        Choices(tuple(known)).check("ALIGNZEG.CHECKPOINT.BEST", best)
    name = cfg.ALIGNZEG.TRACK.NAME
    if name and importlib.util.find_spec(name) is None:
        raise ValueError(
            f"ALIGNZEG.TRACK.NAME is {name!r}, but the package {name} is not installed; "
            "pip install 'alignzeg[track]', or leave the key empty"
        )
    if name and not cfg.ALIGNZEG.TRACK.PROJECT.strip():
        raise ValueError("ALIGNZEG.TRACK.PROJECT is empty; give the name of a project")


def validate_datasets(cfg: CfgNode, training: bool) -> None:
    """Refuses data sets that are not registered, or whose files are not there or wrong."""
    validate_pseudo_labels(cfg)
    for group in ("TRAIN", "TEST"):
        names = cfg.DATASETS[group]
        # The training set is read in evaluation too: it says which classes were seen.
        if not names and training == (group == "TRAIN"):
            raise ValueError(f"DATASETS.{group} is empty; give a data set; {known_names('')}")
        for name in names:
            if name not in DatasetCatalog:
                raise ValueError(
                    f"DATASETS.{group} names the unknown data set {name!r}; {known_names(name)}"
                )
    trained = cfg.DATASETS.TRAIN if training else ()
    for name in dict.fromkeys((*cfg.DATASETS.TEST, *trained)):
        limit = -1 if is_custom(name) else cfg.ALIGNZEG.DATA.CHECK_FILES
        _, found = classes_found(name, limit, training=name in trained)
        if training and found is not None and name in cfg.DATASETS.TEST:
            _require_defined_best(cfg, name, found)
    for name in dict.fromkeys(cfg.DATASETS.TEST if training else ()):
        total, shared = len(DatasetCatalog.get(name)), shared_images(cfg.DATASETS.TRAIN, name)
        if shared:
            logger.warning(
                "%d of %d images of %s are in %s: its figures do not tell what the model does on "
                "pictures that it has not seen",
                *(shared, total, name, " or ".join(cfg.DATASETS.TRAIN)),
            )


def _require_defined_best(cfg: CfgNode, name: str, found: frozenset[str]) -> None:
    """Refuses to choose checkpoints by a figure of classes of which a test set has no pixel."""
    best = cfg.ALIGNZEG.CHECKPOINT.BEST
    if not best or ("/sem_seg" in best and not best.startswith(f"{name}/")):
        return
    vocabulary, figure = eval_vocabulary(cfg, name), best.rpartition("/")[2]
    for kind, ids in {"seen": vocabulary.seen_ids, "unseen": vocabulary.unseen_ids}.items():
        needed = figure in (f"{kind[0]}IoU", "hIoU")
        if needed and found.isdisjoint(vocabulary.names[i] for i in ids):
            raise ValueError(
                f"ALIGNZEG.CHECKPOINT.BEST is {best!r}, but no pixel of {name} is of a class that "
                f"is {kind} there, so it is never defined; choose by mIoU, or leave the key empty"
            )


def advice(cfg: CfgNode) -> list[str]:
    """What a training with this config should be warned of, one line each."""
    warm, steps = cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER
    if not 0 < steps <= warm:
        return []
    return [
        f"SOLVER.WARMUP_ITERS is {warm}, but SOLVER.MAX_ITER only {steps}: the learning rate never "
        "gets near SOLVER.BASE_LR and little is learnt; set SOLVER.WARMUP_ITERS to "
        f"{steps // 10}, or train longer"
    ]
