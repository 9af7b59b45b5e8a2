"""The losses of every single iteration, exact to the bit, for comparing runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO

from detectron2.engine import HookBase

FILE_NAME = "losses.jsonl"


class LossCurve(HookBase):
    """Adds one line for each step to `losses.jsonl`: the iteration and every loss term.

    `metrics.json` holds medians over 20 iterations; here nothing is smoothed. A resumed run writes
    the iterations after its checkpoint once more; `read_curve` takes the later ones.
    """

    def __init__(self, folder: str) -> None:
        """Takes the run's folder."""
        self._path = Path(folder) / FILE_NAME
        self._file: IO[str] | None = None

    def before_train(self) -> None:
        """Opens the file, and ends a line that a kill has cut short."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        before = self._path.read_bytes() if self._path.exists() else b""
        self._file = self._path.open("a", encoding="utf-8")
        if before and not before.endswith(b"\n"):
            self._file.write("\n")

    def after_step(self) -> None:
        """Writes the losses of the step that was just made."""
        now = self.trainer.iter
        latest = self.trainer.storage.latest()
        terms = {
            name: value
            for name, (value, iteration) in latest.items()
            if "loss" in name and iteration == now
        }
        if self._file is not None and terms:
            self._file.write(json.dumps({"iteration": now, **terms}) + "\n")
            self._file.flush()

    def after_train(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_curve(path: str | Path) -> dict[int, dict[str, float]]:
    """The losses of a run by iteration, from `losses.jsonl` or Detectron2's `metrics.json`.

    Where a run was resumed or started anew, the older lines from that iteration on do not count.
    Lines that a kill has cut short are left out.

    Raises:
        ValueError: if the file cannot be read.
    """
    curve: dict[int, dict[str, float]] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    last = -1
    for line in lines:
        try:
            found = json.loads(line)
            now = int(found["iteration"])
            terms = {key: float(value) for key, value in found.items() if "loss" in key}
        except (ValueError, LookupError, TypeError):
            continue
        if now <= last:
            curve = {iteration: kept for iteration, kept in curve.items() if iteration < now}
        last = now
        if terms:
            curve[now] = terms
    return curve
