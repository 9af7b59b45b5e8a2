"""Files and folders: written whole or not at all, and listed with what links lead to."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

logger = logging.getLogger(__name__)

# Attempts to write what a run cannot do without, and seconds to wait before the second; doubled for
# each further one.
ATTEMPTS = 4
WAIT_S = 1.0

Content = bytes | str | Callable[[IO[bytes]], Any]
PACKAGE = Path(__file__).parent
# What a trained model depends on; report and prediction may change without a new training.
SOURCES = (
    *("config", "data", "engine", "evaluation", "generative", "losses", "modeling"),
    *("contracts.py", "peers.py", "structures.py", "registries.py", "registration.py"),
    *("assets/*.json", "assets/*.safetensors"),
)
_SUFFIXES = (".py", ".json", ".safetensors")
# How file systems say that they cannot flush at all; anything else is a failure to write.
_NO_FLUSH = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
# Of these a warning has been given, which is given once.
_told: set[int | None] = set()
# Of text that UTF-8 does not have: file names that are not of the system's encoding.
ESCAPED = "backslashreplace"


def atomic_write(
    path: str | Path,
    content: Content,
    *,
    durable: bool = False,
    check: Callable[[str], Any] | None = None,
    attempts: int = 1,
) -> None:
    """Puts a file in its place in one step; a reader sees the old file or the new one.

    The content goes to a hidden file beside it, which is then renamed. Missing folders are made.
    A device or a pipe, such as /dev/stdout, stays what it is and is written into.

    Args:
        path: the file.
        content: bytes, text (written as UTF-8; what a file's name holds beyond it, as an escape),
            or what puts the content into an open binary file.
        durable: whether the file is on the disk, not only in memory, before it takes its place.
        check: reads the hidden file and raises OSError if it is not what was written.
        attempts: how often to try; between attempts a disk gets time to recover.

    Raises:
        OSError: if every attempt failed. The old file, if any, is untouched, nothing else is left.
    """
    path = str(path)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    wait = WAIT_S
    for attempt in range(1, attempts + 1):
        try:
            _write_once(path, content, durable, check)
        except OSError as error:
            if attempt == attempts:
                tries = f" ({attempts} attempts)" if attempts > 1 else ""
                raise OSError(
                    error.errno or errno.EIO,
                    f"cannot write {path!r}: {_reason(error)}{tries}; "
                    "what was there before is untouched",
                ) from error
            logger.warning(
                "writing %s failed (%s); attempt %d of %d follows in %g s",
                *(path, _reason(error), attempt + 1, attempts, wait),
            )
            time.sleep(wait)
            wait *= 2
        else:
            return


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def free_bytes(folder: str | Path) -> float:
    """Room on the disk of a folder; infinite where the file system does not say."""
    with contextlib.suppress(OSError):
        usage = shutil.disk_usage(folder)
        # Some network file systems call everything 0.
        if usage.total:
            return usage.free
    return math.inf


def user_cache() -> Path | None:
    """The folder for what may be made anew, `~/.cache/alignzeg`; None without a home folder."""
    home = os.path.expanduser("~")
    if os.path.isabs(home):
        return Path(home, ".cache", "alignzeg")
    logger.info("there is no home folder: what could be kept in its cache is made anew each time")
    return None


def hidden_file(path: str | Path) -> str:
    """The hidden file that `atomic_write` of this process writes before it renames it to `path`."""
    folder, name = os.path.split(path)
    end = f".{os.getpid()}.tmp"
    # A name may have 255 bytes, this one too.
    while len(os.fsencode(name)) > 254 - len(end):
        name = name[:-1]
    return os.path.join(folder, f".{name}{end}")


def leftovers(folder: str | Path, pattern: str = "*") -> list[Path]:
    """Hidden files that writers of files of this pattern left behind when they were killed."""
    return sorted(Path(folder).glob(f".{pattern}.*.tmp"))


def _write_once(
    path: str, content: Content, durable: bool, check: Callable[[str], Any] | None
) -> None:
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        with open(path, "wb") as file:
            _write(content, file)
        return
    hidden = hidden_file(path)
    try:
        with open(hidden, "wb") as file:
            _write(content, file)
            file.flush()
            if durable:
                _sync(file.fileno(), hidden)
        if check is not None:
            check(hidden)
        os.replace(hidden, path)
        if durable:
            _sync_folder(os.path.dirname(path))
    except BaseException:
        if os.path.lexists(hidden):
            os.unlink(hidden)
        raise


def _write(content: Content, file: IO[bytes]) -> None:
    if callable(content):
        _run(content, file)
    else:
        file.write(content.encode(errors=ESCAPED) if isinstance(content, str) else content)


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

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _run(write: Callable[[IO[bytes]], Any], file: IO[bytes]) -> None:
    watched = _Watched(file)
    try:
        write(watched)  # type: ignore[arg-type]
    except Exception:
        if watched.error is not None:
            raise watched.error from None
        raise


def _sync(handle: int, name: str) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise
        _not_flushed(name, error)
    if hasattr(os, "posix_fadvise"):
        # So that the check reads what is on the disk, not what is still in memory.
        with contextlib.suppress(OSError):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)


def _sync_folder(folder: str) -> None:
    # A rename is on the disk when the folder is. The file is whole and in its place by now, so
    # that no failure here (SMB, FUSE and WSL know several) is worth the run.
    if os.name != "posix":
        return
    try:
        handle = os.open(folder or ".", os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        _not_flushed(folder or ".", error)


def _not_flushed(name: str, error: OSError) -> None:
    if error.errno not in _told:
        _told.add(error.errno)
        logger.warning(
            "the file system cannot flush %s (%s); the run goes on and files are whole, but a "
            "power cut may lose the latest",
            *(name, _reason(error)),
        )


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def files_below(folder: str | Path) -> list[Path]:
    """All files below a folder, sorted; those in linked folders too, hidden ones not.

    Path.rglob passes over linked folders, and over folders that it may not read.

    Raises:
        ValueError: if a folder cannot be read, a link leads nowhere, or a link leads to a folder
            around it, so that there would be no end; the message names it.
    """
    return sorted(_walk(Path(folder), ()))


def _walk(folder: Path, around: tuple[str, ...]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in around:
        raise ValueError(f"folder {folder} is a link to a folder around it; remove the link")
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise ValueError(f"cannot read folder {folder}: {error.strerror or error}") from error
    for entry in found:
        if entry.is_dir():
            yield from _walk(folder / entry.name, (*around, real))
        elif entry.is_file():
            yield folder / entry.name
        elif entry.is_symlink():
            raise ValueError(
                f"{folder / entry.name} is a link that leads nowhere; restore what it leads to, or "
                "remove it"
            )


def code_hash() -> str:
    """A hash of the parts of the package that a trained model depends on.

    Raises:
        RuntimeError: if one of them is not where it is looked for.
    """
    digest = hashlib.sha256()
    for file in source_files(SOURCES):
        digest.update(str(file.relative_to(PACKAGE)).encode() + b"\0")
        digest.update(file.read_bytes())
    return digest.hexdigest()


def source_files(sources: Iterable[str]) -> Iterator[Path]:
    """The files of the package that folders, files and patterns name.

    Raises:
        RuntimeError: if one of them names no file, as it would be left out without a word.
    """
    for source in sources:
        paths = sorted(PACKAGE.glob(source))
        files = [
            file
            for path in paths
            for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
            if file.is_file() and file.suffix in _SUFFIXES
        ]
        if not files:
            raise RuntimeError(f"there is no {source} in {PACKAGE}; mend the list in {__file__}")
        yield from files
