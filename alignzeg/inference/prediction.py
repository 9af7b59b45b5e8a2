"""The answer for one image, and the files it is written to."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from alignzeg.colors import UNNAMED_COLOR, class_colors
from alignzeg.fonts import font
from alignzeg.structures import Vocabulary
from alignzeg.visualize import (
    blend,
    display_size,
    resized,
    shown_colors,
    shrunk,
    with_legend,
)

# Overlays of small images are enlarged to this shorter side in pixels, for a legible legend.
_OVERLAY_SIDE = 384
_SHEET_TILE = 192
_SHEET_COLUMNS = 4


@dataclass(frozen=True)
class ProposalSet:
    """Mask proposals of one image, the surest first.

    Attributes:
        masks: (n, h, w) float16 mask probabilities at a quarter of the network's input size.
        classes: (n,) int64 best class of each.
        scores: (n,) float32 probability of that class, 0 to 1.
        unseen: (n,) float32 probability of "not a class seen in training", NaN without an
            indicator.
    """

    masks: NDArray[np.float16]
    classes: NDArray[np.int64]
    scores: NDArray[np.float32]
    unseen: NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """What is where in one image.

    Attributes:
        labels: (H, W) uint8, or uint16 for more than 255 classes: index into `names`; the highest
            number of the dtype is "none of these", which only a reject threshold answers.
        vocabulary: the classes asked for, each seen or unseen in training.
        image: (H, W, 3) uint8 RGB that was looked at.
        proposals: the masks behind the answer, where they were asked for.
    """

    labels: NDArray[np.uint8] | NDArray[np.uint16]
    vocabulary: Vocabulary
    image: NDArray[np.uint8] = field(repr=False)
    proposals: ProposalSet | None = field(default=None, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The classes asked for, in id order."""
        return self.vocabulary.names

    @property
    def areas(self) -> dict[str, int]:
        """Pixels of every class that occurs, the largest first."""
        return dict(self._areas)

    @cached_property
    def _areas(self) -> dict[str, int]:
        counts = np.zeros(np.iinfo(self.labels.dtype).max + 1, dtype=np.int64)
        # Row by row: counting makes 64-bit numbers of the labels.
        for row in self.labels:
            counts += np.bincount(row, minlength=len(counts))
        counts = counts[: len(self.names)]
        order = np.argsort(-counts, kind="stable")
        return {self.names[i]: int(counts[i]) for i in order if counts[i]}

    @cached_property
    def _colors(self) -> NDArray[np.uint8]:
        return class_colors(self.names)

    @property
    def rejected(self) -> int:
        """Pixels that are none of the classes."""
        return self.labels.size - sum(self.areas.values())

    def overlay(self) -> Image.Image:
        """The image under its coloured label map, with a legend; unseen classes are marked.

        Its size is that of `display_size`, at most 2048 pixels; the legend's colours are those that
        the regions have in it.
        """
        size = display_size(*self.labels.shape, _OVERLAY_SIDE)
        labels = resized(self.labels, size)
        drawn = blend(shrunk(self.image, size), labels, self._colors)
        texts = [self._legend_text(name, pixels) for name, pixels in self.areas.items()]
        ids = [self.names.index(name) for name in self.areas]
        if self.rejected:
            texts.append(f"none of these  {100 * self.rejected / self.labels.size:.0f} %")
            ids.append(int(np.iinfo(self.labels.dtype).max))
        swatches = shown_colors(drawn, labels, ids)
        return with_legend(drawn, list(zip(texts, swatches, strict=True)))

    def _legend_text(self, name: str, pixels: int) -> str:
        share = 100 * pixels / self.labels.size
        mark = "" if self.vocabulary.seen[self.names.index(name)] else "  (unseen)"
        return f"{name}  {f'{share:.0f}' if share >= 1 else '<1'} %{mark}"

    def index_image(self) -> Image.Image:
        """The class ids as an image: with a palette, or 16 bits grey for more than 255 classes."""
        if self.labels.dtype != np.uint8:
            return Image.fromarray(self.labels)
        image = Image.fromarray(self.labels)
        table = np.zeros((256, 3), dtype=np.uint8)
        table[:] = UNNAMED_COLOR
        table[: len(self.names)] = self._colors
        image.putpalette(table.tobytes())
        return image

    def summary(self) -> dict[str, Any]:
        """All classes with id, seen flag, pixels and share of the image, ready for JSON."""
        areas, total = self.areas, self.labels.size
        return {
            "height": self.labels.shape[0],
            "width": self.labels.shape[1],
            "classes": [
                {
                    "id": i,
                    "name": name,
                    "seen": self.vocabulary.seen[i],
                    "pixels": areas.get(name, 0),
                    "share": areas.get(name, 0) / total,
                }
                for i, name in enumerate(self.names)
            ],
            "none_of_these": {
                "id": int(np.iinfo(self.labels.dtype).max),
                "pixels": self.rejected,
                "share": self.rejected / total,
            },
        }

    def save(self, folder: str | Path, stem: str) -> list[Path]:
        """Writes overlay, index image and JSON, and the proposals where there are any.

        Args:
            folder: made if it is missing.
            stem: `<stem>_overlay.png`, `<stem>_labels.png`, `<stem>.json`, `<stem>_proposals.npz`
                and `<stem>_proposals.png`; existing files of these names are replaced.

        Returns:
            The files written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{stem}{end}" for end in ("_overlay.png", "_labels.png", ".json")]
        self.overlay().save(files[0])
        self.index_image().save(files[1])
        files[2].write_text(
            json.dumps(self.summary(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        if self.proposals is not None:
            files += [folder / f"{stem}_proposals{end}" for end in (".npz", ".png")]
            names = np.array(self.names)
            np.savez_compressed(
                files[3],
                masks=self.proposals.masks,
                classes=self.proposals.classes,
                names=names[self.proposals.classes],
                scores=self.proposals.scores,
                unseen=self.proposals.unseen,
            )
            self.proposal_sheet().save(files[4])
        return files

    def proposal_sheet(self, count: int = 12) -> Image.Image:
        """The surest proposals, each cut out of the image under its class and score.

        Raises:
            ValueError: if the proposals were not asked for.
        """
        if self.proposals is None:
            raise ValueError("this prediction holds no proposals; ask for some: proposals=24")
        colors = self._colors
        count = min(count, len(self.proposals.scores))
        columns = max(1, min(_SHEET_COLUMNS, count))
        tile, line = self._tile_size()
        size = (columns * tile[1], -(-count // columns) * (tile[0] + line))
        sheet = Image.new("RGB", size, (255, 255, 255))
        for i in range(count):
            x, y = (i % columns) * tile[1], (i // columns) * (tile[0] + line)
            sheet.paste(self._proposal_tile(i, tile, colors), (x, y + line))
            self._caption(sheet, (x, y, tile[1], line), i)
        return sheet

    def _tile_size(self) -> tuple[tuple[int, int], int]:
        height, width = self.labels.shape
        scale = _SHEET_TILE / max(height, width)
        return (max(1, round(height * scale)), max(96, round(width * scale))), 22

    def _proposal_tile(
        self, i: int, tile: tuple[int, int], colors: NDArray[np.uint8]
    ) -> Image.Image:
        assert self.proposals is not None
        size = (tile[1], tile[0])
        image = Image.fromarray(self.image).resize(size, Image.Resampling.BILINEAR)
        mask = Image.fromarray(np.round(255 * self.proposals.masks[i].astype(np.float32)))
        alpha = np.asarray(mask.resize(size, Image.Resampling.BILINEAR))[..., None] / 255
        dimmed = 0.25 * np.asarray(image) + 0.75 * 255
        lit = 0.75 * np.asarray(image) + 0.25 * colors[self.proposals.classes[i]]
        return Image.fromarray(np.round(alpha * lit + (1 - alpha) * dimmed).astype(np.uint8))

    def _caption(self, sheet: Image.Image, box: tuple[int, int, int, int], i: int) -> None:
        assert self.proposals is not None
        name = self.names[self.proposals.classes[i]]
        caption = f"{name}  {self.proposals.scores[i]:.2f}"
        ImageDraw.Draw(sheet).text(
            (box[0] + 4, box[1] + box[3] / 2),
            caption,
            fill=(25, 27, 31),
            font=font(13, caption),
            anchor="lm",
        )
