"""What every process of a run does: its folder, logging and seeds, then training or evaluation."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import logging
import os
import platform
import shutil
from pathlib import Path
from typing import IO, Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng

from alignzeg.config.values import flatten
from alignzeg.data.lint import validate_names
from alignzeg.engine.checkpoints.checkpoint import AlignZegCheckpointer
from alignzeg.engine.records.log import start_log
from alignzeg.engine.records.provenance import record_run
from alignzeg.engine.settings import advice
from alignzeg.engine.solver.optim import scaled_lr
from alignzeg.engine.training.resume import saved_seed
from alignzeg.engine.training.trainer import Trainer
from alignzeg.files import atomic_write
from alignzeg.registries import TRAINER_REGISTRY, find

try:
    import fcntl
except ImportError:  # not on Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

# M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD of malloc.h, in bytes.
_MALLOC_OPTIONS = {-3: 2**30, -1: 2**31 - 1, -2: 2**28}
# What a training leaves that another one would add to, and all that it writes but config.yaml,
# which is replaced anyway and may be the very config of the new run.
_TRAINED = ("metrics.json", "losses.jsonl", "last_checkpoint", "model_*.pth")
_WRITTEN = (
    *_TRAINED,
    *("log.txt*", "provenance.json*", "events.out.tfevents.*", "inference", "crash"),
)
_held: dict[Path, IO[str]] = {}


def start_run(cfg: CfgNode, args: argparse.Namespace) -> CfgNode:
    """Starts logging, seeds every generator, and writes the config, frozen then, to OUTPUT_DIR.

    To be called once in every process, after the processes have found each other. A SEED below 0
    is replaced by a random one, or by that of the run that is resumed, and logged and saved like
    any other. `args` need not have every option of the command.

    Raises:
        ValueError: if another process is training into OUTPUT_DIR, as this one would, or has
            trained there, see `check_folder`.
    """
    evaluating = getattr(args, "eval_only", False)
    if cfg.MODEL.DEVICE == "cpu":
        keep_freed_memory()
    if comm.is_main_process() and not evaluating:
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
    logger.debug("command line: %s", args)
    logger.debug("environment:\n%s", collect_env_info())
    if comm.is_main_process():
        path = Path(cfg.OUTPUT_DIR) / "config.yaml"
        atomic_write(path, cfg.dump())
        logger.info("the whole config is in %s", path)
    seed_all_rng(cfg.SEED + comm.get_rank())
    if not evaluating:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    return cfg


def trainer_of(cfg: CfgNode) -> type[Trainer]:
    """The trainer for MODEL.META_ARCHITECTURE; see TRAINER_REGISTRY."""
    architecture = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    return find(TRAINER_REGISTRY, str(getattr(architecture, "TRAINER", Trainer.__name__)))


def evaluate(cfg: CfgNode, *, resume: bool = False, trust_pickle: bool = False) -> dict[str, Any]:
    """Evaluates a checkpoint on every test set; results by task, empty but in the first process.

    If resumed, the last checkpoint in OUTPUT_DIR, if there is one, takes the place of
    MODEL.WEIGHTS, which `trust_pickle` reads even if it is a pickle from anywhere.
    """
    model = Trainer.build_model(cfg)
    checkpointer = AlignZegCheckpointer(model, cfg.OUTPUT_DIR, strict=True)
    checkpointer.trust_pickle = trust_pickle
    path = checkpointer.get_checkpoint_file() if resume else ""
    checkpointer.load(path or cfg.MODEL.WEIGHTS, checkpointables=[])
    if comm.is_main_process():
        validate_names(cfg, model)
    record_run(cfg, model, action="evaluate")
    return Trainer.test(cfg, model)


def train(
    cfg: CfgNode, *, resume: bool = False, allow_rescale: bool = False, trust_pickle: bool = False
) -> dict[str, Any] | None:
    """Trains to SOLVER.MAX_ITER, from MODEL.WEIGHTS or, to resume, from the last checkpoint.

    `allow_rescale` goes on also with another number of processes; `trust_pickle` reads
    MODEL.WEIGHTS even if it is a pickle from anywhere.
    """
    trainer = trainer_of(cfg)(cfg)
    trainer.checkpointer.trust_pickle = trust_pickle
    trainer.resume_or_load(resume=resume, allow_rescale=allow_rescale)
    if comm.is_main_process():
        for line in advice(cfg):
            logger.warning("%s", line)
        validate_names(cfg, trainer._trainer.inner_model)
    first = trainer.start_iter
    record_run(
        cfg,
        trainer.model,
        action="train",
        iteration=first,
        resumed=resume and first > 0,
        fingerprints=trainer.fingerprints,
    )
    return trainer.train()


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

    One that is to be overwritten, see `clear`, holds no file that the config names.

    Raises:
        ValueError: naming the folder or the key, and what can be done.
    """
    if getattr(args, "eval_only", False) or getattr(args, "resume", False):
        return
    folder, overwrite = Path(cfg.OUTPUT_DIR).absolute(), getattr(args, "overwrite", False)
    found = _matching(folder, _TRAINED)
    if found and not overwrite:
        raise ValueError(
            f"OUTPUT_DIR {str(folder)!r} holds a training already ({found[0].name}); go on with it "
            "by --resume, delete it by --overwrite, or choose another OUTPUT_DIR"
        )
    doomed = {path.resolve() for path in _matching(folder, _WRITTEN)} if overwrite else set()
    for key, value in flatten(cfg):
        file = Path(value).resolve() if isinstance(value, str) and value else None
        if file is not None and not doomed.isdisjoint((file, *file.parents)):
            raise ValueError(
                f"{key} is {value!r}, which --overwrite would delete; copy it to another folder, "
                "or choose another OUTPUT_DIR"
            )


def lock_output(folder: str | os.PathLike[str]) -> None:
    """Keeps other processes from training into a folder as long as this one lives.

    The lock is the operating system's: it goes with the process, however that ends, and forked
    workers do not keep it. Where the file system knows no locks, a warning says so.

    Raises:
        ValueError: if another process has the folder.
    """
    folder = Path(folder).absolute()
    if fcntl is None or folder in _held:
        return
    folder.mkdir(parents=True, exist_ok=True)
    # Kept open: closing it would unlock it.
    file = open(folder / "run.lock", "a+", encoding="utf-8")  # noqa: SIM115
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        owner = file.read().strip() or "?"
        file.close()
        raise ValueError(
            f"process {owner} is training into OUTPUT_DIR {str(folder)!r}; stop it, or choose "
            "another OUTPUT_DIR"
        ) from None
    except OSError as error:
        file.close()
        logger.warning(
            "the file system of %s knows no locks (%s): see to it that no other run is in it",
            *(folder, error.strerror),
        )
        return
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
    _held[folder] = file


def clear(folder: str | os.PathLike[str]) -> None:
    """Deletes what an earlier run has written into its folder; other files stay."""
    for path in _matching(Path(folder), _WRITTEN):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted({path for pattern in patterns for path in folder.glob(pattern)})


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
