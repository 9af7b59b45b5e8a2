"""The answer for one image: what is where, as arrays, pictures, tables and files."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alignzeg.colors import UNNAMED_COLOR, class_colors
from alignzeg.files import atomic_write
from alignzeg.inference.drawing import OverlayStyle, draw_overlay
from alignzeg.inference.findings import Findings
from alignzeg.inference.sheet import ProposalSet, proposal_sheet
from alignzeg.structures import Vocabulary


@dataclass(frozen=True)
class Prediction(Findings):
    """What is where in one image. In a notebook it shows its overlay.

    Attributes:
        labels: (H, W) uint8, or uint16 for more than 255 classes: index into `names`; the highest
            number of the dtype is "none of these", which only a reject threshold answers.
        vocabulary: the classes asked for, each seen or unseen in training.
        image: (H, W, 3) uint8 RGB that was looked at.
        proposals: the masks behind the answer, where they were asked for.
        confidence: (H, W) float16 score of the best class, 0 to 1: what a reject threshold is
            compared with. None where the model gives no scores.
    """

    labels: NDArray[np.uint8] | NDArray[np.uint16]
    vocabulary: Vocabulary
    image: NDArray[np.uint8] = field(repr=False)
    proposals: ProposalSet | None = field(default=None, repr=False)
    confidence: NDArray[np.float16] | None = field(default=None, repr=False)

    def overlay(
        self,
        opacity: float = OverlayStyle.opacity,
        grey: bool = True,
        names: bool = True,
        side_by_side: bool = False,
        legend: bool = True,
    ) -> Image.Image:
        """The image under its coloured label map; the legend marks unseen classes.

        Args:
            opacity: of the label map, 0 to 1.
            grey: whether the image beneath is grey.
            names: whether regions that have room for it bear their class's name.
            side_by_side: whether the image itself stands at the left.
            legend: whether a panel at the right lists the classes.

        Returns:
            At the size of `display_size`, at most 2048 pixels a side, and what stands beside it.

        Raises:
            ValueError: on an opacity that is not 0 to 1.
        """
        style = OverlayStyle(opacity, grey, names, side_by_side, legend)
        entries = [(self._legend_text(name), self._id(name)) for name in self.areas]
        if self.rejected:
            text = f"none of these  {100 * self.rejected / self.labels.size:.0f} %"
            entries.append((text, self._none))
        return draw_overlay(self.image, self.labels, self._colors, self.names, entries, style)

    def index_image(self) -> Image.Image:
        """The class ids as an image: with a palette, or 16 bits grey for more than 255 classes."""
        image = Image.fromarray(self.labels)
        if self.labels.dtype == np.uint8:
            table = np.zeros((256, 3), dtype=np.uint8)
            table[:] = UNNAMED_COLOR
            table[: len(self.names)] = self._colors
            image.putpalette(table.tobytes())
        return image

    def confidence_image(self) -> Image.Image:
        """The confidence as 8 bits grey: 0 to 1 is black to white.

        Raises:
            ValueError: if the model gives no scores.
        """
        if self.confidence is None:
            raise ValueError("this model names pixels without scores, so there is no confidence")
        grey = np.empty(self.labels.shape, dtype=np.uint8)
        for row, values in zip(grey, self.confidence, strict=True):
            row[:] = np.round(255 * values.astype(np.float32))
        return Image.fromarray(grey)

    def proposal_sheet(self, count: int = 12) -> Image.Image:
        """The surest proposals, each cut out of the image under its class and score.

        Raises:
            ValueError: if the proposals were not asked for.
        """
        if self.proposals is None:
            raise ValueError("this prediction holds no proposals; ask for some: proposals=24")
        return proposal_sheet(self.proposals, self.image, self.names, self._colors, count)

    def plot(self, ax: Any = None, **style: Any) -> Any:
        """Draws the overlay, in a `style` as it takes, into axes of Matplotlib, or a new figure.

        Returns:
            The axes.
        """
        drawn = self.overlay(**style)
        if ax is None:
            from matplotlib import pyplot

            _, ax = pyplot.subplots(figsize=(8, 8 * drawn.height / drawn.width), layout="tight")
        ax.imshow(drawn)
        ax.set_axis_off()
        return ax

    def show(self, **style: Any) -> None:
        """Shows the overlay: in the notebook that runs this, else in a window of Matplotlib."""
        from matplotlib import pyplot

        self.plot(**style)
        pyplot.show()

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.overlay().save(buffer, format="PNG")
        return buffer.getvalue()

    def save(
        self,
        folder: str | Path,
        stem: str,
        *,
        overlay: bool = True,
        confidence: bool = False,
        about: dict[str, Any] | None = None,
        **style: Any,
    ) -> list[Path]:
        """Writes overlay, index image and JSON, and the proposals where there are any.

        Args:
            folder: made if it is missing.
            stem: `<stem>_overlay.png`, `<stem>_labels.png`, `<stem>.json`, `<stem>_proposals.npz`
                and `<stem>_proposals.png`; existing files of these names are replaced.
            overlay: whether to write the overlay.
            confidence: whether to write `<stem>_confidence.png`.
            about: more for the JSON, which is written last.
            style: as `overlay` takes them.

        Returns:
            The files written, each at once or not at all.

        Raises:
            ValueError: on a confidence map that the model does not give, or a wrong style.
            OSError: if a file cannot be written.
        """
        folder = Path(folder)
        pictures = {"overlay": self.overlay(**style)} if overlay else {}
        pictures["labels"] = self.index_image()
        if confidence:
            pictures["confidence"] = self.confidence_image()
        if self.proposals is not None:
            pictures["proposals"] = self.proposal_sheet()
        files = {folder / f"{stem}_{end}.png": picture for end, picture in pictures.items()}
        for path, picture in files.items():
            atomic_write(path, partial(picture.save, format="PNG"))
        written = [*files]
        if self.proposals is not None:
            written.append(folder / f"{stem}_proposals.npz")
            atomic_write(written[-1], self._write_proposals)
        written.append(folder / f"{stem}.json")
        said = json.dumps({**self.summary(), **(about or {})}, indent=1, ensure_ascii=False)
        atomic_write(written[-1], said + "\n")
        return written

    def _write_proposals(self, file: Any) -> None:
        assert self.proposals is not None
        fields = {key: getattr(self.proposals, key) for key in ("masks", "classes", "scores")}
        names = np.array(self.names)[self.proposals.classes]
        np.savez_compressed(file, names=names, unseen=self.proposals.unseen, **fields)

    def _legend_text(self, name: str) -> str:
        share = 100 * self.areas[name] / self.labels.size
        mark = "" if self.vocabulary.seen[self._id(name)] else "  (unseen)"
        return f"{name}  {f'{share:.0f}' if share >= 1 else '<1'} %{mark}"

    @cached_property
    def _colors(self) -> NDArray[np.uint8]:
        return class_colors(self.names)
