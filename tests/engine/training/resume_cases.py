"""Runs of the toy model, and what it takes for two to be the same."""

from __future__ import annotations

import argparse
import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from helpers import CONFIGS, TINY_OPTS, TOY_PLUGIN

from alignzeg.engine import Trainer, setup_config

ALIGNZEG = CONFIGS / "zeroshapes" / "alignzeg.yaml"


STEPS = 20


# Every augmentation there is, and a batch of two accumulated halves for each process.
VARIED = [
    *("INPUT.MIN_SIZE_TRAIN", "(40, 48, 56)", "ALIGNZEG.DATA.CROP_SIZE", "36"),
    *("ALIGNZEG.DATA.COLOR_JITTER", "True", "ALIGNZEG.SOLVER.ACCUMULATE", "2"),
    *("SOLVER.IMS_PER_BATCH", "4", "SOLVER.WARMUP_ITERS", "5", "SOLVER.BASE_LR", "0.001"),
    *("ALIGNZEG.SOLVER.OPTIMIZER", "AdamW"),
]


def config(output: Path, *opts: str) -> CfgNode:
    toy = ["ALIGNZEG.PLUGINS", str(TOY_PLUGIN), "MODEL.META_ARCHITECTURE", "ToySegmenter"]
    cfg = setup_config(
        ALIGNZEG,
        [*TINY_OPTS, *toy, *VARIED, "OUTPUT_DIR", str(output), "DATASETS.TEST", "()"]
        + ["SOLVER.MAX_ITER", str(STEPS), "SOLVER.CHECKPOINT_PERIOD", "1", *opts],
    )
    output.mkdir(exist_ok=True, parents=True)
    return cfg


def run(cfg: CfgNode, steps: int = STEPS, resume: bool = True) -> list[Any]:
    """Makes so many steps, and is gone as after a kill: nothing is saved or closed at the end.

    Returns, for each batch of this process, what was in it and what was drawn.
    """
    seed_all_rng(cfg.SEED + comm.get_rank())
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    seen: list[Any] = []

    def look(model: torch.nn.Module, batches: tuple) -> None:
        drawn = torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002
        if model.training:
            batch = [
                (x["position"], x["file_name"], zlib.crc32(x["image"].numpy())) for x in batches[0]
            ]
            seen.append((trainer.iter, batch, drawn))

    trainer.model.register_forward_pre_hook(look)
    first = trainer.start_iter
    with EventStorage(first) as trainer.storage:
        trainer.before_train()
        for trainer.iter in range(first, first + steps):
            trainer.before_step()
            trainer.run_step()
            trainer.after_step()
    seed_all_rng(12345)
    return seen


def assert_same(a: Any, b: Any, where: str = "") -> None:
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{where}.{index}")
    else:
        assert a == b, where


def pair(args: argparse.Namespace) -> None:
    """What each of two processes does."""
    # Threads do not survive the fork.
    torch.set_num_threads(1)
    whole = run(config(args.output / "whole"))
    pieces = []
    for _ in range(STEPS):
        pieces += run(config(args.output / "pieces"), 1)
        comm.synchronize()
    assert pieces == whole
    positions = comm.all_gather([x[0] for _, batch, _ in whole for x in batch])
    assert not set(positions[0]) & set(positions[1])
    assert sorted(positions[0] + positions[1]) == list(range(STEPS * 4))
