"""How a process is told to stop, and how it ends, whatever it is doing."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm

from alignzeg.arguments import PARENT
from alignzeg.engine.processes.errors import PEER_FAILED, one_line

logger = logging.getLogger(__name__)

# Seconds that a process has to clean up after its own failure.
LEAVE_SECONDS = 20
# Seconds between two looks at the parent process.
POLL_SECONDS = 1.0
# EX_TEMPFAIL of sysexits.h: "the user is invited to retry". Saved; start again with --resume.
EXIT_SAVED = 75
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


@contextlib.contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handles the signals inside; in any thread but the main one it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def forward(number: int, _: FrameType | None = None) -> None:
    """Hands a signal on to the processes that this one has started."""
    for process in multiprocessing.active_children():
        if process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)


class StopRequest:
    """Whether any process of the run has been asked to stop by SIGTERM or SIGUSR1.

    The first signal lets the step end. Others change nothing: a process manager may send one to
    this process and to its parent, which hands it on. A step (or an evaluation) that takes longer
    than the grace time ends the process without saving, with exit code 128 + the signal's number:
    its peers may be gone.

    Attributes:
        received: name of the signal that this process has received, or empty.
        stopping: whether the processes have agreed to stop.
    """

    def __init__(self, grace_s: float = 30.0) -> None:
        self.grace_s = grace_s
        self.received = ""
        self.stopping = False
        self._timer: threading.Timer | None = None
        self._group: dist.ProcessGroup | None = None
        if comm.get_world_size() > 1 and dist.get_backend() != dist.Backend.GLOO:
            self._group = dist.new_group(backend="gloo")

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Catches the signals inside, see `handling`."""
        with handling(self._receive):
            try:
                yield
            finally:
                self.disarm()

    def _receive(self, number: int, _: FrameType | None) -> None:
        if not self.received:
            self.received = signal.Signals(number).name
            self._timer = later(self.grace_s, os._exit, 128 + number)

    def disarm(self) -> None:
        """Lets what follows, such as saving, take as long as it takes."""
        if self._timer is not None:
            self._timer.cancel()

    def agreed(self) -> bool:
        """Whether any process has received a signal; to be called in all of them together."""
        self.stopping = bool(self.received)
        if comm.get_world_size() > 1:
            flag = torch.tensor([int(self.stopping)])
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
            self.stopping = bool(flag)
        return self.stopping


def watch_parent(parent: int, act: Callable[[], None] | None = None) -> None:
    """Ends this process, or does what is given, soon after its parent has ended, now or before."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        if act is None:
            leave("the process that started this one has ended", aloud=True)
        else:
            act()

    threading.Thread(target=look, name="watch-parent", daemon=True).start()


def follow_parent() -> None:
    """Lets this process be stopped, as by SIGTERM, once the command that started it has ended.

    That command says who it is in the environment; without that nothing is watched.
    """

    def stop() -> None:
        logger.error("the command that started this run has ended; stopping")
        os.kill(os.getpid(), signal.SIGTERM)

    parent = os.environ.pop(PARENT, "")
    if parent.isdecimal():
        watch_parent(int(parent), stop)


def leave(reason: str, *, aloud: bool) -> None:
    """Ends this process at once, whatever its main thread does; `aloud` tells the user why."""
    # Writing may wait for a lock of the main thread, or for a full pipe.
    later(5, os._exit, PEER_FAILED)
    logger.error("leaving: %s", reason)
    if aloud:
        sys.stderr.write(f"error: {one_line(reason)}\n")
    exit_now(PEER_FAILED)


def exit_now(code: int) -> None:
    """Ends this process and its workers without tidying up, which may wait for what has gone."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    # Last, as threads of this process may complain that their workers are gone. PyTorch's handler
    # would raise for each of them, here.
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in multiprocessing.active_children():
        with contextlib.suppress(OSError, ValueError):
            worker.kill()
    os._exit(code)


def force_exit_later(seconds: float = LEAVE_SECONDS) -> None:
    """Ends this process after a while, also from inside a call that never returns."""
    # Faulthandler's clock needs neither the interpreter nor its lock.
    with contextlib.suppress(OSError, ValueError, RuntimeError, AttributeError):
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)


def later(seconds: float, act: Callable[..., Any], *args: Any) -> threading.Timer:
    """Does something after a while, unless the process has ended, or the timer is cancelled."""
    timer = threading.Timer(seconds, act, args)
    timer.daemon = True
    timer.start()
    return timer
