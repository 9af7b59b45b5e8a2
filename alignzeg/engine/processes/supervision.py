"""Processes on one machine that are started together and end together."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

import torch.multiprocessing

from alignzeg.data.worker_registration import Registered
from alignzeg.engine.processes import process_exit
from alignzeg.engine.processes.errors import (
    BUG,
    NON_FINITE,
    PEER_FAILED,
    RunFailed,
    exit_code,
    explain,
)
from alignzeg.engine.processes.signals import forwarding

# CUDA does not survive a fork.
START_METHOD = "spawn"
# Seconds from the first failure until the processes that are still there are killed.
PATIENCE_SECONDS = 30


@dataclass
class ChildReport:
    """How a process ended.

    Attributes:
        code: exit code.
        message: one line; None after a SystemExit.
        trace: traceback, or empty.
        order: the lowest is the cause; those that left because of another one come last.
    """

    code: int
    message: str | None
    trace: str = ""
    order: float = 0.0


@dataclass
class Child:
    """A started process.

    Attributes:
        rank: of the process in the whole run.
        process: the process.
        reports: where its report arrives, if it makes one.
        words: its report, once it has ended.
        killed: whether it was killed from here.
    """

    rank: int
    process: Any
    reports: connection.Connection
    words: ChildReport | None = None
    killed: bool = False


def run_processes(
    target: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], first_rank: int = 0
) -> None:
    """Calls `target(*job)` in a process of its own for each job, and waits for all of them.

    They have the data sets and plugins that are registered here. SIGTERM and SIGUSR1 are handed on.
    If one fails, the others get PATIENCE_SECONDS to leave by themselves, and are killed then. If
    this process is killed, they leave too.

    Args:
        target: a function at the top level of a module.
        jobs: its arguments, for each process.
        first_rank: of the first job, for messages.

    Raises:
        RunFailed: if one failed; about the one that failed first.
        SystemExit: if they ended by SystemExit, with its exit code.
        KeyboardInterrupt: if this process was interrupted.
    """
    context: Any = torch.multiprocessing.get_context(START_METHOD)
    children = []
    with forwarding():
        for rank, job in enumerate(jobs, first_rank):
            reports, pen = context.Pipe(duplex=False)
            process = context.Process(
                target=_work, args=(Registered(), target, job, pen, os.getpid())
            )
            process.start()
            pen.close()
            children.append(Child(rank, process, reports))
        interrupted = _wait(children)
    if interrupted:
        raise KeyboardInterrupt
    _judge(children)


def _work(
    _: Registered,
    target: Callable[..., Any],
    job: tuple[Any, ...],
    pen: connection.Connection,
    parent: int,
) -> None:
    process_exit.watch_parent(parent)
    try:
        target(*job)
    except SystemExit as error:
        words = ChildReport(error.code if isinstance(error.code, int) else BUG, None)
    except BaseException as error:  # noqa: BLE001 (the parent process raises it)
        trace = traceback.format_exc()[-20000:]
        # The clock is the same in all processes of a machine.
        words = ChildReport(exit_code(error), explain(error), trace, time.monotonic())
    else:
        return
    pen.send(words)
    process_exit.exit_now(words.code)


def _wait(children: Sequence[Child]) -> bool:
    """Until all have ended; returns whether the user interrupted."""
    deadline = remind = float("inf")
    interrupted = False
    while waiting := [child for child in children if child.words is None]:
        try:
            connection.wait([child.process.sentinel for child in waiting], timeout=1)
        except KeyboardInterrupt:
            # The second time is an order.
            deadline = 0.0 if interrupted else time.monotonic() + PATIENCE_SECONDS
            interrupted = True
            # A terminal interrupts them too, but it may have been this process alone.
            remind = time.monotonic() + 2
        for child in waiting:
            if child.process.exitcode is not None:
                child.words = _report(child)
                # After a SystemExit the others may still be busy, such as with saving.
                if child.words.code and child.words.message is not None:
                    deadline = min(deadline, time.monotonic() + PATIENCE_SECONDS)
        if time.monotonic() > remind:
            remind = float("inf")
            _signal(waiting, signal.SIGINT)
        if time.monotonic() > deadline:
            for child in waiting:
                child.killed = True
            _signal(waiting, signal.SIGKILL)
    return interrupted


def _signal(children: Sequence[Child], number: int) -> None:
    for child in children:
        if child.words is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.process.pid, number)


def _report(child: Child) -> ChildReport:
    """What the process has sent, or else what its exit code says."""
    with contextlib.suppress(EOFError, OSError):
        if child.reports.poll():
            return child.reports.recv()
    code, late = child.process.exitcode, float("inf")
    if code == 0:
        return ChildReport(0, None)
    if code == PEER_FAILED or child.killed:
        return ChildReport(PEER_FAILED, "left because of another process", order=late)
    if code > 0:
        return ChildReport(code, f"ended with exit code {code} without a word")
    name = signal.Signals(-code).name
    hint = "; the system does that when memory runs out" if name == "SIGKILL" else ""
    return ChildReport(PEER_FAILED, f"killed by {name}{hint}")


def _judge(children: Sequence[Child]) -> None:
    """Raises what the process that failed first has said, or what is known of it."""
    failed = [(c.rank, c.words) for c in children if c.words is not None and c.words.code]
    if not failed:
        return
    rank, words = min(failed, key=lambda pair: pair[1].order)
    if words.message is None:
        raise SystemExit(words.code)
    # What all processes agree on names them itself.
    who = "" if words.code == NON_FINITE else f"process {rank}: "
    raise RunFailed(f"{who}{words.message}", words.code, words.trace)
