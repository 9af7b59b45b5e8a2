"""What every process does first: logging, seeds, and the config into the run's folder."""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import platform
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng

from alignzeg.config.values import flatten
from alignzeg.engine.records.log import start_log
from alignzeg.engine.records.output_lock import check_unused, clear, lock_output
from alignzeg.engine.solver.optim import scaled_lr
from alignzeg.engine.training.resume import saved_seed

logger = logging.getLogger(__name__)

# M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD of malloc.h, in bytes.
_MALLOC_OPTIONS = {-3: 2**30, -1: 2**31 - 1, -2: 2**28}


def start_run(cfg: CfgNode, args: argparse.Namespace) -> CfgNode:
    """Starts logging, seeds every generator and writes the config into OUTPUT_DIR.

    To be called once in every process, after the processes have found each other. A SEED below 0
    is replaced by a random one, or by that of the run that is resumed, and logged and saved like
    any other.

    Returns:
        The same config, frozen.

    Raises:
        ValueError: if another process is training into OUTPUT_DIR, as this one would, or has
            trained there, see `check_folder`.
    """
    if cfg.MODEL.DEVICE == "cpu":
        keep_freed_memory()
    if comm.is_main_process() and not getattr(args, "eval_only", False):
        check_folder(cfg, args)
        lock_output(cfg.OUTPUT_DIR)
        if getattr(args, "overwrite", False):
            clear(cfg.OUTPUT_DIR)
    if cfg.SEED < 0:
        old = saved_seed(cfg.OUTPUT_DIR) if getattr(args, "resume", False) else None
        cfg.SEED = comm.shared_random_seed() if old is None else old
    cfg.freeze()
    debug = bool(getattr(args, "debug", False) or os.environ.get("ALIGNZEG_DEBUG"))
    start_log(cfg.OUTPUT_DIR, comm.get_rank(), tracebacks=debug)
    logger.info(run_line(cfg, comm.get_world_size()))
    describe(cfg, args)
    seed_all_rng(cfg.SEED + comm.get_rank())
    if not getattr(args, "eval_only", False):
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    return cfg


def keep_freed_memory() -> None:
    """Lets glibc keep large blocks of freed memory for the next step, instead of returning them.

    A step on a CPU frees and allocates the same large tensors again and again, and each new page
    costs a fault: without this a step of the MSRC-21 training takes a fifth longer. Other C
    libraries, and processes with MALLOC_* variables of their own, are left alone.
    """
    if platform.libc_ver()[0] != "glibc" or any(key.startswith("MALLOC_") for key in os.environ):
        return
    mallopt = ctypes.CDLL(None).mallopt
    for option, amount in _MALLOC_OPTIONS.items():
        mallopt(option, amount)


def check_folder(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Refuses to train anew in a folder with a training, unless it is resumed or overwritten.

    Raises:
        ValueError: naming the folder.
    """
    if not (getattr(args, "eval_only", False) or getattr(args, "resume", False)):
        check_unused(cfg.OUTPUT_DIR, getattr(args, "overwrite", False), dict(flatten(cfg)))


def describe(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Writes the config to OUTPUT_DIR/config.yaml; command line and machine go into log.txt."""
    logger.debug("command line: %s", args)
    logger.debug("environment:\n%s", collect_env_info())
    if comm.is_main_process():
        path = Path(cfg.OUTPUT_DIR) / "config.yaml"
        path.write_text(cfg.dump(), encoding="utf-8")
        logger.info("the whole config is in %s", path)


def run_line(cfg: CfgNode, world_size: int) -> str:
    """One line with what decides a training: batches, learning rate, device and seed."""
    total, accumulate = cfg.SOLVER.IMS_PER_BATCH, cfg.ALIGNZEG.SOLVER.ACCUMULATE
    reference = cfg.ALIGNZEG.SOLVER.REFERENCE_BATCH
    lr = scaled_lr(cfg.SOLVER.BASE_LR, total, reference)
    rule = f"BASE_LR {cfg.SOLVER.BASE_LR:g} for batch {reference}" if reference else "not scaled"
    device = cfg.MODEL.DEVICE
    if device == "cpu" and not torch.cuda.is_available():
        device = "cpu (no CUDA device is available)"
    return (
        f"total batch {total} = {world_size} processes x {total // (world_size * accumulate)} "
        f"images x {accumulate} accumulated; learning rate {lr:g} ({rule}); "
        f"device {device}; seed {cfg.SEED}"
    )
