#!/usr/bin/env python
"""Times classes x masks + argmax: the usual order against this project's stripes, side by side.

Each side gets the same random proposals and answers the same label map. Times are medians of runs
that alternate in one process; peak memory is the growth of a fresh process per side. "pinned" tells
glibc to keep large buffers, for both sides; the default gives them back after every call.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from alignzeg.modeling.semantic_inference import semantic_inference

PINNED = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
}


def usual(probs: Tensor, logits: Tensor, size: int) -> Tensor:
    """Upsample every mask, multiply by every class, argmax over the classes."""
    masks = F.interpolate(logits[None], (size, size), mode="bilinear", align_corners=False)[0]
    return torch.einsum("qk,qhw->khw", probs, masks.sigmoid()).argmax(0)


def sides(classes: int, size: int, memory_mib: float) -> dict[str, Callable[[], Tensor]]:
    """The candidates on one random case of 100 proposals."""
    rng = torch.Generator().manual_seed(0)
    probs = (3 * torch.randn(100, classes + 1, generator=rng)).softmax(-1)[:, :-1].contiguous()
    coarse = 6 * torch.randn(1, 100, size // 32, size // 32, generator=rng)
    logits = F.interpolate(coarse, (size // 4, size // 4), mode="bicubic")[0].contiguous()
    sizes = ((size, size),) * 3
    return {
        "usual": lambda: usual(probs, logits, size),
        "exact": lambda: semantic_inference(probs, logits, *sizes, memory_mib),
        "fast": lambda: semantic_inference(probs, logits, *sizes, memory_mib, "fast"),
    }


def peak_mib(side: str, classes: int, size: int, memory_mib: float) -> float:
    """Growth of the resident memory of a fresh process that runs one side once."""
    command = [sys.executable, __file__, "--peak", side, "--memory-mib", str(memory_mib)]
    command += ["--classes", str(classes), "--size", str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def resident_bytes() -> int:
    """Resident memory of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth_mib(run: Callable[[], Tensor]) -> float:
    """How much the resident memory of this process grows at most while something runs."""
    finished = threading.Event()
    before = resident_bytes()
    peak = before

    def watch() -> None:
        nonlocal peak
        while not finished.wait(0.001):
            peak = max(peak, resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    finished.set()
    watcher.join()
    return (peak - before) / 2**20


def compare(classes: int, size: int, memory_mib: float, repeats: int) -> None:
    """Prints one line per side."""
    candidates = sides(classes, size, memory_mib)
    labels = {name: run() for name, run in candidates.items()}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    reference = statistics.median(seconds["usual"])
    for name in candidates:
        median = statistics.median(seconds[name])
        differing = int((labels[name].long() != labels["usual"]).sum())
        sys.stdout.write(
            f"{size:5d}^2 K={classes:<4d} {name:6s} {1e3 * median:9.1f} ms "
            f"{reference / median:6.2f}x {peak_mib(name, classes, size, memory_mib):8.0f} MiB "
            f"{differing:7d} pixels differ ({100 * differing / size**2:.3f} %)\n"
        )
        sys.stdout.flush()


def main() -> int:
    """Runs the benchmark; with --peak, measures one side and prints MiB."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, nargs="+", default=[20, 171])
    parser.add_argument("--size", type=int, nargs="+", default=[512, 1024], help="pixels")
    parser.add_argument("--memory-mib", type=float, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pinned", action="store_true", help="keep large buffers, on both sides")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.pinned and "MALLOC_TOP_PAD_" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **PINNED})
    if args.peak:
        run = sides(args.classes[0], args.size[0], args.memory_mib)[args.peak]
        sys.stdout.write(f"{growth_mib(run)}\n")
        return 0
    for size in args.size:
        for classes in args.classes:
            compare(classes, size, args.memory_mib, args.repeats)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
