"""What lies below a folder, linked folders included."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


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
