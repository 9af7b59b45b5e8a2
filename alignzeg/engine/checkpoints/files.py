"""Files that are either whole or not there: written aside, read back, and only then renamed."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable
from typing import IO, Any

logger = logging.getLogger(__name__)

# Attempts to write one file, and seconds to wait before the second; doubled for each further one.
ATTEMPTS = 4
WAIT_S = 1.0
# What reading a zip archive that is cut short or overwritten has been seen to raise.
_BAD_ARCHIVE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


def write_atomically(
    path: str, write: Callable[[IO[bytes]], Any], check: Callable[[str], Any] | None = None
) -> None:
    """Puts a file in its place in one step; a reader sees the old file or the new one.

    The content goes to a hidden file beside it, is flushed to the disk and read back; then the file
    is renamed. Failed attempts are repeated, `ATTEMPTS` in all.

    Args:
        path: the file; its folder must exist.
        write: puts the content into an open binary file.
        check: reads the hidden file and raises OSError if it is not what was written.

    Raises:
        OSError: if every attempt failed. The old file, if any, is untouched, nothing else is left.
    """
    wait = WAIT_S
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _write_once(path, write, check)
        except OSError as error:
            if attempt == ATTEMPTS:
                raise OSError(
                    error.errno or errno.EIO,
                    f"cannot write {path!r}: {_reason(error)} ({ATTEMPTS} attempts); "
                    "what was there before is untouched",
                ) from error
            logger.warning(
                "writing %s failed (%s); attempt %d of %d follows in %g s",
                path,
                _reason(error),
                attempt + 1,
                ATTEMPTS,
                wait,
            )
            time.sleep(wait)
            wait *= 2
        else:
            return


def aside(path: str) -> str:
    """The hidden file that `write_atomically` writes before it renames it to `path`."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.tmp")


def _write_once(
    path: str, write: Callable[[IO[bytes]], Any], check: Callable[[str], Any] | None
) -> None:
    hidden = aside(path)
    try:
        with open(hidden, "wb") as file:
            _run(write, file)
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                # So that the check reads what is on the disk, not what is still in memory.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if check is not None:
            check(hidden)
        os.replace(hidden, path)
        _sync_folder(os.path.dirname(path))
    except BaseException:
        if os.path.exists(hidden):
            os.unlink(hidden)
        raise


class _Watched:
    """A binary file that remembers why a write failed; torch.save hides the reason."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _run(write: Callable[[IO[bytes]], Any], file: IO[bytes]) -> None:
    watched = _Watched(file)
    try:
        write(watched)  # type: ignore[arg-type]
    except Exception:
        if watched.error is not None:
            raise watched.error from None
        raise


def _sync_folder(folder: str) -> None:
    # A rename is on the disk when the folder is. Not every system can flush a folder.
    if os.name != "posix":
        return
    handle = os.open(folder or ".", os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def check_room(folder: str, needed: int) -> None:
    """Refuses to start writing what will not fit.

    Args:
        folder: where the file will be.
        needed: bytes.

    Raises:
        OSError: ENOSPC, naming both sizes.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"no room for a checkpoint in {folder!r}: it takes {needed / 2**20:.1f} MiB and "
            f"{free / 2**20:.1f} MiB are free; free some, or set OUTPUT_DIR to another disk "
            "(ALIGNZEG.CHECKPOINT.KEEP bounds how many are kept)",
        )


def damage(path: str) -> str:
    """What is wrong with a zip archive, such as torch.save writes, read to its last byte.

    Returns:
        The reason; empty if every part of it agrees with its checksum.

    Raises:
        OSError: if the file cannot be read at all.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except _BAD_ARCHIVE as error:
        return f"{type(error).__name__}: {error}"
    return "" if bad is None else f"the checksum of its part {bad!r} is wrong"
