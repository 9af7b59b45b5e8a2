"""Says what a command waits for."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Seconds without a line that nobody minds.
PATIENCE = 2.0


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


def say_loading() -> None:
    """Writes to a terminal why a command is silent at first; nothing elsewhere."""
    if sys.stderr.isatty():
        sys.stderr.write("loading PyTorch and Detectron2 ...\n")
