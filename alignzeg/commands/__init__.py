"""The commands: `alignzeg NAME` is the file of that name, its command line and what it does.

A command is a module with `parser() -> OneLineParser` and `main(args) -> exit code or None`. What
is heavy is imported inside `main`, so that a command line is read at once. A command that goes on
where it was stopped when it is given again has `RESUMABLE = True`.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import alignzeg
from alignzeg.arguments import TrainingError
from alignzeg.machine import broken_package, mend

# Name -> what it does, in the order of the help.
COMMANDS = {
    "train": "train a config",
    "evaluate": "evaluate a checkpoint on the test sets of a config",
    "predict": "segment images into any classes",
    "web": "open a page in the browser: images, class names, bias correction",
    "demo": "train the baseline and AlignZeg on the embedded data set, and compare them",
    "photos": "the same on photographs, MSRC-21",
    "report": "compare runs in one HTML file",
    "ablate": "train a list of configs with several seeds, and tabulate them",
    "ksplits": "compare ZS3Net and recursive training over numbers of unseen classes",
    "calibrate": "choose the bias correction on pseudo-unseen classes",
    "pseudo-labels": "let the frozen VLM name the pixels without labels",
    "audit": "prove that no unseen label or name reaches a loss",
    "compare": "name the first divergence of a run from another",
    "significance": "intervals and paired tests of evaluations",
    "vocabulary": "check class names; draw a sheet to look at the labels of a data set",
    "doctor": "check versions, devices, CLIP weights and data sets",
    "export": "write a checkpoint as ONNX, PT2 or safetensors",
    "share": "make the folder of a model that others can use, with a model card",
    "replay": "repeat a failed training step from its crash bundle",
}
# What nobody wants to read in an error.
_LONG_WORD = re.compile(r"\S{1000,}")
FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130
TERMINATED = 128 + signal.SIGTERM


class Terminated(KeyboardInterrupt):
    """SIGTERM has arrived; the command cleans up as after Ctrl-C."""


def refuse(problem: str) -> int:
    """Says on one line what is wrong with the input; returns the exit code."""
    line = _LONG_WORD.sub(lambda word: f"{word[0][:60]}...{word[0][-20:]}", problem)
    sys.stderr.write(f"error: {' '.join(line.split())}\n")
    return USER_ERROR


def guarded(run: Callable[[], Any], *, debug: bool = False, resumable: bool = False) -> int:
    """Runs a command and turns whatever ends it into one line.

    Args:
        run: the whole command; returns an exit code, or something else for 0.
        debug: let the traceback through.
        resumable: the command goes on where it was stopped if it is given again. SIGTERM then
            stops it as Ctrl-C does. Other commands keep the handlers that they have.

    Returns:
        Exit code: that of the command; 1 for a fault of the program, or for a training that the
        command has started and that failed; 2 for an error of the user; 3 for a loss, gradient or
        the like that is not finite; 4 if another process died, or this one because of it; 130 if
        interrupted; 143 if terminated.
    """
    try:
        with _terminable(resumable):
            code = run()
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt as stop:
        said = "stopped; run the same command to go on" if resumable else "interrupted"
        sys.stderr.write(f"{said}\n")
        return TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
    except TrainingError as error:
        sys.stderr.write(f"error: {error}\n")
        return FAILED
    except Exception as error:  # noqa: BLE001 (a traceback is for those who ask for it)
        return _complain(error, debug)


def _complain(error: Exception, debug: bool) -> int:
    # A process of the run that failed has sent its traceback along.
    trace = getattr(error, "trace", None)
    if debug and trace is None:
        raise error
    sys.stderr.write(trace if debug and trace else "")
    broken = broken_package(error)
    if broken:
        return refuse(f"{error}: {mend(broken, error)}; alignzeg doctor says what else is missing")
    if "alignzeg.engine" not in sys.modules and isinstance(
        error, (OSError, ValueError, ImportError)
    ):
        # What explains all other errors takes seconds to import, or cannot be.
        return refuse(str(error))
    from detectron2.utils import comm

    from alignzeg.engine.processes.errors import BUG, NON_FINITE, exit_code, explain

    code = exit_code(error)
    # One process of a run speaks.
    if int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0:
        hint = "; a fault of the program: --debug shows where" if code == BUG else ""
        # What all processes agree on names them itself.
        one_of_many = comm.get_world_size() > 1 and code != NON_FINITE
        who = f"process {comm.get_rank()}: " if one_of_many else ""
        sys.stderr.write(f"error: {who}{explain(error)}{hint}\n")
    return code


@contextmanager
def _terminable(wanted: bool) -> Iterator[None]:
    """Raises Terminated on SIGTERM, in the main thread only, as signals are handled there."""
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def find_repository() -> Path:
    """The checkout with the configs: the one that this package lies in, or the current folder.

    Raises:
        ValueError: if neither holds them.
    """
    for folder in (Path(alignzeg.__file__).resolve().parents[1], Path.cwd()):
        if (folder / "configs").is_dir():
            return folder
    raise ValueError("there is no folder configs; run this in a checkout of the repository")
