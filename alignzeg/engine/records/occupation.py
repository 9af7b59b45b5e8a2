"""One run in one folder: a second process that would train there is refused."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # not on Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

_NAME = "run.lock"
_held: dict[Path, IO[str]] = {}


def occupy(folder: str | os.PathLike[str]) -> None:
    """Keeps other processes from training into a folder as long as this one lives.

    The lock is the operating system's: it goes with the process, however that ends, and forked
    workers do not keep it. Where the file system knows no locks, nothing is locked.

    Raises:
        ValueError: if another process has the folder.
    """
    folder = Path(folder).absolute()
    if fcntl is None or folder in _held:
        return
    folder.mkdir(parents=True, exist_ok=True)
    # Kept open: closing it would unlock it.
    file = open(folder / _NAME, "a+")  # noqa: SIM115
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        owner = file.read().strip() or "?"
        file.close()
        raise ValueError(
            f"process {owner} is training into OUTPUT_DIR {str(folder)!r}; stop it, or choose "
            "another OUTPUT_DIR"
        ) from None
    except OSError:
        file.close()
        return
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
    _held[folder] = file
