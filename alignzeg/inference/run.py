"""Many images, videos or a camera, one after the other, each result written when it is there."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alignzeg.data.picture_kinds import how_to_convert
from alignzeg.data.pictures import read_rgb
from alignzeg.files import atomic_write
from alignzeg.inference.prediction import Prediction
from alignzeg.inference.predictor import Predictor
from alignzeg.inference.results import INDEX, ResultFolder, UnreadableError
from alignzeg.inference.sources import Source
from alignzeg.inference.video import Frames, write_video

# Classes that a line about an image names.
_NAMED = 5
Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]


@dataclass
class Run:
    """Predicts what it is given and keeps count.

    Attributes:
        build: makes the predictor, when the first image needs it.
        results: where answers go.
        say: shows a line to the user.
        warn: shows a line about a file that is passed over.
        progress: an iterable with its progress shown, its title and length, 0 if unknown.
        proposals: mask proposals to write for each image.
        confidence: whether to write confidence maps.
        style: of overlays, as `Prediction.overlay` takes them.
        every: of a video or camera, one frame in so many.
        limit: frames of a video or camera at most; 0: all.
        done: images and frames predicted.
        kept: files whose results were there.
    """

    build: Callable[[], Predictor]
    results: ResultFolder
    say: Callable[[str], None]
    warn: Callable[[str], None]
    progress: Progress
    proposals: int = 0
    confidence: bool = False
    style: dict[str, Any] = field(default_factory=dict)
    every: int = 1
    limit: int = 0
    done: int = 0
    kept: int = 0

    @cached_property
    def predictor(self) -> Predictor:
        """The model, from the first image on that needs it."""
        return self.build()

    def files(self, sources: Sequence[Source]) -> None:
        """Predicts files that have no result; one that cannot be read is noted and passed over.

        Raises:
            ValueError: before any work, if a result would replace a file of another kind.
        """
        pending = []
        self._say_unread([source for source in sources if source.unread])
        for source in sources:
            if source.unread:
                continue
            self.results.require_own(source.stem)
            end = "_overlay.mp4" if source.is_video else "_labels.png"
            try:
                done = self.results.is_done(source.stem, self._made_with(source), end)
            except UnreadableError:
                done = False  # said when it is its turn
            if done:
                self.kept += 1
                self.results.note(source.path, source.stem)
            else:
                pending.append(source)
        if pending:
            _ = self.predictor  # before any progress: a terminal shows one thing at a time
        # A video shows its own progress.
        images = [source for source in pending if not source.is_video]
        for source in self.progress(images, "Predicting", len(images)):
            self._try(source, self._image)
        for source in pending:
            if source.is_video:
                self._try(source, self._video)

    def camera(self, number: int) -> None:
        """Predicts what a camera sees until it ends, the limit is reached or Ctrl-C.

        Raises:
            ValueError: if there is no such camera.
        """
        frames = Frames(number, self.every, self.limit)
        folder = f"camera{number}_{time.strftime('%Y%m%d-%H%M%S')}"
        about = {"image": f"camera {number}"}
        _ = self.predictor
        try:
            for place, frame in self.progress(frames, f"Camera {number}", frames.count):
                stem = f"{folder}/{place:06d}"
                self._save(frame, f"camera {number}, frame {place}", stem, about)
        except KeyboardInterrupt:
            self.say("camera stopped")

    def _say_unread(self, sources: Sequence[Source]) -> None:
        """Notes pictures of kinds that are not read; one line for all of them."""
        for source in sources:
            how = how_to_convert(source.path)
            error = f"{source.path} is of a kind that is not read; {how}"
            self.results.note(source.path, source.stem, error)
        if sources:
            names = ", ".join(os.path.basename(source.path) for source in sources[:_NAMED])
            more = ", ..." if len(sources) > _NAMED else ""
            kinds = f"{len(sources)} of kinds that are not read: {names}{more}"
            self.warn(f"skipped: {kinds}; {INDEX} says how to convert each")

    def _try(self, source: Source, predict: Callable[[Source], None]) -> None:
        try:
            predict(source)
        except UnreadableError as error:
            self.warn(f"skipped: {error}")
            partly = isinstance(error, CutVideoError)
            self.results.note(source.path, source.stem, str(error), partly)
        else:
            self.results.note(source.path, source.stem)

    def _image(self, source: Source) -> None:
        about = self._made_with(source)
        try:
            rgb = read_rgb(source.path)
        except ValueError as error:
            raise UnreadableError(str(error)) from error
        self._save(rgb, source.path, source.stem, about)

    def _video(self, source: Source) -> None:
        about = self._made_with(source)
        try:
            frames = Frames(source.path, self.every, self.limit)
        except ValueError as error:
            raise UnreadableError(str(error)) from error
        rows: list[dict[str, Any]] = []
        path = self.results.folder / f"{source.stem}_overlay.mp4"
        drawn = self._frames(source, frames, rows, f"Predicting {path.name}")
        try:
            write_video(path, drawn, max(1.0, frames.rate / self.every))
        except ValueError as error:
            raise (ValueError if rows else UnreadableError)(str(error)) from error
        rate, missing = frames.rate, frames.missing
        # Of what is not whole, the next call looks for more.
        about = {**about, "missing": missing} if missing else about
        said = {"frames_per_second": rate, "every": self.every, "frames": rows, "made_with": about}
        text = json.dumps(said, indent=1, ensure_ascii=False) + "\n"
        atomic_write(self.results.folder / f"{source.stem}.json", text)
        self.say(f"{source.path}: {len(rows)} frames -> {path}")
        if missing:
            raise CutVideoError(
                f"{source.path} says it has {missing} more frames than could be read, so it is cut "
                "or damaged; the others are done"
            )

    def _frames(
        self, source: Source, frames: Frames, rows: list[dict[str, Any]], title: str
    ) -> Iterator[NDArray[np.uint8]]:
        """Predicts the frames of a video, notes them in `rows` and gives their overlays."""
        for number, frame in self.progress(frames, title, frames.count):
            stem = f"{source.stem}/{number:06d}"
            of_frame = {**self.results.made_with(source.path), "frame": number}
            if not self.results.is_done(stem, of_frame):
                name = f"{source.path}, frame {number}"
                self._save(frame, name, stem, of_frame, overlay=False)
            seconds = round(number / frames.rate, 3)
            rows.append({"frame": number, "seconds": seconds, "result": f"{stem}.json"})
            yield self._drawn(frame, source, number)

    def _drawn(self, frame: NDArray[np.uint8], source: Source, number: int) -> NDArray[np.uint8]:
        """A frame under the label map that was written for it; of one size for all frames."""
        with Image.open(self.results.folder / f"{source.stem}/{number:06d}_labels.png") as image:
            labels = np.array(image)
        vocabulary = self.predictor.vocabulary
        assert vocabulary is not None
        overlay = Prediction(labels, vocabulary, frame).overlay(**self.style, legend=False)
        return np.asarray(overlay)

    def _save(
        self,
        rgb: NDArray[np.uint8],
        name: str,
        stem: str,
        about: dict[str, Any],
        overlay: bool = True,
    ) -> None:
        prediction = self.predictor(rgb, proposals=self.proposals)
        assert isinstance(prediction, Prediction)
        options = {"overlay": overlay, "confidence": self.confidence, **self.style}
        files = self.results.save(prediction, stem, about, **options)
        self.done += 1
        self.say(f"{name}: {_found(prediction)} -> {files[0]}")

    def _made_with(self, source: Source) -> dict[str, Any]:
        about = self.results.made_with(source.path)
        return {**about, "frames": [self.every, self.limit]} if source.is_video else about


class CutVideoError(UnreadableError):
    """A video ended before its time; what was read of it is done."""


def _found(prediction: Prediction) -> str:
    shares = []
    for name, pixels in list(prediction.areas.items())[:_NAMED]:
        share = 100 * pixels / prediction.labels.size
        shares.append(f"{name} {f'{share:.0f}' if share >= 1 else '<1'} %")
    return ", ".join(shares) or "none of these"


def with_progress(console: Any) -> Progress:
    """Shows progress on a terminal, and nothing elsewhere."""
    from rich.progress import track

    def show(work: Iterable[Any], title: str, length: int) -> Iterator[Any]:
        if not console.is_terminal:
            yield from work
            return
        yield from track(
            work, title, total=length or None, console=console, transient=True, auto_refresh=True
        )

    return show


def outcome(run: Run) -> str:
    """One line about a whole run."""
    failed = run.results.failed
    parts = [f"{run.done} predicted"]
    parts += [f"{run.kept} there already"] if run.kept else []
    parts += [f"{len(failed)} could not be read"] if failed else []
    return f"{', '.join(parts)} -> {run.results.folder / INDEX}"
