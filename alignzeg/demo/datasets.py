"""The data sets that the two models are compared on, and how each is made."""

from __future__ import annotations

import os
import shlex
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from alignzeg.data.catalog import dataset_root
from alignzeg.data.preparation import msrc
from alignzeg.data.preparation.command import report_lacking
from alignzeg.data.preparation.recipe import Plan as Preparation
from alignzeg.data.preparation.recipe import Request
from alignzeg.data.preparation.work import run_tasks
from alignzeg.data.zeroshapes import DEFAULT_COUNTS, write_dataset

_NEEDED = (
    f"it has to be MSRC v2, unpacked: {msrc.EXPECTED}; the archive comes from {msrc.ARCHIVE.source}"
)


class DataSet(ABC):
    """A benchmark with configs named baseline and alignzeg.

    Attributes:
        name: of the comparison; the files that it keeps in a run's folder begin with it.
        benchmark: as registered, without its split; also the folder of its configs.
        title: what readers call it.
        kind: what they call one of its images.
        remark: a sentence of the report on what the two models know beforehand.
    """

    name: ClassVar[str]
    benchmark: ClassVar[str]
    title: ClassVar[str]
    kind: ClassVar[str]
    remark: ClassVar[str] = ""

    @abstractmethod
    def check(self) -> None:
        """Refuses what cannot be prepared, before any work.

        Raises:
            ValueError: in one line that says what is expected.
        """

    @abstractmethod
    def prepare(self) -> None:
        """Writes the files that are not there into the data root."""

    @abstractmethod
    def commands(self) -> list[str]:
        """What makes the report again, and what comes before the two trainings' own commands."""

    def facts(self) -> dict[str, str]:
        """What else the report says of the data, once they are prepared."""
        return {}


@dataclass(frozen=True)
class Scenes(DataSet):
    """The embedded data set, drawn when it is needed.

    Attributes:
        counts: scenes for training and validation.
        size: of a scene's side in pixels.
    """

    name = "demo"
    benchmark = "zeroshapes"
    title = "zeroshapes"
    kind = "image"

    counts: tuple[int, int] = (DEFAULT_COUNTS["train"], DEFAULT_COUNTS["val"])
    size: int = 128

    def check(self) -> None:
        """There is nothing that could be missing."""

    def prepare(self) -> None:
        """Draws the scenes."""
        for split, count in zip(("train", "val"), self.counts, strict=True):
            write_dataset(dataset_root()[0], split, count, self.size)

    def commands(self) -> list[str]:
        """The demo's own."""
        return ["make demo", "# or one by one:"]


@dataclass(frozen=True)
class Photographs(DataSet):
    """MSRC-21, from a folder of unpacked files.

    Attributes:
        source: that folder; empty if none was given.
        partial: accept that images of the shipped lists lack.
    """

    name = "photos"
    benchmark = "msrc21"
    title = "MSRC-21"
    kind = "photograph"
    remark = (
        "The networks that both start from were trained on ImageNet, which has photographs of "
        "such things, and no masks."
    )

    source: str
    partial: bool = False

    def check(self) -> None:
        """Refuses a folder that is missing, has another layout or lacks images."""
        if not self.source:
            raise ValueError(f"no folder of photographs was given, as DATA=FOLDER; {_NEEDED}")
        folder = self._folder()
        if not folder.is_dir():
            raise ValueError(f"there is no folder {self.source!r}; {_NEEDED}")
        if not any(map(msrc.layout_of, (folder, folder / msrc.OFFICIAL))):
            raise ValueError(f"the folder {self.source!r} has another layout; {_NEEDED}")
        plan = self._preparation()
        # The first task only notes where the labels come from.
        if len(plan.tasks) == 1:
            raise ValueError(f"the folder {self.source!r} holds other images; {_NEEDED}")
        report_lacking(plan, self.partial)

    def prepare(self) -> None:
        """Writes images and label files."""
        run_tasks(self._preparation().tasks, os.cpu_count() or 1, self.benchmark, bar=False)

    def commands(self) -> list[str]:
        """With the folder that was given."""
        folder = shlex.quote(self.source)
        return [
            f"make photos DATA={folder}",
            "# or one by one:",
            f"python datasets/prepare_msrc21.py --source {folder}",
        ]

    def facts(self) -> dict[str, str]:
        """Which of the two sources the labels come from, as their numbers do not compare."""
        return {"labels": (dataset_root()[0] / msrc.LABELS).read_text(encoding="utf-8").strip()}

    def _folder(self) -> Path:
        return Path(self.source).expanduser().absolute()

    def _preparation(self) -> Preparation:
        recipe = msrc.RECIPE
        request = Request(
            root=dataset_root()[0],
            splits=recipe.splits,
            full=False,
            command="make photos",
            source=self._folder(),
        )
        return recipe.plan(request)
