"""Forks in sessions of their own, and who is left of them; for `tools/stress_failures.py`."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARKER = "ALIGNZEG_STRESS"


def forked(run: Callable[[], int], logs: Path) -> int:
    """Runs something in a fork, in a session of its own, writing to LOGS.stdout and .stderr."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        for number, suffix in ((1, ".stdout"), (2, ".stderr")):
            file = os.open(logs.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
        finish(run)
    return pid


def finish(run: Callable[[], int]) -> Any:
    """Ends this fork with the exit code of what it runs."""
    code = 1
    try:
        code = run()
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:  # noqa: BLE001 (it goes to the run's own stderr)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def living(session: int, mark: str) -> list[int]:
    """Processes of a run that have not ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, of = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            marked = f"{MARKER}={mark}".encode() in (folder / "environ").read_bytes()
        except OSError:
            continue
        if state != "Z" and (int(of) == session or marked):
            found.append(int(folder.name))
    return found
