"""Rows of several processes on one machine: how training and evaluation scale, and what is sent."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm

from alignzeg.data.zeroshapes import write_dataset
from alignzeg.engine import Trainer, setup_config
from alignzeg.engine.training.trainer import build_parallel_model
from bench.measure import REPOSITORY, Result, Row
from bench.scaling import ring_bytes

CONFIG = REPOSITORY / "configs" / "zeroshapes" / "alignzeg.yaml"
STEPS = 6
TOY = [
    *("ALIGNZEG.EXTRACTOR.NUM_QUERIES", "9", "ALIGNZEG.EXTRACTOR.HIDDEN_DIM", "32"),
    *("ALIGNZEG.EXTRACTOR.FFN_DIM", "32", "ALIGNZEG.EXTRACTOR.LAYERS", "1"),
]
_runs: dict[tuple[int, bool], dict[str, float]] = {}


def sent_bytes() -> int:
    """Bytes that left through the loopback device so far (Linux)."""
    path = Path("/sys/class/net/lo/statistics/tx_bytes")
    return int(path.read_text(encoding="utf-8")) if path.is_file() else 0


def member(rank: int, world_size: int, folder: str, quick: bool) -> None:
    """One process: trains a few steps on two images each, then evaluates its share."""
    torch.set_num_threads(1)
    os.environ["DETECTRON2_DATASETS"] = folder
    if world_size > 1:
        url = f"file://{folder}/join{world_size}"
        dist.init_process_group("gloo", init_method=url, rank=rank, world_size=world_size)
        comm.create_local_process_group(world_size)
    opts = ["MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", str(2 * world_size), "SEED", "1"]
    opts += ["ALIGNZEG.VLM.CACHE_DIR", f"{folder}/text", *(TOY if quick else ())]
    cfg = setup_config(CONFIG, opts)
    torch.manual_seed(0)
    model = Trainer.build_model(cfg).train()
    wrapped = build_parallel_model(cfg, model)
    optimizer = Trainer.build_optimizer(cfg, model)
    batches = iter(Trainer.build_train_loader(cfg))
    spent, before = [], 0
    for step in range(2 if quick else STEPS):
        data = next(batches)
        comm.synchronize()
        if step == 1:
            before = sent_bytes()
        start = time.perf_counter()
        optimizer.zero_grad()
        sum(wrapped(data).values()).backward()
        optimizer.step()
        comm.synchronize()
        spent.append(time.perf_counter() - start)
    sent = (sent_bytes() - before) / (len(spent) - 1)
    evaluator = Trainer.build_evaluator(cfg, "zeroshapes_val")
    evaluator.output_dir = None
    loader = Trainer.build_test_loader(cfg, "zeroshapes_val")
    comm.synchronize()
    start = time.perf_counter()
    inference_on_dataset(model.eval(), loader, evaluator)
    comm.synchronize()
    evaluation = time.perf_counter() - start
    if rank == 0:
        gradients = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
        found = {
            "step_ms": 1e3 * statistics.median(spent[1:]),
            "evaluation_ms": 1e3 * evaluation,
            "sent": sent,
            "gradients": float(gradients),
        }
        Path(folder, f"found{world_size}.json").write_text(json.dumps(found), encoding="utf-8")


def run(world_size: int, quick: bool) -> dict[str, float]:
    """Figures of a run of so many processes; each is made once."""
    if (world_size, quick) not in _runs:
        with tempfile.TemporaryDirectory() as folder:
            images = 4 if quick else 48
            write_dataset(Path(folder), "train", 16, workers=1, **({"size": 64} if quick else {}))
            write_dataset(Path(folder), "val", images, workers=1, **({"size": 64} if quick else {}))
            arguments = (world_size, folder, quick)
            # Each process gets one thread, also if it is alone.
            with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1"}):
                multiprocessing.spawn(member, arguments, nprocs=world_size)
            text = Path(folder, f"found{world_size}.json").read_text(encoding="utf-8")
        _runs[world_size, quick] = json.loads(text)
    return _runs[world_size, quick]


def evaluation(name: str, row: Row, quick: bool) -> Result:
    """The same images evaluated by one process over several."""
    del row
    count = int(name.rpartition("_")[2])
    one, several = (run(n, quick)["evaluation_ms"] for n in (1, count))
    return Result(several, one, one / several, "peer: ours on one process of one thread")


def training(name: str, row: Row, quick: bool) -> Result:
    """Images a second of several processes over one, two images for each."""
    del row
    count = int(name.rpartition("_")[2])
    one, several = run(1, quick), run(count, quick)
    ratio = count * one["step_ms"] / several["step_ms"]
    expected = ring_bytes(count, several["gradients"])
    note = (
        f"{several['sent'] / 2**20:.2f} MiB sent a step; a ring sends {expected / 2**20:.2f} of "
        f"{several['gradients'] / 2**20:.2f} MiB of gradients"
    )
    return Result(several["step_ms"], one["step_ms"], ratio, note)


ROWS = {
    "processes/evaluation_2": Row(1.8, "evaluation on 2 processes, beside 1", evaluation),
    "processes/train_2": Row(0, "training throughput on 2 processes, beside 1", training),
    "processes/train_4": Row(0, "training throughput on 4 processes, beside 1", training),
}
