"""Frames of video files and cameras, and overlays as a video."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from alignzeg.files import hidden_file

logger = logging.getLogger(__name__)

# H.264 and VP9, which browsers show, and what every build of OpenCV can write.
_CODECS = ("avc1", "vp09", "mp4v")
# Of these kinds the count of frames is an estimate, of length and rate.
_ESTIMATED = (".mkv", ".webm", ".ogv", ".flv", ".wmv", ".mpg", ".mpeg", ".mts", ".m2ts")
_DEFAULT_RATE = 25.0
_BUILD = "the package opencv-python comes with what it needs: pip install opencv-python"
# FFmpeg writes to stderr by itself; -8 is silence.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


class Frames:
    """The frames of a video file or a camera.

    Args:
        source: a file name, or the number of a camera.
        every: one frame in so many is given, from the first; the others are passed over.
        limit: so many frames are given at most; 0: all.

    Attributes:
        rate: frames per second of the source.
        count: frames that will be given, as far as the file says; 0 if it is not known.

    Raises:
        ValueError: if nothing can be read from it.
    """

    def __init__(self, source: str | int, every: int = 1, limit: int = 0) -> None:
        self.source = source
        self._every, self._limit = every, limit
        with _quiet():
            self._capture = cv2.VideoCapture(source)
            opened = self._capture.isOpened() and self._capture.grab()
        if not opened:
            self._capture.release()
            raise ValueError(_cannot(source))
        rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.rate = rate if np.isfinite(rate) and 0 < rate <= 1000 else _DEFAULT_RATE
        total = self._capture.get(cv2.CAP_PROP_FRAME_COUNT) if isinstance(source, str) else 0
        total = int(total) if np.isfinite(total) and total > 0 else 0
        self._total, self._read, self._seconds, self._ended = total, 0, 0.0, False
        kept = -(-total // every)
        self.count = min(kept, limit) if kept and limit else kept or limit

    def __iter__(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Numbers of frames, from 0, and the frames (H, W, 3) uint8 RGB; once only."""
        given, number = 0, 0
        try:
            with _quiet():
                while not (self._limit and given >= self._limit):
                    # The first frame was grabbed when the source was opened.
                    if number and not self._capture.grab():
                        self._ended = True
                        return
                    self._seconds = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                    fine = True
                    if number % self._every == 0:
                        fine, frame = self._capture.retrieve()
                        if fine:
                            rgb = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                            yield number, rgb.astype(np.uint8, copy=False)
                            given += 1
                    self._read += fine
                    number += 1
        finally:
            self._capture.release()

    @property
    def missing(self) -> int:
        """Frames that the file says it has and that could not be read; known at its end."""
        missing = self._total - self._read if self._ended and self._total else 0
        if str(self.source).lower().endswith(_ESTIMATED):
            # Frames may come more slowly than the rate says; the length tells.
            length = self._total / self.rate
            if self._seconds >= 0.95 * length - 2 / self.rate:
                return 0
        # Some files count one frame too many.
        return missing if missing > 1 else 0


def write_video(path: str | Path, frames: Iterable[NDArray[np.uint8]], rate: float) -> int:
    """Writes frames as an MP4 file, at once or not at all.

    Frames are (H, W, 3) uint8 RGB of one size; an odd last row or column is left out. One frame is
    written while the next is made.

    Returns:
        How many were written.

    Raises:
        ValueError: if there is no frame, or OpenCV cannot write this kind of file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The writer chooses the container by the suffix.
    hidden = f"{hidden_file(path)}{path.suffix}"
    writer, count = None, 0
    writing: Future[Any] | None = None
    with ThreadPoolExecutor(1) as pool:
        try:
            for frame in frames:
                height, width = frame.shape[0] // 2 * 2, frame.shape[1] // 2 * 2
                if writer is None:
                    writer = _writer(path, hidden, rate, (width, height))
                if writing is not None:
                    writing.result()
                pixels = np.ascontiguousarray(frame[:height, :width, ::-1])
                write: Any = writer.write
                writing = pool.submit(write, pixels)
                count += 1
            if writer is None or writing is None:
                raise ValueError(f"there is no frame for the video {path}")
            writing.result()
            writer.release()
            os.replace(hidden, path)
        finally:
            if writer is not None:
                pool.shutdown()
                writer.release()
            if os.path.lexists(hidden):
                os.unlink(hidden)
    return count


def _writer(path: Path, hidden: str, rate: float, size: tuple[int, int]) -> cv2.VideoWriter:
    """What writes a video with the first codec of `_CODECS` that this OpenCV has."""
    for codec in _CODECS:
        with _quiet():
            writer = cv2.VideoWriter(hidden, cv2.VideoWriter.fourcc(*codec), rate, size)
        if not writer.isOpened():
            continue
        if codec == _CODECS[-1]:
            logger.warning(
                "OpenCV has neither H.264 nor VP9 here, so browsers will not show %s; for these: "
                "ffmpeg -i %s -c:v libx264 -pix_fmt yuv420p OUT.mp4",
                *(path, path),
            )
        return writer
    raise ValueError(f"OpenCV cannot write the video {path} here; {_BUILD}")


def _cannot(source: str | int) -> str:
    if isinstance(source, int):
        return (
            f"--camera is {source}, but no camera of this number gives an image; plug one in, "
            "close other programs that use it, or give another number, from 0"
        )
    return f"cannot read video file {source}: OpenCV finds no frame in it; convert it to MP4"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps OpenCV from writing its own lines about what is reported here."""
    log = cv2.utils.logging
    before = log.getLogLevel()
    log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        log.setLogLevel(before)
