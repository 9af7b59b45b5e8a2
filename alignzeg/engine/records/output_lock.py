"""One run in one folder: a second run that would mix its files with the first one's is refused."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # not on Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

_NAME = "run.lock"
# What a training leaves that another one would add to, and all that it writes but config.yaml,
# which is replaced anyway and may be the very config of the new run.
_TRAINED = ("metrics.json", "losses.jsonl", "last_checkpoint", "model_*.pth")
_WRITTEN = (
    *_TRAINED,
    *("log.txt*", "provenance.json*", "events.out.tfevents.*", "inference", "crash"),
)
_held: dict[Path, IO[str]] = {}


def lock_output(folder: str | os.PathLike[str]) -> None:
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


def check_unused(
    folder: str | os.PathLike[str], overwrite: bool = False, values: Mapping[str, Any] | None = None
) -> None:
    """Refuses to start a new training where there has been one.

    With `overwrite` it is to be deleted, see `clear`; no value of the config may be a file of it
    then.

    Raises:
        ValueError: naming the folder, and what can be done.
    """
    folder = Path(folder).absolute()
    found = _matching(folder, _TRAINED)
    if found and not overwrite:
        raise ValueError(
            f"OUTPUT_DIR {str(folder)!r} holds a training already ({found[0].name}); go on with it "
            "by --resume, delete it by --overwrite, or choose another OUTPUT_DIR"
        )
    doomed = [path.resolve() for path in _matching(folder, _WRITTEN)] if overwrite else []
    for key, value in (values or {}).items():
        file = Path(value).resolve() if isinstance(value, str) and value else None
        if file is not None and any(file == path or path in file.parents for path in doomed):
            raise ValueError(
                f"{key} is {value!r}, which --overwrite would delete; copy it to another folder, "
                "or choose another OUTPUT_DIR"
            )


def clear(folder: str | os.PathLike[str]) -> None:
    """Deletes what an earlier run has written into its folder; other files stay."""
    for path in _matching(Path(folder), _WRITTEN):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted({path for pattern in patterns for path in folder.glob(pattern)})
