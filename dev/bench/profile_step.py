"""Where a training step goes, and what changes to it would gain.

PYTHONPATH=dev python -m bench.profile_step configs/zeroshapes/alignzeg.yaml --steps 10
PYTHONPATH=dev python -m bench.profile_step configs/msrc21/alignzeg.yaml --try bf16 --ops 15

On a machine with other load, `--clock cpu` counts the time of the processor, not of the wall.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch import nn

from alignzeg.engine import Trainer, setup_config
from alignzeg.engine.run import keep_freed_memory
from alignzeg.engine.training.step import StepTrainer
from alignzeg.engine.training.trainer import build_step_trainer

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Parts:
    """Seconds by part of a step; parts inside of parts are counted once, with the inner one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time is added to a part."""

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(0.0)
            start = self.clock()
            try:
                return function(*args, **kwargs)
            finally:
                spent = self.clock() - start
                self.seconds[name] += spent - self._inside.pop()
                if self._inside:
                    self._inside[-1] += spent

        return run

    def watch(self, name: str, owner: Any, attribute: str) -> None:
        """Counts the calls of a method of one object."""
        function = self.timed(name, getattr(owner, attribute))
        # A module refuses other attributes than modules by its own rule.
        object.__setattr__(owner, attribute, function)


def build(config: str, opts: list[str], change: str, parts: Parts | None) -> StepTrainer:
    """The training step of a config, with one change tried, and its parts watched."""
    cfg = setup_config(config, [*opts, "OUTPUT_DIR", tempfile.mkdtemp(prefix="bench-step-")])
    cfg.SEED = max(cfg.SEED, 0)
    if change == "bf16":
        cfg.SOLVER.AMP.ENABLED, cfg.ALIGNZEG.SOLVER.AMP_DTYPE = True, "bfloat16"
    seed_all_rng(cfg.SEED)
    loader = Trainer.build_train_loader(cfg)
    loader.seed = cfg.SEED
    model = Trainer.build_model(cfg).train()
    CHANGES[change](model)
    optimizer = Trainer.build_optimizer(cfg, model)
    batches: Any = loader
    if change == "vlm_kept":
        # One batch again and again, of which the VLM's features are kept: an upper bound.
        batches = _Repeated(next(iter(loader)))
    step = build_step_trainer(cfg, model, batches, optimizer)
    step.iter = step.start_iter = 0
    if parts is not None:
        watch(step, model, parts)
    return step


class _Repeated:
    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield self.batch


def watch(step: StepTrainer, model: nn.Module, parts: Parts) -> None:
    """Names the parts of a step."""
    iterator = iter(step.data_loader)

    class Watched:
        def __iter__(self) -> Iterator[Any]:
            return self

        def __next__(self) -> Any:
            return parts.timed("data", next)(iterator)

    step.data_loader = Watched()
    parts.watch("encoder", model.backbone, "forward")
    parts.watch("VLM: image", model.head.vlm, "encode_image")
    parts.watch("VLM: regions", model.head.vlm, "embed_regions")
    parts.watch("VLM: text", model.head.vlm, "embed_text")
    parts.watch("extractor", model.head.extractor, "forward")
    parts.watch("rest of the head", model.head, "forward")
    parts.watch("synthetic features", model.head, "synthesize")
    parts.watch("matching", model.matcher, "forward")
    for criterion in model.criteria:
        parts.watch(f"loss: {type(criterion).__name__}", criterion, "forward")
    parts.watch("rest of the model", model, "forward")
    parts.watch("clipping", step, "_clip")
    parts.watch("optimizer", step.optimizer, "step")


def keep_vlm(model: nn.Module) -> None:
    """The image goes through the VLM once and its encoding is used in every step."""
    vlm, kept = model.head.vlm, []
    encode = vlm.encode_image

    def once(image: torch.Tensor) -> Any:
        if not kept:
            kept.append(encode(image))
        return kept[0]

    object.__setattr__(vlm, "encode_image", once)


def channels_last(model: nn.Module) -> None:
    """Kernels, and so all maps that follow, with the channels last."""
    model.to(memory_format=torch.channels_last)
    for frozen in getattr(model.head.vlm, "_hidden", ()):
        frozen.to(memory_format=torch.channels_last)


def compiled(model: nn.Module) -> None:
    """torch.compile of the encoder and of the extractor."""
    model.backbone.compile()
    model.head.extractor.compile()


def nothing(model: nn.Module) -> None:
    """The step as it is."""
    del model


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "none": nothing,
    "vlm_kept": keep_vlm,
    "channels_last": channels_last,
    "bf16": nothing,
    "compile": compiled,
}


def steps(step: StepTrainer, count: int, clock: Callable[[], float]) -> tuple[list[float], float]:
    """Seconds of each step, and the total loss of the last."""
    spent = []
    with EventStorage(0) as storage:
        for _ in range(count):
            start = clock()
            step.run_step()
            spent.append(clock() - start)
            storage.step()
        loss = storage.latest()["total_loss"][0]
    return spent, loss


def shares(config: str, opts: list[str], count: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Median step in ms and the share of each part; two steps before are not counted."""
    parts = Parts(clock)
    step = build(config, opts, "none", parts)
    backward = torch.Tensor.backward
    torch.Tensor.backward = parts.timed("backward", backward)  # type: ignore[method-assign]
    try:
        steps(step, 2, clock)
        parts.seconds.clear()
        spent, loss = steps(step, count, clock)
    finally:
        torch.Tensor.backward = backward  # type: ignore[method-assign]
    total = sum(spent)
    found = {name: seconds / total for name, seconds in parts.seconds.items()}
    found["rest of the step"] = 1 - sum(found.values())
    return {"ms": 1e3 * statistics.median(spent), "loss": loss, "shares": found}


def print_operations(step: StepTrainer, count: int) -> None:
    """The operations that take most of two steps."""
    steps(step, 1, time.perf_counter)
    with torch.profiler.profile() as profile:
        steps(step, 2, time.perf_counter)
    table = profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=count)
    sys.stdout.write(f"{table}\n")


def main() -> int:
    """Profiles, and tries changes; prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--try", nargs="*", default=[], choices=list(CHANGES), dest="changes")
    parser.add_argument("--ops", type=int, default=0, help="operations to list")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--opts", nargs="*", default=[], help="KEY VALUE pairs")
    args = parser.parse_args()
    keep_freed_memory()
    clock = CLOCKS[args.clock]
    found = shares(args.config, args.opts, args.steps, clock)
    sys.stdout.write(f"{args.config}: {found['ms']:.0f} ms a step ({args.clock})\n")
    for name, share in sorted(found["shares"].items(), key=lambda item: -item[1]):
        sys.stdout.write(f"{100 * share:6.1f} %  {name}\n")
    sys.stdout.flush()
    for change in args.changes:
        step = build(args.config, args.opts, change, None)
        steps(step, 2, clock)
        spent, loss = steps(step, args.steps, clock)
        ms = 1e3 * statistics.median(spent)
        sys.stdout.write(
            f"{change:14s} {ms:6.0f} ms a step, {found['ms'] / ms:.2f}x; total loss {loss:.6f} "
            f"instead of {found['loss']:.6f}\n"
        )
        sys.stdout.flush()
    if args.ops:
        print_operations(build(args.config, args.opts, "none", None), args.ops)
    return 0


if __name__ == "__main__":
    sys.exit(main())
