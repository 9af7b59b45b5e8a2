"""Unpacking of official archives: only what is needed, never outside the target."""

from __future__ import annotations

import hashlib
import io
import logging
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from alignzeg.data.preparation.recipe import Archive
from alignzeg.files import atomic_write

logger = logging.getLogger(__name__)

_Opener = Callable[[], IO[bytes] | io.FileIO]
_Member = tuple[str, int, _Opener]


def unpack(archive: Archive, downloads: Path, root: Path) -> int:
    """Unpacks what is not there yet of an archive, if it is among the downloads.

    A file that is there with the size it should have is kept; each appears whole or not at all.

    Returns:
        The number of files written.

    Raises:
        ValueError: if the archive is damaged, or a member's path leaves the target, is a link or
            no plain file; nothing of it is written then.
    """
    path = downloads / archive.name
    if not path.is_file():
        return 0
    target = root / archive.folder
    _compare_md5(path, archive)
    target.mkdir(parents=True, exist_ok=True)
    written = 0
    try:
        for name, size, opened in tqdm(
            _members(path, archive.wanted), desc=archive.name, disable=None, unit="file"
        ):
            written += _write(target / name, size, opened)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(
            f"cannot unpack {path}: {error}. Is the download complete? Its source: {archive.source}"
        ) from error
    return written


def _compare_md5(path: Path, archive: Archive) -> None:
    if not archive.md5:
        return
    with path.open("rb") as stream:
        digest = hashlib.md5(usedforsecurity=False)
        while block := stream.read(1 << 22):
            digest.update(block)
    if digest.hexdigest() != archive.md5:
        logger.warning(
            "%s has MD5 %s, the official file %s: another version, or a damaged download",
            path,
            digest.hexdigest(),
            archive.md5,
        )


def _write(path: Path, size: int, opened: _Opener) -> int:
    if path.is_file() and path.stat().st_size == size:
        return 0
    with opened() as source:
        atomic_write(path, lambda sink: shutil.copyfileobj(source, sink, 1 << 20))
    return 1


def _members(path: Path, wanted: tuple[str, ...]) -> Iterator[_Member]:
    """Name, size and opener of the plain files that are wanted, after all names were checked."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            entries = packed.infolist()
            for entry in entries:
                # The upper half of the attributes is the Unix mode; 0o12 marks a link.
                link = entry.external_attr >> 28 == 0o12
                _refuse(path, entry.filename, link and _is_wanted(entry.filename, wanted))
            for entry in entries:
                if not entry.is_dir() and _is_wanted(entry.filename, wanted):
                    yield entry.filename, entry.file_size, partial(packed.open, entry)
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as listing:
            for member in listing:
                plain = member.isfile() or member.isdir()
                _refuse(path, member.name, not plain and _is_wanted(member.name, wanted))
        with tarfile.open(path) as packed:
            for member in packed:
                if member.isfile() and _is_wanted(member.name, wanted):
                    yield member.name, member.size, partial(_content, packed, member)
    elif path.suffix == ".json":
        yield path.name, path.stat().st_size, partial(io.FileIO, path)
    else:
        raise tarfile.TarError("it is neither a zip nor a tar file")


def _content(packed: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    stream = packed.extractfile(member)
    if stream is None:
        raise tarfile.TarError(f"member {member.name} has no content")
    return stream


def _is_wanted(name: str, wanted: tuple[str, ...]) -> bool:
    return not wanted or PurePosixPath(name).as_posix().startswith(wanted)


def _refuse(archive: Path, name: str, link: bool) -> None:
    parts = PurePosixPath(name.replace("\\", "/"))
    if link or parts.is_absolute() or ".." in parts.parts or ":" in (parts.parts or ("",))[0]:
        reason = "is a link or a device" if link else "leaves the target folder"
        raise ValueError(
            f"archive {archive}: member {name!r} {reason}; nothing was unpacked. "
            "The official archive holds no such member: download it anew"
        )
