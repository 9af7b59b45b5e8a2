"""Room for a checkpoint, and whether one is whole."""

from __future__ import annotations

import errno
import shutil
import zipfile
import zlib

# What reading a zip archive that is cut short or overwritten has been seen to raise.
_BAD_ARCHIVE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


def check_room(folder: str, needed: int) -> None:
    """Refuses to start writing more bytes than the disk of a folder has room for.

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
