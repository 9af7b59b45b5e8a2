"""Commands as typed, each in a process of its own where the imports are done and nothing more."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from helpers import REPOSITORY

from alignzeg.__main__ import main

# A command in a new interpreter would spend most of its time on these.
IMPORTS = ["alignzeg", "alignzeg.engine", "alignzeg.inference", __name__]


def _answer(words: Sequence[str], folder: Path, said: Path) -> None:
    """What the process does: writes to a file, ends with the exit code of the command."""
    with open(said, "wb") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    os.chdir(folder)
    os.environ.pop("DETECTRON2_DATASETS", None)
    torch.set_num_threads(1)
    program, *rest = words
    if program == "alignzeg":
        sys.argv = [program, *rest]
        sys.exit(main(rest))
    assert program == "python"
    sys.argv = rest
    if rest[0] == "-c":
        exec(rest[1], {"__name__": "__main__"})
    else:
        sys.path.insert(0, str(Path(rest[0]).parent))
        runpy.run_path(rest[0], run_name="__main__")


def typed(words: Sequence[str], folder: Path, said: Path) -> tuple[int, str]:
    """Runs a line that starts with `alignzeg` or `python`.

    Args:
        words: of the line.
        folder: where it is typed.
        said: file for its output.

    Returns:
        The exit code, and what it has written to stdout and stderr.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTS)
    process = context.Process(target=_answer, args=(words, folder, said))
    with pytest.MonkeyPatch.context() as patch:
        # Where the first of them, of which the others are forks, finds the imports.
        patch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]))
        process.start()
    process.join()
    return process.exitcode, said.read_text(encoding="utf-8", errors="replace")
