#!/usr/bin/env python
"""Kills a training over and over, half of the time while it saves, and checks what is left.

    python dev/stress_kills.py --kills 200 [--config-file CONFIG] [KEY VALUE ...]

After every SIGKILL the run must have an intact checkpoint no older than one checkpoint period, and
go on from it. In the end weights, optimizer and random generators must be bit-identical to those
of a run that was never killed. Prints one line of figures; exit code 0 if all of it held.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from alignzeg import engine
from alignzeg.data.zeroshapes import write_dataset
from alignzeg.engine.checkpoints.reading import find_newest
from alignzeg.files import leftovers

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "zeroshapes" / "alignzeg.yaml"
SMALL = [
    *("MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", "2", "INPUT.MIN_SIZE_TRAIN", "(48, 64)"),
    *("ALIGNZEG.EXTRACTOR.NUM_QUERIES", "9", "ALIGNZEG.EXTRACTOR.HIDDEN_DIM", "32"),
    *("ALIGNZEG.EXTRACTOR.FFN_DIM", "32", "DATASETS.TEST", "()"),
]
IDLE_S = 0.0005


@dataclass
class Tally:
    """What has happened.

    Attributes:
        kills: processes ended by SIGKILL.
        in_save: of these, while a checkpoint was being written.
        unreadable: times that no intact checkpoint was found though one had been completed.
        lost: times that more than one checkpoint period was lost.
        finished: runs that reached their last step.
        different: of these, runs whose last checkpoint is not that of the run never killed.
        most_lost: the most steps lost by one kill.
    """

    kills: int = 0
    in_save: int = 0
    unreadable: int = 0
    lost: int = 0
    finished: int = 0
    different: int = 0
    most_lost: int = 0


class Progress:
    """The number of steps made, in memory that outlives the process that writes it."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8)

    @property
    def steps(self) -> int:
        """Completed steps."""
        return struct.unpack("q", self._memory[:8])[0]

    @steps.setter
    def steps(self, value: int) -> None:
        self._memory[:8] = struct.pack("q", value)


def train(cfg: CfgNode, progress: Progress) -> None:
    """What the victim does: goes on from its last checkpoint to the end."""
    # Python seeds its generator anew in every fork.
    seed_all_rng(cfg.SEED)
    trainer = engine.Trainer(cfg)
    trainer.resume_or_load(resume=True)
    after_step = trainer.after_step

    def count() -> None:
        progress.steps = max(progress.steps, trainer.iter + 1)
        after_step()

    trainer.after_step = count
    trainer.train()


def start(cfg: CfgNode, progress: Progress) -> int:
    """Forks a victim, which spares it the imports; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        train(cfg, progress)
        code = 0
    except BaseException:  # noqa: BLE001 (the process ends here, whatever it was)
        traceback.print_exc()
    finally:
        logging.shutdown()
        os._exit(code)


def ended(child: int) -> bool:
    """Whether the victim has reached the end by itself.

    Raises:
        RuntimeError: if it has failed.
    """
    done, status = os.waitpid(child, os.WNOHANG)
    if done and status:
        raise RuntimeError(f"the training failed with status {status}")
    return bool(done)


def strike(child: int, folder: Path, in_save: bool, wait_s: float) -> str:
    """Kills the victim.

    Args:
        child: its process id.
        folder: of its run.
        in_save: wait for a save first.
        wait_s: seconds to the moment, from then or from now on; less where a save takes less.

    Returns:
        "save" if a checkpoint was being written, "other" if not, "end" if it had ended before.
    """
    born = time.time()
    start = None if in_save else time.monotonic()
    while start is None or time.monotonic() < start + wait_s:
        if ended(child):
            return "end"
        time.sleep(IDLE_S)
        if start is None and saving(folder, born):
            start = time.monotonic()
        elif in_save and start is not None and not saving(folder, born):
            # This save was over before that moment: earlier in the next one.
            start, wait_s = None, wait_s / 2
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "save" if saving(folder, born) else "other"


def saving(folder: Path, since: float) -> bool:
    """Whether a file is half written, by a process that was started then."""
    for path in leftovers(folder):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime >= since:
                return True
    return False


def watch(child: int, folder: Path) -> tuple[float, float]:
    """Waits for the end of a run; returns its seconds and those that it spent saving."""
    born, begin, busy = time.time(), time.monotonic(), 0.0
    last = begin
    while not ended(child):
        now = time.monotonic()
        busy += (now - last) * saving(folder, born)
        last = now
        time.sleep(IDLE_S)
    return last - begin, busy


def judge(folder: Path, progress: Progress, period: int, tally: Tally) -> None:
    """Looks at what a kill has left."""
    made = progress.steps
    try:
        newest = find_newest(str(folder))
        kept = engine.read_checkpoint(newest)["iteration"] + 1 if newest else 0
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        tally.unreadable += 1
        return
    # The step that was just made may be due but not yet saved.
    tally.most_lost = max(tally.most_lost, made - kept)
    tally.lost += made - kept > period
    progress.steps = kept


def difference(one: Any, other: Any, where: str = "checkpoint") -> str:
    """The first place where two checkpoints differ by so much as a bit; empty if nowhere."""
    if type(one) is not type(other):
        return where
    if isinstance(one, torch.Tensor):
        return "" if one.dtype == other.dtype and torch.equal(one, other) else where
    if isinstance(one, (list, tuple)):
        one, other = dict(enumerate(one)), dict(enumerate(other))
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return where
        found = (difference(one[key], other[key], f"{where}.{key}") for key in one)
        return next(filter(None, found), "")
    return "" if one == other else where


def final(folder: Path) -> dict[str, Any]:
    """The last checkpoint, without the config, which names the folder and the workers."""
    state = engine.read_checkpoint(str(folder / "model_final.pth"))
    state["alignzeg"].pop("config")
    return state


def build(args: argparse.Namespace, folder: Path, workers: int) -> CfgNode:
    """The config of one run."""
    pairs = {
        "SOLVER.MAX_ITER": args.steps,
        "SOLVER.CHECKPOINT_PERIOD": args.period,
        "ALIGNZEG.CHECKPOINT.KEEP": 2,
        "DATALOADER.NUM_WORKERS": workers,
        "OUTPUT_DIR": folder,
    }
    opts = [str(word) for pair in pairs.items() for word in pair]
    cfg = engine.setup_config(args.config_file, [*SMALL, *args.opts, *opts])
    folder.mkdir(exist_ok=True)
    return cfg


def stress(args: argparse.Namespace, root: Path) -> Tally:
    """Kills until there were enough, and lets the last run end."""
    numbers = random.Random(args.seed)
    tally, progress = Tally(), Progress()
    reference = root / "reference"
    whole, saves = watch(start(build(args, reference, 0), Progress()), reference)
    one_save = saves / (args.steps // args.period + 1)
    expected = final(reference)
    while tally.kills < args.kills or not tally.finished:
        folder = root / f"run{tally.finished}"
        progress.steps = 0
        while True:
            child = start(build(args, folder, numbers.choice((0, 0, 1))), progress)
            if tally.kills >= args.kills:
                watch(child, folder)
                break
            aimed = tally.in_save * 2 <= tally.kills
            moment = numbers.random() * (one_save if aimed else whole * 0.5)
            where = strike(child, folder, aimed, moment)
            if where == "end":
                break
            tally.kills += 1
            tally.in_save += where == "save"
            judge(folder, progress, args.period, tally)
        tally.finished += 1
        where = difference(expected, final(folder))
        if where:
            sys.stderr.write(f"{where} differs\n")
        tally.different += bool(where)
        shutil.rmtree(folder)
        sys.stderr.write(f"{json.dumps(asdict(tally))}\n")
    return tally


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--steps", type=int, default=24, help="of one run")
    parser.add_argument("--period", type=int, default=4, help="steps between two checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config-file", default=str(CONFIG))
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    args = parser.parse_args()
    # Threads would not survive the fork.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="stress_kills_") as folder:
        root = Path(folder)
        for split, count in (("train", 8), ("val", 2)):
            write_dataset(root, split, count, size=64, workers=1)
        os.environ["DETECTRON2_DATASETS"] = str(root)
        cache = ["ALIGNZEG.VLM.CACHE_DIR", str(root / "text")]
        args.opts = [*cache, *args.opts]
        setup_logger(name="alignzeg").setLevel(logging.ERROR)
        begin = time.monotonic()
        tally = stress(args, root)
    sys.stdout.write(json.dumps({**asdict(tally), "seconds": round(time.monotonic() - begin)}))
    sys.stdout.write("\n")
    return int(bool(tally.unreadable or tally.lost or tally.different))


if __name__ == "__main__":
    sys.exit(main())
