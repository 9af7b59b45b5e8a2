"""Ends this process, whatever it is doing."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from alignzeg.arguments import PARENT
from alignzeg.engine.processes.errors import PEER_FAILED, one_line

logger = logging.getLogger(__name__)

# Seconds that a process has to clean up after its own failure.
LEAVE_SECONDS = 20
# Seconds between two looks at the parent process.
POLL_SECONDS = 1.0


def watch_parent(parent: int) -> None:
    """Ends this process soon after its parent, which may have ended already."""
    _after_parent(parent, lambda: leave("the process that started this one has ended", aloud=True))


def follow_parent() -> None:
    """Lets this process be stopped, as by SIGTERM, once the command that started it has ended.

    That command says who it is in the environment; without that nothing is watched.
    """

    def stop() -> None:
        logger.error("the command that started this run has ended; stopping")
        os.kill(os.getpid(), signal.SIGTERM)

    parent = os.environ.pop(PARENT, "")
    if parent.isdecimal():
        _after_parent(int(parent), stop)


def _after_parent(parent: int, act: Callable[[], None]) -> None:
    """Does something, in a thread, soon after the parent process has ended."""

    def look() -> None:
        while os.getppid() == parent:
            pause.wait(POLL_SECONDS)
        act()

    pause = threading.Event()
    threading.Thread(target=look, name="watch-parent", daemon=True).start()


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
