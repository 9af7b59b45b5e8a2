"""Processes on one machine that are started together and end together, by `torch.multiprocessing`.

PyTorch starts them, waits for them and ends them; here each also leaves a report of why it failed.
"""

from __future__ import annotations

import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch.multiprocessing.spawn import ProcessContext, ProcessExitedException, start_processes

from alignzeg.data.worker_registration import Registered
from alignzeg.engine.processes import errors, process_exit
from alignzeg.engine.processes.errors import PEER_FAILED, RunFailed
from alignzeg.files import atomic_write
from alignzeg.progress import escape_unprintable

# CUDA does not survive a fork.
START_METHOD = "spawn"
# Seconds that the others have from the first failure on, and again after SIGTERM, before SIGKILL.
PATIENCE_SECONDS = 20
# Seconds in which an interrupt of a terminal reaches the other processes, too.
_TERMINAL_SECONDS = 2
# Why a process failed: exit code, one line, traceback or nothing, and when, by the clock that is
# the same in all processes of a machine. None after a SystemExit.
Report = tuple[int, str, str, float] | None


def run_processes(target: Callable[[Any], Any], jobs: Sequence[Any], first_rank: int = 0) -> None:
    """Calls `target(job)` in a process of its own for each job, and waits for all of them.

    They have the data sets and plugins that are registered here. SIGTERM and SIGUSR1 are handed on.
    If one fails, the others get PATIENCE_SECONDS to leave by themselves, and are ended then. If
    this process is killed, they leave too.

    `target` can be pickled, such as a function at the top level of a module. Messages count the
    processes from `first_rank`.

    Raises:
        RunFailed: if one failed; about the one that failed first.
        SystemExit: if they ended by SystemExit, with its exit code.
        KeyboardInterrupt: if this process was interrupted.
    """
    with process_exit.handling(process_exit.forward), tempfile.TemporaryDirectory() as folder:
        arguments = (Registered(), target, jobs, folder, os.getpid())
        context = start_processes(_work, arguments, len(jobs), False, False, START_METHOD)
        try:
            while not context.join(grace_period=PATIENCE_SECONDS):
                pass
            return
        except KeyboardInterrupt:
            _interrupt(context)
            raise
        except ProcessExitedException as error:
            index, report = _cause(context, error.error_index, Path(folder))
    if report is None:
        raise SystemExit(context.processes[index].exitcode)
    code, message, trace, _ = report
    # What all processes agree on names them itself.
    who = "" if code == errors.NON_FINITE else f"process {first_rank + index}: "
    raise RunFailed(f"{who}{message}", code, trace)


def _work(
    index: int,
    _: Registered,
    target: Callable[[Any], Any],
    jobs: Sequence[Any],
    folder: str,
    parent: int,
) -> None:
    process_exit.watch_parent(parent)
    escape_unprintable()
    report: Report = None
    try:
        target(jobs[index])
        return
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else errors.BUG
    except BaseException as error:  # noqa: BLE001 (the parent process raises it)
        code, trace = errors.exit_code(error), traceback.format_exc()[-20000:]
        report = (code, errors.explain(error), trace, time.monotonic())
    # Whole or not at all, should this process be killed meanwhile.
    atomic_write(Path(folder) / str(index), pickle.dumps(report))
    process_exit.exit_now(code)


def _interrupt(context: ProcessContext) -> None:
    """Lets the processes end as after Ctrl-C; a second one, or their silence, kills them."""
    try:
        _join(context, _TERMINAL_SECONDS)
        process_exit.forward(signal.SIGINT)
        _join(context, PATIENCE_SECONDS)
    finally:
        for process in context.processes:
            process.kill()


def _join(context: ProcessContext, seconds: float) -> None:
    end = time.monotonic() + seconds
    for process in context.processes:
        process.join(max(0.0, end - time.monotonic()))


def _cause(context: ProcessContext, first: int, folder: Path) -> tuple[int, Report]:
    """Which process failed first, and how.

    `first` was noticed first; it may have left because of another.
    """
    codes = [process.exitcode for process in context.processes]
    reports = {int(path.name): pickle.loads(path.read_bytes()) for path in folder.glob("[0-9]*")}
    told = [index for index, report in reports.items() if report is not None]
    if first in told or codes[first] == PEER_FAILED:
        others = (i for i, code in enumerate(codes) if code not in (0, PEER_FAILED))
        first = min(told, key=lambda index: reports[index][-1], default=next(others, first))
    if first in reports:
        return first, reports[first]
    # Without a report, its exit code must do.
    code = codes[first]
    if code == PEER_FAILED:
        return first, (code, "left because of another process", "", 0.0)
    if code > 0:
        return first, (code, f"ended with exit code {code} without a word", "", 0.0)
    name = signal.Signals(-code).name
    hint = "; the system does that when memory runs out" if name == "SIGKILL" else ""
    return first, (PEER_FAILED, f"killed by {name}{hint}", "", 0.0)
