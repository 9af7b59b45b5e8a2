"""Says what a command waits for."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")

# Seconds without a line that nobody minds.
PATIENCE = 2.0
# Seconds between the lines that say how far a long work has come.
PERIOD = 10.0


@contextmanager
def waiting(what: str, patience: float = PATIENCE) -> Iterator[None]:
    """Writes one line to stderr if the work inside takes more than `patience` seconds."""
    timer = threading.Timer(patience, sys.stderr.write, [f"{what} ...\n"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def tracked(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """The items, with a bar on a terminal, and elsewhere a line every few seconds on stderr."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if console.is_terminal:
        yield from track(items, what, total=total, console=console, transient=True)
        return
    due = time.monotonic() + PATIENCE
    for number, item in enumerate(items):
        yield item
        if time.monotonic() > due:
            sys.stderr.write(f"{what}: {number + 1} of {total}\n")
            due = time.monotonic() + PERIOD


def say_loading() -> None:
    """Writes to a terminal why a command is silent at first; nothing elsewhere."""
    if sys.stderr.isatty():
        sys.stderr.write("loading PyTorch and Detectron2 ...\n")


def escape_unprintable() -> None:
    """Lets names that the terminal's encoding does not have be shown as escapes, not end the work.

    On Windows that is any name outside a code page, as soon as the output goes to a file.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
