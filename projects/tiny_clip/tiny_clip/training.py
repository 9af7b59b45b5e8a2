"""Training of the tiny CLIP on two busy cores."""

from __future__ import annotations

import json
import logging
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import open_clip
import torch
import torch.distributed as dist
from torch import Tensor

from alignzeg.modeling.tensor_files import read_tensors
from tiny_clip.evaluation import evaluate
from tiny_clip.model import build_model, losses, save_weights
from tiny_clip.recipe import Recipe
from tiny_clip.sampling import draw_batch, render_pool

logger = logging.getLogger(__name__)
_LOG_EVERY = 50


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        recipe: every number of it.
        command: what the weights' metadata says made them.
        output: the safetensors file; rewritten at every evaluation.
        save_every: steps between evaluations, which go to the log.
        eval_scenes: fresh scenes per evaluation.
    """

    recipe: Recipe
    command: str
    output: Path
    save_every: int = 500
    eval_scenes: int = 60


def build_optimizers(model: open_clip.CLIP, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon on the matrices of the transformer blocks, AdamW on the rest.

    Muon's steps are as long along rare directions as along common ones: shape, which explains
    little of the loss beside colour and texture, is learned many times sooner.
    """
    named = dict(model.named_parameters())
    blocks = [p for n, p in named.items() if "resblocks" in n and p.ndim == 2]
    chosen = {id(parameter) for parameter in blocks}
    rest = [parameter for parameter in named.values() if id(parameter) not in chosen]
    lr, decay = recipe.lr, recipe.weight_decay
    return [
        torch.optim.Muon(
            blocks, lr=recipe.muon_lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def schedule(recipe: Recipe, step: int, progress: float) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine over the progress in 0..1."""
    factor = min(step / recipe.warmup, 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))
    return max(factor, 1e-3)


def _average(parameters: list[Tensor], progress: float, processes: int) -> float:
    """Average gradients and progress over the processes, in place; returns the common progress."""
    if processes == 1:
        return progress
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat(
        [*(parameter.grad.flatten() for parameter in parameters), torch.tensor([progress])]
    )
    dist.all_reduce(flat)
    flat /= processes
    offset = 0
    for parameter in parameters:
        parameter.grad.copy_(flat[offset : offset + parameter.numel()].view_as(parameter))
        offset += parameter.numel()
    return float(flat[-1])


def _report(job: Job, model: open_clip.CLIP, step: int, started: float) -> None:
    """Save the weights, and log how well what was saved names regions."""
    save_weights(model, job.output, job.command, job.recipe.seed, step)
    figures = evaluate(str(job.output), job.eval_scenes, job.recipe.region_blocks, ["single"])
    minutes = (time.monotonic() - started) / 60
    logger.info("step %d %.1f min %s", step, minutes, json.dumps(figures))


def _run(rank: int, job: Job, store: str) -> None:
    """One training process; rank 0 saves and evaluates."""
    recipe = job.recipe
    level = logging.INFO if rank == 0 else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(name)s %(message)s")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    processes = recipe.processes
    if processes > 1:
        dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=processes)
    model, tokenizer = build_model(recipe.seed)
    if recipe.init:
        model.load_state_dict({k: v.float() for k, v in read_tensors(recipe.init).items()})
    parameters = list(model.parameters())
    rng = np.random.default_rng([recipe.seed, rank])
    share, pictures = recipe.pool_scenes // processes, recipe.batch // processes
    mine = range(rank * share, (rank + 1) * share)
    pool = render_pool(recipe.seed, mine, model.visual.patch_size[0])
    optimizers = build_optimizers(model, recipe)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    peaks = [group["lr"] for group in groups]
    started, total, progress = time.monotonic(), 0.0, 0.0
    for step in range(1, recipe.steps + 1):
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * schedule(recipe, step, progress)
        batch = draw_batch(rng, pool, pictures, recipe.windows)
        loss = losses(model, tokenizer, rng, batch, recipe)
        model.zero_grad(set_to_none=True)
        loss.backward()
        elapsed = time.monotonic() - started
        done = elapsed / (60 * recipe.minutes) if recipe.minutes else 0.0
        progress = _average(parameters, max(done, step / recipe.steps), processes)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        total += loss.item()
        last = progress >= 1 or step == recipe.steps
        if rank == 0 and step % _LOG_EVERY == 0:
            logger.info("step %d loss %.3f %.3f s/step", step, total / _LOG_EVERY, elapsed / step)
            total = 0.0
        if rank == 0 and (last or step % job.save_every == 0):
            _report(job, model, step, started)
        if last:
            break
    if processes > 1:
        dist.destroy_process_group()


def train(job: Job) -> None:
    """Train a tiny CLIP and write its weights.

    Processes of one thread each, with averaged gradients, share a busy machine better than threads
    do: one barrier a step instead of hundreds.

    Args:
        job: the recipe and where its result goes.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        if job.recipe.processes == 1:
            _run(0, job, store)
        else:
            torch.multiprocessing.spawn(_run, (job, store), job.recipe.processes)
