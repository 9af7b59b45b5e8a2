"""The log of a run: the screen and one log.txt, until the next run of the process begins."""

from __future__ import annotations

import copy
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

from detectron2.utils.logger import _ColorfulFormatter
from termcolor import colored

from alignzeg.engine.processes.errors import explain
from alignzeg.files import ESCAPED

LOGGERS = ("alignzeg", "detectron2", "fvcore")
_COLOR_CODES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_TIME = "%m/%d %H:%M:%S"
_ours: list[logging.Handler] = []


def start_log(folder: str | Path, rank: int = 0, tracebacks: bool = True) -> None:
    """Sends what this project and Detectron2 log to the screen and to OUTPUT_DIR.

    An earlier run of the same process, as in a notebook, gets no more lines, and no line is shown
    twice, also where Detectron2's `setup_logger` was called before. Handlers of the user's that
    write elsewhere stay.

    The first process alone writes to the screen and to log.txt, others to log.txt.rank1 and so on.
    The screen shows logged tracebacks only if asked to.
    """
    path = Path(folder) / (f"log.txt.rank{rank}" if rank else "log.txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(path, encoding="utf-8", errors=ESCAPED)
    file.setFormatter(_Plain("[%(asctime)s] %(name)s %(levelname)s: %(message)s", _TIME))
    handlers: list[logging.Handler] = [file]
    if rank == 0:
        screen = (logging.StreamHandler if tracebacks else _WithoutTraceback)(sys.stdout)
        screen.setLevel(logging.INFO)
        head = colored("[%(asctime)s %(name)s]: ", "green", force_color=True)
        names: Any = {"root_name": "detectron2", "abbrev_name": "d2"}
        colors = getattr(sys.stdout, "isatty", bool)() and not os.environ.get("NO_COLOR")
        shown = _ColorfulFormatter if colors else _PlainScreen
        screen.setFormatter(shown(f"{head}%(message)s", _TIME, **names))
        handlers.append(screen)
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        others = [h for h in logger.handlers if h not in _ours and not _on_screen(h)]
        logger.handlers[:] = [*others, *handlers]
    for handler in _ours:
        if isinstance(handler, logging.FileHandler):
            handler.close()
    _ours[:] = handlers


def _on_screen(handler: logging.Handler) -> bool:
    streams = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    return getattr(handler, "stream", None) in streams


class _Plain(logging.Formatter):
    """Lines without colour codes, which only a terminal understands."""

    def format(self, record: logging.LogRecord) -> str:
        return _COLOR_CODES.sub("", super().format(record))


class _PlainScreen(_Plain, _ColorfulFormatter):
    """As on a terminal, but without colours: short names, and a word before warnings."""


class _WithoutTraceback(logging.StreamHandler):
    """A screen that shows one line in place of a traceback, such as Detectron2's."""

    def format(self, record: logging.LogRecord) -> str:
        """The record without its traceback, which is in log.txt."""
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            record = copy.copy(record)
            record.msg = f"{record.getMessage()} {explain(error)}"
            record.args = record.exc_info = record.exc_text = None
        return super().format(record)
