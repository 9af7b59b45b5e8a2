"""What a preparation is made of: archives, tasks, and what to say if something is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Archive:
    """An official file to download by hand, as licences ask for it.

    Attributes:
        name: of the file.
        source: the address of the file, or of the page that leads to it.
        folder: where it is unpacked, relative to the data root.
        wanted: beginnings of the members that are needed; all if empty.
        md5: of the official file, or "" if unknown.
    """

    name: str
    source: str
    folder: str = ""
    wanted: tuple[str, ...] = ()
    md5: str = ""


@dataclass(frozen=True)
class Task:
    """One file to write.

    Attributes:
        target: the file.
        make: a function of a module, called with `arguments`; returns the whole content.
        arguments: picklable.
    """

    target: str
    make: Callable[..., bytes]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Plan:
    """All files to write, and what the sources lacked.

    Attributes:
        tasks: in any order.
        lacking: ids of the official lists for which there is no source file.
    """

    tasks: Sequence[Task] = ()
    lacking: Sequence[str] = ()


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
        root: the data root.
        splits: "train", "val" or both.
        full: whether the long class list is wanted too, where there are two.
        command: that goes on after a missing file was put in place.
        source: a folder of unpacked files outside the data root, if one was given.
    """

    root: Path
    splits: tuple[str, ...]
    full: bool
    command: str
    source: Path | None = None


@dataclass(frozen=True)
class Recipe:
    """How one data set is prepared.

    Attributes:
        name: of the script, `datasets/prepare_<name>.py`.
        about: one line.
        archives: official files.
        plan: lists the files to write.
        benchmarks: registered names (without split) whose files are checked.
        full_benchmarks: further ones, made on request.
        splits: that can be prepared.
        takes_source: whether unpacked files may lie outside the data root.
    """

    name: str
    about: str
    archives: tuple[Archive, ...]
    plan: Callable[[Request], Plan]
    benchmarks: tuple[str, ...]
    full_benchmarks: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("train", "val")
    takes_source: bool = False


def need(path: Path, archive: Archive, request: Request) -> Path:
    """The path, if it exists.

    Raises:
        ValueError: naming the path, the archive it comes in, its source and the command to go on.
    """
    if path.exists():
        return path
    raise ValueError(
        f"{path} is missing. It comes in {archive.name}, from {archive.source}\n"
        f"Put that file into a folder of downloads and go on with:\n"
        f"  {request.command} --archives FOLDER"
    )


def read_ids(path: Path) -> list[str]:
    """Image ids of a list file, one a line, in order.

    Raises:
        ValueError: if the file cannot be read, holds an id twice or something that is no id.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the id list {path}: {error}") from error
    ids = [line.strip() for line in lines if line.strip()]
    wrong = [name for name in ids if "/" in name or " " in name or name.startswith(".")]
    if wrong or not ids or len(set(ids)) != len(ids):
        raise ValueError(
            f"the id list {path} must hold unique ids, one a line; "
            + (f"got {wrong[:3]}" if wrong else f"got {len(ids)} ids, {len(set(ids))} different")
        )
    return ids
