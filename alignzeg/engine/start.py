"""What every process does first: logging, seeds, and the config into the run's folder."""

from __future__ import annotations

import argparse
import copy
import ctypes
import logging
import os
import platform
import sys

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from alignzeg.engine.checkpoints.resume import saved_seed
from alignzeg.engine.processes.errors import explain
from alignzeg.engine.records.occupation import check_unused, clear, occupy
from alignzeg.engine.settings.reading import flatten
from alignzeg.engine.solver.optim import scaled_lr

logger = logging.getLogger(__name__)

LOGGERS = ("alignzeg", "detectron2", "fvcore")
# M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD of malloc.h, in bytes.
_MALLOC_OPTIONS = {-3: 2**30, -1: 2**31 - 1, -2: 2**28}


def start_run(cfg: CfgNode, args: argparse.Namespace) -> CfgNode:
    """Starts logging, seeds every generator and writes the config into OUTPUT_DIR.

    To be called once in every process, after the processes have found each other. A SEED below 0
    is replaced by a random one, or by that of the run that is resumed, and logged and saved like
    any other.

    Args:
        cfg: a valid config, not frozen.
        args: the command line, for the log.

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
        occupy(cfg.OUTPUT_DIR)
        if getattr(args, "overwrite", False):
            clear(cfg.OUTPUT_DIR)
    if cfg.SEED < 0:
        old = saved_seed(cfg.OUTPUT_DIR) if getattr(args, "resume", False) else None
        cfg.SEED = comm.shared_random_seed() if old is None else old
    cfg.freeze()
    setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name="alignzeg", abbrev_name="alignzeg")
    logger.info(run_line(cfg, comm.get_world_size()))
    default_setup(cfg, args)
    if not (getattr(args, "debug", False) or os.environ.get("ALIGNZEG_DEBUG")):
        hide_tracebacks()
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


class _WithoutTraceback(logging.Formatter):
    """Another formatter, with one line in place of a traceback."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self.inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """What the other formatter makes of the record without its traceback."""
        if record.exc_info and record.exc_info[1] is not None:
            record = copy.copy(record)
            record.msg = f"{record.getMessage()} {explain(record.exc_info[1])}"
            record.args = record.exc_info = record.exc_text = None
        return self.inner.format(record)


def hide_tracebacks() -> None:
    """Keeps tracebacks that are logged, such as Detectron2's, to log.txt, off the terminal."""
    for name in LOGGERS:
        for handler in logging.getLogger(name).handlers:
            terminal = getattr(handler, "stream", None) in (sys.stdout, sys.stderr)
            formatter = handler.formatter or logging.Formatter()
            if terminal and not isinstance(formatter, _WithoutTraceback):
                handler.setFormatter(_WithoutTraceback(formatter))


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
