"""What the words of a command line mean: images, folders of them, patterns, videos."""

from __future__ import annotations

import difflib
import glob
import hashlib
import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignzeg.data.picture_kinds import is_unread
from alignzeg.files import files_below
from alignzeg.inference.results import ENDINGS, INDEX, is_ours

logger = logging.getLogger(__name__)

_IMAGES = r"jpe?g|jpe|ji?f|jfif|mpo|a?png|bmp|dib|gif|tiff?|webp|avif|jp2|j2k|jp[fx]|p[bgpn]m|tga"
_VIDEOS = r"mp4|m4v|mov|avi|mkv|webm|mpe?g|m2?ts|wmv|flv|ogv|3gp"
_IMAGE_FILE = re.compile(rf".*\.({_IMAGES})", re.IGNORECASE)
_VIDEO_FILE = re.compile(rf".*\.({_VIDEOS})", re.IGNORECASE)
# Bytes of a name that leave room, of 255, for the ends of results and of hidden files beside them.
_LONGEST = 205
# Names that Windows takes for devices.
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """A file to look at.

    Attributes:
        path: the file.
        stem: what its results are called: their path below the folder of results, without ends.
        unread: whether it lies in a folder, and is a picture of a kind that is not read.
    """

    path: str
    stem: str
    unread: bool = False

    @property
    def is_video(self) -> bool:
        """Whether it holds frames, by its name."""
        return bool(_VIDEO_FILE.fullmatch(self.path))


def is_media(name: str) -> bool:
    """Whether a file is called like an image or a video."""
    return bool(_IMAGE_FILE.fullmatch(name) or _VIDEO_FILE.fullmatch(name))


def find_sources(words: Sequence[str], output: str | Path) -> list[Source]:
    """The files that words of a command line mean, each once, in their order.

    Args:
        words: image and video files; folders, whose files are found at any depth; patterns such as
            "photos/*.jpg" that no shell has expanded, "**" for any depth.
        output: the folder of results, what was written there before is passed over.

    Raises:
        ValueError: on a word that leads to no file.
    """
    paths: list[str] = []
    names: list[str] = []
    unread: list[bool] = []
    others: list[str] = []
    seen: set[str] = set()
    for word in words:
        for path, name in _files_of(word):
            real = os.path.abspath(path)
            if real in seen or is_result(path, output):
                continue
            seen.add(real)
            found = path != word and path != os.path.expanduser(word)
            if found and not (is_media(path) or is_unread(path)):
                others.append(path)
                continue
            paths.append(path)
            names.append(name)
            unread.append(found and is_unread(path))
    if words and not paths:
        raise ValueError(f"{words[0]} holds nothing but results of this command; give images")
    others = [path for path in others if not _is_beside_result(path, output)]
    if others:
        logger.warning(
            "files that are no pictures, passed over: %d, such as %s", len(others), others[0]
        )
    return [Source(*row) for row in zip(paths, distinct_stems(names), unread, strict=True)]


def is_result(path: str | Path, output: str | Path) -> bool:
    """Whether a file was written by this command to that folder."""
    file, folder = Path(os.path.abspath(path)), Path(os.path.abspath(output))
    end = next((end for end in ENDINGS if file.name.endswith(end)), "")
    if not end or not file.is_relative_to(folder):
        return False
    return is_ours(file.with_name(file.name[: -len(end)] + ".json")) is True


def _is_beside_result(path: str, output: str | Path) -> bool:
    """Whether a file in the folder of results may be one that this command writes."""
    file = Path(os.path.abspath(path))
    return file.suffix in (".json", ".npz") and file.is_relative_to(os.path.abspath(output))


def distinct_stems(images: Iterable[str]) -> list[str]:
    """A name for each image's results: its own without the suffix, numbered where two collide.

    Names that differ only in case collide too, as they do on some file systems, and a video with a
    folder of its name, as its frames get one. What a file system may refuse is changed, see
    `_safe`.
    """
    images = [*images]
    stems = ["/".join(map(_safe, Path(os.path.splitext(image)[0]).parts)) for image in images]
    taken = {stem.lower() for stem in stems}
    folders = {stem.rpartition("/")[0].lower() for stem in stems}
    used = {INDEX.removesuffix(".json")}
    result = []
    for image, stem in zip(images, stems, strict=True):
        frames = folders if _VIDEO_FILE.fullmatch(image) else set()
        name, number = stem, 1
        while name.lower() in used | frames or (number > 1 and name.lower() in taken):
            number += 1
            name = f"{stem}_{number}"
        used.add(name.lower())
        result.append(name)
    return result


def _safe(part: str) -> str:
    """A name of a file or folder as all systems take it: no device, no end that is cut, not long.

    A long one is shortened, and ends in a hash of all of it.
    """
    name = part.rstrip(". ") or "_"
    name = f"{name}_" if _DEVICE.fullmatch(name) else name
    if len(os.fsencode(name)) <= _LONGEST:
        return name
    digest = hashlib.sha256(os.fsencode(part)).hexdigest()[:8]
    return f"{os.fsencode(name)[: _LONGEST - 9].decode('utf-8', 'ignore')}_{digest}"


def _files_of(word: str) -> list[tuple[str, str]]:
    """The files that a word means, each with the name of its results, with a suffix."""
    if re.match(r"[a-z]+://", word, re.IGNORECASE):
        raise ValueError(f"{word} is an address; download the file and give its name")
    path = word if os.path.exists(word) else os.path.expanduser(word)
    if os.path.isdir(path):
        files = files_below(path)
        if not any(is_media(file.name) or is_unread(file) for file in files):
            raise ValueError(f"folder {word} holds no image and no video; give another")
        return [(str(file), str(file.relative_to(path))) for file in files]
    if os.path.exists(path):
        return [(path, os.path.basename(path))]
    if glob.has_magic(path):
        matches = [m for m in sorted(glob.glob(path, recursive=True)) if os.path.isfile(m)]
        files = [Path(match) for match in matches]
        if not any(is_media(file.name) or is_unread(file) for file in files):
            found = f"only files that are no images, such as {matches[0]}" if matches else "nothing"
            raise ValueError(f"the pattern {word} matches {found}; give another")
        return [(str(file), file.name) for file in files]
    if os.path.islink(path):
        raise ValueError(f"{word} is a link to what does not exist; mend it, or give another")
    raise ValueError(f"{word} does not exist; {_similar(path)}give an image, a folder or a video")


def _similar(path: str) -> str:
    """A hint at a file beside the missing one."""
    folder, name = os.path.split(path)
    if not os.path.isdir(folder or "."):
        return f"there is no folder {folder}; "
    near = difflib.get_close_matches(name, os.listdir(folder or "."), n=1, cutoff=0.6)
    return f"did you mean {os.path.join(folder, near[0])!r}? " if near else ""
