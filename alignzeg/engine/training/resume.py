"""Going on where a checkpoint was saved: what is restored, what has changed, what is refused."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch import Tensor

from alignzeg.config.values import flatten
from alignzeg.data.labels import get_vocabulary, training_vocabulary
from alignzeg.engine.checkpoints import reading
from alignzeg.engine.checkpoints.checkpoint import KEY
from alignzeg.engine.checkpoints.state import rng_state
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
        path = reading.find_newest(folder)
        about = reading.about_in(reading.read_checkpoint(path, mapped=True)) if path else {}
        config = about.get("config")
        seed = yaml.safe_load(config).get("SEED") if isinstance(config, str) else None
    return comm.all_gather(seed)[0]


def check_resumable(
    path: str, loaded: Mapping[str, Any], config: str, data: str, allow_rescale: bool
) -> list[str]:
    """Refuses to go on where the result would not be that of the run that was stopped.

    That is told from the config, YAML text, the hash of the training data, empty if unknown, and
    the number of processes now. Returns how the config has changed, one line a key.

    Raises:
        ValueError: saying what differs and what to do.
    """
    about, ranks = reading.about_in(loaded), loaded.get("ranks")
    anew = f"start a new run from it with MODEL.WEIGHTS {path}"
    if "trainer" not in loaded or not ranks:
        raise ValueError(
            f"checkpoint {path!r} holds weights, but no state of a training; start from it with "
            f"MODEL.WEIGHTS {path} instead of --resume"
        )
    changes = config_changes(about.get("config") or config, config)
    for change in changes:
        if change.startswith(FIXED):
            raise ValueError(
                f"checkpoint {path!r} does not fit: {change}; resume with the value it was saved "
                f"with, or {anew}"
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
            f"DATASETS.TRAIN have changed since; restore them, or {anew} instead of --resume"
        )
    return changes


class Rates:
    """Base learning rates and weight decays of the config, which those of a checkpoint replace."""

    def __init__(self, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        self._optimizer, self._scheduler = optimizer, scheduler
        self._kept = [(g["initial_lr"], g["weight_decay"]) for g in optimizer.param_groups]

    def restore(self) -> None:
        """Puts them back where the checkpoint had others; what has not changed stays to the bit."""
        groups = self._optimizer.param_groups
        for index, (group, (rate, decay)) in enumerate(zip(groups, self._kept, strict=True)):
            if group["initial_lr"] != rate:
                # All schedules of Detectron2 are multiples of the base rate.
                group["lr"] *= rate / group["initial_lr"] if group["initial_lr"] else 0.0
                group["initial_lr"] = self._scheduler.base_lrs[index] = rate
            group["weight_decay"] = decay


def config_changes(before: str, now: str) -> list[str]:
    """How two configs, YAML text, differ: a line a key, in order; "unset" where one has none."""
    old, new = (dict(flatten(yaml.safe_load(text) or {})) for text in (before, now))
    return [
        f"{key}: was {old.get(key, 'unset')!r}, is {new.get(key, 'unset')!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, "unset") != new.get(key, "unset")
    ]


def check_kinds(path: str, loaded: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses a checkpoint that holds something of another kind than what it is to replace.

    Raises:
        ValueError: naming the first such place.
    """
    wrong = misfit(loaded, {**now, KEY: {"config": "", "data": ""}}, "it")
    if wrong:
        raise ValueError(
            f"checkpoint {path!r} is not as it was written: {wrong}; resume from another one"
        )


def misfit(found: Any, like: Any, where: str) -> str:
    """The first place at which a saved value is of another kind than the present one, or empty.

    Entries that only one side has are not looked at: a fresh optimizer has no state yet.
    """
    if like is None or (found is None and isinstance(like, Tensor)):
        return ""
    if isinstance(like, Mapping):
        if not isinstance(found, Mapping):
            return f"{where} is {_kind(found)} instead of named entries"
        pairs = [(found[key], like[key], f"{where}.{key}") for key in like if key in found]
    elif isinstance(like, (list, tuple)):
        if not isinstance(found, (list, tuple)):
            return f"{where} is {_kind(found)} instead of a list"
        pairs = [(item, like[0], f"{where}[{i}]") for i, item in enumerate(found) if like]
    else:
        kinds: Any = Tensor if isinstance(like, Tensor) else type(like)
        if isinstance(like, (int, float)) and not isinstance(like, bool):
            kinds = (int, float)
        fine = isinstance(found, kinds) and isinstance(found, bool) == isinstance(like, bool)
        if isinstance(like, Tensor):
            fine = fine and (found.shape, found.dtype) == (like.shape, like.dtype)
        return "" if fine else f"{where} is {_kind(found)} instead of {_kind(like)}"
    return next(filter(None, (misfit(*pair) for pair in pairs)), "")


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return f"of type {type(value).__name__}"


def report_other_classes(cfg: CfgNode, loaded: Mapping[str, Any]) -> None:
    """Logs that a training starts from weights of other classes, and warns if unseen ones leak."""
    theirs = reading.seen_names(loaded)
    ours = list(training_vocabulary(cfg).names)
    if not theirs or theirs == ours:
        return
    known = {spelling(name) for name in theirs}
    logger.info(
        "starting from %s, which was trained on %d classes; new are: %s",
        *(cfg.MODEL.WEIGHTS, len(theirs)),
        ", ".join(name for name in ours if spelling(name) not in known) or "none",
    )
    unseen = set()
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        vocabulary = get_vocabulary(name, cfg.ALIGNZEG.DATA.HOLD_OUT)
        unseen |= {vocabulary.names[i] for i in vocabulary.unseen_ids}
    leaked = sorted(name for name in unseen if spelling(name) in known)
    if leaked:
        logger.warning(
            "%s was trained with masks of %s, unseen here: their figures are not zero-shot",
            *(cfg.MODEL.WEIGHTS, leaked),
        )


def restore_rank(
    loader: TrainLoader, ranks: Sequence[Mapping[str, Any]], seed: int, start: int
) -> Mapping[str, Any]:
    """Puts the data loader where it was; returns the state of the random generators to start with.

    With another number of processes than before, they start from the seed, the iteration and the
    rank.

    Raises:
        ValueError: if the training data has another number of images now.
    """
    rank, world = comm.get_rank(), comm.get_world_size()
    if len(ranks) == world:
        loader.load_state_dict(ranks[rank]["loader"])
        return ranks[rank]["rng"]
    logger.warning(
        "going on with %d processes instead of %d: every image still comes once in each round, "
        "but random numbers and sums differ from those of the old run",
        *(world, len(ranks)),
    )
    loader.rescale([state["loader"] for state in ranks])
    seed_all_rng((max(seed, 0) + start * world + rank) % 2**31)
    return rng_state()
