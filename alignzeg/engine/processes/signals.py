"""Being told to stop: finish the step, save, and leave with an exit code of its own."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import torch
import torch.distributed as dist
from detectron2.utils import comm

from alignzeg.engine.processes.process_exit import later

logger = logging.getLogger(__name__)

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
        """Takes the seconds from the signal to the end of the step."""
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
        if self.received:
            return
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


def forward(number: int, _: FrameType | None) -> None:
    """Hands a signal on to the processes that this one has started."""
    for process in multiprocessing.active_children():
        if process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
