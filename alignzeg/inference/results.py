"""A folder of results that is filled image by image, and gone on with after a stop."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from alignzeg.files import atomic_write
from alignzeg.inference.prediction import Prediction

# Ends of the files of one image.
ENDINGS = (
    *("_overlay.png", "_labels.png", "_confidence.png", "_proposals.png", "_proposals.npz"),
    "_overlay.mp4",
)
# Lists all images of a run.
INDEX = "predictions.json"
_MADE_WITH = "made_with"
# What a system says of the name of a single file; all else is the folder's fault.
_OF_NAMES = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)


class UnreadableError(ValueError):
    """A file has no result, or not a whole one, for a reason of its own; others may have."""


class ResultFolder:
    """Results on disk, each beside a note of what it was made of and with.

    `settings`, ready for JSON, are all that an answer depends on beside the image. `redo` makes
    results again that are there.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any], redo: bool = False) -> None:
        self.folder = Path(folder)
        text = json.dumps(settings, sort_keys=True)
        self._settings = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._redo = redo
        self._rows: dict[str, dict[str, Any]] = {}

    def made_with(self, image: str | Path) -> dict[str, Any]:
        """What tells the result of an image from that of another, or with other settings.

        Raises:
            UnreadableError: if the file is gone.
        """
        try:
            status = os.stat(image)
        except OSError as error:
            raise UnreadableError(f"cannot read image file {image}: {error.strerror}") from error
        return {
            "image": os.path.basename(image),
            "bytes": status.st_size,
            "modified_ns": status.st_mtime_ns,
            "settings": self._settings,
        }

    def is_done(self, stem: str, made_with: dict[str, Any], end: str = "_labels.png") -> bool:
        """Whether the result is there whole: a file with this end, and the JSON, written last."""
        if self._redo or not os.path.isfile(self.folder / f"{stem}{end}"):
            return False
        found = _read(self.folder / f"{stem}.json")
        return found is not None and found.get(_MADE_WITH) == made_with

    def require_own(self, stem: str) -> None:
        """Refuses to replace a JSON that is not of this command, such as an annotation.

        Raises:
            ValueError: naming it.
        """
        file = self.folder / f"{stem}.json"
        if is_ours(file) is False:
            raise ValueError(f"{file} was not written by predict; give another --output")

    def save(
        self, prediction: Prediction, stem: str, made_with: dict[str, Any], **options: Any
    ) -> list[Path]:
        """Writes an image's files, see `Prediction.save`, which takes the options.

        Raises:
            UnreadableError: if only these names cannot be written, such as too long ones.
            ValueError: if the folder cannot be written to.
        """
        try:
            return prediction.save(self.folder, stem, about={_MADE_WITH: made_with}, **options)
        except OSError as error:
            kind = UnreadableError if error.errno in _OF_NAMES else ValueError
            raise kind(f"--output is {str(self.folder)!r}: {error}") from error

    def note(self, image: str, stem: str, error: str = "", partly: bool = False) -> None:
        """Notes for the index what became of an image.

        An error says why it has no result or, `partly`, not a whole one.
        """
        row = {"image": image, "result": None if error and not partly else f"{stem}.json"}
        self._rows[image] = {**row, **({"error": error} if error else {})}

    @property
    def failed(self) -> dict[str, str]:
        """Why images have no whole result."""
        return {name: row["error"] for name, row in self._rows.items() if "error" in row}

    def write_index(self, about: dict[str, Any]) -> Path:
        """Writes the list of all images that were noted, and more that is known about the run.

        Raises:
            ValueError: if the folder cannot be written to.
        """
        path = self.folder / INDEX
        said = json.dumps({**about, "images": [*self._rows.values()]}, indent=1, ensure_ascii=False)
        try:
            atomic_write(path, said + "\n")
        except OSError as error:
            raise ValueError(f"--output is {str(self.folder)!r}: {error}") from error
        return path


def is_ours(file: str | Path) -> bool | None:
    """Whether a JSON file holds a result; None if there is no file."""
    if not os.path.lexists(file):
        return None
    found = _read(Path(file))
    return found is not None and ("none_of_these" in found or _MADE_WITH in found)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
