"""Going on where a checkpoint was saved: what is restored, what has changed, what is refused."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from alignzeg.data.labels import get_vocabulary, training_vocabulary
from alignzeg.engine.checkpoints.checkpoint import KEY
from alignzeg.engine.checkpoints.reading import find_newest, read_checkpoint
from alignzeg.engine.checkpoints.state import config_changes, rng_state
from alignzeg.engine.training.sampling import TrainLoader
from alignzeg.structures import spelling

logger = logging.getLogger(__name__)

# Config keys without which the saved state has no meaning.
FIXED = ("ALIGNZEG.SOLVER.OPTIMIZER:", "MODEL.META_ARCHITECTURE:")


def rank_state(loader: TrainLoader) -> dict[str, Any]:
    """What a checkpoint keeps of each process: its random generators and its place in the data."""
    return {"rng": rng_state(), "loader": loader.state_dict()}


def saved_seed(folder: str) -> int | None:
    """The SEED of the run that will be resumed, the same in all processes; None without one."""
    seed = None
    if comm.is_main_process():
        path = find_newest(folder)
        config = read_checkpoint(path).get(KEY, {}).get("config") if path else None
        seed = yaml.safe_load(config).get("SEED") if config else None
    return comm.all_gather(seed)[0]


def check_resumable(
    path: str,
    loaded: Mapping[str, Any],
    changes: Sequence[str],
    data: str,
    allow_rescale: bool,
) -> None:
    """Refuses to go on where the result would not be that of the run that was stopped.

    Raises:
        ValueError: saying what differs and what to do.
    """
    about, ranks = loaded.get(KEY) or {}, loaded.get("ranks")
    if "trainer" not in loaded or not ranks:
        raise ValueError(
            f"checkpoint {path!r} holds weights, but no state of a training; start from it with "
            f"MODEL.WEIGHTS {path} instead of --resume"
        )
    for change in changes:
        if change.startswith(FIXED):
            raise ValueError(
                f"checkpoint {path!r} does not fit: {change}; resume with the value it was saved "
                f"with, or start a new run from it with MODEL.WEIGHTS {path}"
            )
    if len(ranks) != comm.get_world_size() and not allow_rescale:
        raise ValueError(
            f"checkpoint {path!r} was saved by {len(ranks)} processes, now there are "
            f"{comm.get_world_size()}; use as many, or add --allow-rescale, which goes on "
            "with the same data but not to the bit"
        )
    if data and about.get("data", data) != data:
        raise ValueError(
            f"checkpoint {path!r} was trained on other data: the files or labels of "
            "DATASETS.TRAIN have changed since; restore them, or start a new run from it with "
            f"MODEL.WEIGHTS {path} instead of --resume"
        )


def changes_since(loaded: Mapping[str, Any], config: str) -> list[str]:
    """How a config, YAML text, differs from the one that a checkpoint was saved with."""
    return config_changes((loaded.get(KEY) or {}).get("config") or config, config)


def report_changes(path: str, changes: Sequence[str], start: int) -> None:
    """Logs where a run goes on and how its config differs from the one it was stopped with."""
    logger.info(
        "resuming from %s at iteration %d; %s",
        path,
        start,
        f"{len(changes)} config keys have changed:" if changes else "the config is unchanged",
    )
    for change in changes:
        logger.warning("config changed: %s", change)


def report_other_classes(cfg: CfgNode, loaded: Mapping[str, Any]) -> None:
    """Logs that a training starts from weights of other classes, and warns if unseen ones leak."""
    about = loaded.get(KEY)
    theirs = (about.get("seen") if isinstance(about, Mapping) else None) or []
    ours = list(training_vocabulary(cfg).names)
    if not theirs or theirs == ours:
        return
    known = {spelling(str(name)) for name in theirs}
    logger.info(
        "starting from %s, which was trained on %d classes; new are: %s",
        cfg.MODEL.WEIGHTS,
        len(theirs),
        ", ".join(name for name in ours if spelling(name) not in known) or "none",
    )
    asked = [
        get_vocabulary(name, cfg.ALIGNZEG.DATA.HOLD_OUT)
        for name in dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    ]
    unseen = {vocabulary.names[i] for vocabulary in asked for i in vocabulary.unseen_ids}
    leaked = sorted(name for name in unseen if spelling(name) in known)
    if leaked:
        logger.warning(
            "%s was trained with masks of %s, unseen here: their figures are not zero-shot",
            cfg.MODEL.WEIGHTS,
            leaked,
        )


def restore_rank(
    loader: TrainLoader, ranks: Sequence[Mapping[str, Any]], seed: int, start: int
) -> Mapping[str, Any]:
    """Puts the data loader where it was.

    With another number of processes than before, the random generators start from the seed, the
    iteration and the rank.

    Returns:
        The state of the random generators to start with.

    Raises:
        ValueError: if the training data has another number of images now.
    """
    if len(ranks) == comm.get_world_size():
        mine = ranks[comm.get_rank()]
        loader.load_state_dict(mine["loader"])
        return mine["rng"]
    logger.warning(
        "going on with %d processes instead of %d: every image still comes once in each round, "
        "but random numbers and sums differ from those of the old run",
        comm.get_world_size(),
        len(ranks),
    )
    loader.rescale([rank["loader"] for rank in ranks])
    seed_all_rng((max(seed, 0) + start * comm.get_world_size() + comm.get_rank()) % 2**31)
    return rng_state()
