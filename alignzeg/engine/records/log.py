"""The log of a run: the screen and one log.txt, until the next run of the process begins."""

from __future__ import annotations

import copy
import logging
import os
import re
import sys
from pathlib import Path

from termcolor import colored

from alignzeg.engine.processes.errors import explain

LOGGERS = ("alignzeg", "detectron2", "fvcore")
_ABBREVIATED = {"detectron2": "d2"}
_COLOR_CODES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_TIME = "%m/%d %H:%M:%S"
_ours: list[tuple[logging.Logger, logging.Handler]] = []


def start_log(folder: str | Path, rank: int = 0, tracebacks: bool = True) -> None:
    """Sends what this project and Detectron2 log to the screen and to OUTPUT_DIR.

    An earlier run of the same process, as in a notebook, gets no more lines, and no line is shown
    twice, also where Detectron2's `setup_logger` was called before. Handlers of the user's that
    write elsewhere stay.

    The first process alone writes to the screen and to log.txt, others to log.txt.rank1 and so on.
    The screen shows logged tracebacks only if asked to.
    """
    _end_earlier()
    path = Path(folder) / (f"log.txt.rank{rank}" if rank else "log.txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [logging.FileHandler(path, encoding="utf-8")]
    handlers[0].setFormatter(_Plain("[%(asctime)s] %(name)s %(levelname)s: %(message)s", _TIME))
    if rank == 0:
        kind = logging.StreamHandler if tracebacks else _WithoutTraceback
        screen = kind(sys.stdout)
        screen.setLevel(logging.INFO)
        shown = _Colorful if _shows_colors(sys.stdout) else _Screen
        screen.setFormatter(shown("[%(asctime)s %(name)s]: %(message)s", _TIME))
        handlers.append(screen)
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        for handler in handlers:
            logger.addHandler(handler)
            _ours.append((logger, handler))


def _end_earlier() -> None:
    for logger, handler in _ours:
        logger.removeHandler(handler)
        if isinstance(handler, logging.FileHandler):
            handler.close()
    _ours.clear()
    for name in LOGGERS:
        logger = logging.getLogger(name)
        for handler in [handler for handler in logger.handlers if _on_screen(handler)]:
            logger.removeHandler(handler)


def _on_screen(handler: logging.Handler) -> bool:
    streams = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    return getattr(handler, "stream", None) in streams


def _shows_colors(stream: object) -> bool:
    isatty = getattr(stream, "isatty", None)
    return bool(isatty and isatty()) and not os.environ.get("NO_COLOR")


class _Plain(logging.Formatter):
    """Lines without colour codes, which only a terminal understands."""

    def format(self, record: logging.LogRecord) -> str:
        return _COLOR_CODES.sub("", super().format(record))


class _Screen(_Plain):
    """As on a terminal, but without colours: short names, and a word before warnings."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        record = copy.copy(record)
        first, dot, rest = record.name.partition(".")
        record.name = f"{_ABBREVIATED.get(first, first)}{dot}{rest}"
        text = super().formatMessage(record)
        return f"{record.levelname} {text}" if record.levelno >= logging.WARNING else text


class _Colorful(_Screen):
    """For a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        text = logging.Formatter.format(self, record)
        if record.levelno >= logging.WARNING:
            return colored(text, "red", force_color=True)
        head, bracket, rest = text.partition("]:")
        return colored(head + bracket, "green", force_color=True) + rest


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
