"""How a row is measured: two sides in turns, their medians, and their peak memory."""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
OUTPUT = REPOSITORY / "output" / "bench"
# Keep freed memory, as the training on a CPU does: the numbers are those of the computation then.
PINNED = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
}
# A fixed amount of work that takes longer by this factor has been disturbed, and so have rows
# beside which others kept more than this many cores busy.
DISTURBED, OTHER_CORES = 1.15, 0.15
_LOOP_SIDE, _LOOP_ROUNDS = 512, 20
# Runs whose peak memory is measured for one figure.
_MEMORY_RUNS = 3

Sides = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Result:
    """What was measured: ours and the peer's, in the unit of the row, and the ratio of the row."""

    ours: float
    peer: float
    ratio: float
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        goal: what the ratio should reach; 0: none, the row informs.
        what: what is compared, for the table.
        measure: called with the row's name, the row and whether sizes are toys.
        build: makes the two sides, "ours" and "peer", at full or toy size.
        unit: of `ours` and `peer`.
        seconds: about how long the sides are repeated.
        least: turns that are taken also if that takes longer.
        allocator: whether the default allocator is measured too.
        check: given both answers; raises AssertionError if they must be equal and are not, and
            returns what else is to be said about them.
    """

    goal: float
    what: str
    measure: Callable[[str, Row, bool], Result]
    build: Callable[[bool], Sides] | None = None
    unit: str = "ms"
    seconds: float = 6.0
    least: int = 3
    allocator: bool = False
    check: Callable[[Any, Any], str] | None = None


def interleaved(sides: Sides, seconds: float, least: int = 3, most: int = 15) -> dict[str, float]:
    """Median milliseconds of each side; the sides take turns until the time is used up."""
    spent: dict[str, list[float]] = {name: [] for name in sides}
    end = time.perf_counter() + seconds
    for turn in range(most):
        if turn >= least and time.perf_counter() > end:
            break
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            spent[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values) for name, values in spent.items()}


def timed(name: str, row: Row, quick: bool) -> Result:
    """Checks that both sides answer alike, then measures them in turns."""
    del name
    assert row.build is not None
    sides = row.build(quick)
    answers = (sides["ours"](), sides["peer"]())
    note = row.check(*answers) if row.check else ""
    del answers
    # The default allocator informs: it gets less time.
    seconds = row.seconds if "MALLOC_TOP_PAD_" in os.environ else row.seconds / 3
    found = interleaved(sides, 0 if quick else seconds, least=1 if quick else row.least)
    return Result(found["ours"], found["peer"], found["peer"] / found["ours"], note)


def memory(name: str, row: Row, quick: bool) -> Result:
    """Peak growth of the resident memory, each side in a fresh process."""
    del row
    ours, peer = (peak_mib(name, side, quick) for side in ("ours", "peer"))
    return Result(ours, peer, peer / ours)


def peak_mib(row: str, side: str, quick: bool) -> float:
    """Growth of the resident memory, in MiB, of a fresh process that runs one side.

    Toys need no process of their own: their memory means nothing.
    """
    if quick:
        return growth_mib(importlib.import_module("bench.run").rows()[row][1], side, quick)
    command = [sys.executable, str(REPOSITORY / "dev" / "bench"), "--peak", row, side]
    # With a pinned allocator a process also holds what others of its buffers have freed.
    env = {key: value for key, value in os.environ.items() if key not in PINNED}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=REPOSITORY)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def growth_mib(row: Row, side: str, quick: bool) -> float:
    """Peak growth in this process; what is made once for all calls is made before, at toy size.

    The median of a few runs: what the allocator asks the system for differs from one to the next.
    """
    assert row.build is not None
    row.build(True)[side]()
    run = row.build(quick)[side]
    found = []
    for _ in range(1 if quick else _MEMORY_RUNS):
        if platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
        before = _status("VmRSS")
        kept = run()
        found.append((_status("VmHWM") - before) / 1024)
        del kept
    # A page is the least that can be seen.
    return max(statistics.median(found), 1 / 256)


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {key}")


def calibrate() -> float:
    """Milliseconds of a fixed amount of work, the median of a few turns."""
    values = torch.full((_LOOP_SIDE, _LOOP_SIDE), 0.5)

    def work() -> None:
        for _ in range(_LOOP_ROUNDS):
            torch.mm(values, values)

    work()
    return interleaved({"loop": work}, 0.5, least=5, most=50)["loop"]


class Others:
    """How busy processes that are not ours keep this machine, from now on (Linux)."""

    def __init__(self) -> None:
        self._start = self._seconds()

    def cores(self) -> float:
        """Cores that others have kept busy on average; children of ours count once they ended."""
        now = self._seconds()
        wall, busy, ours = (b - a for a, b in zip(self._start, now, strict=True))
        return max(0.0, busy - ours) / max(wall, 1e-9)

    @staticmethod
    def _seconds() -> tuple[float, float, float]:
        """Wall time, time that all cores were busy, and time that we were."""
        fields = [
            int(word)
            for word in Path("/proc/stat").read_text(encoding="utf-8").split("\n")[0].split()[1:]
        ]
        idle = fields[3] + fields[4]
        # Guests are part of the first two fields.
        busy = (sum(fields[:8]) - idle) / os.sysconf("SC_CLK_TCK")
        whos = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        used = [resource.getrusage(who) for who in whos]
        return time.perf_counter(), busy, sum(part.ru_utime + part.ru_stime for part in used)
