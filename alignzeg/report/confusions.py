"""Which class was taken for which: the pairs that cost most pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from alignzeg.report.runs import RunResult


@dataclass(frozen=True)
class Pair:
    """A class that was called another.

    Attributes:
        true: name of the class.
        named: what it was called; empty for "none of these".
        shares: for each run the percent of the true class's pixels that were called so; None where
            a run has no such pixel.
        seen: whether the true class, and what it was called, had masks in training.
    """

    true: str
    named: str
    shares: tuple[float | None, ...]
    seen: tuple[bool, bool]


def worst_pairs(runs: Sequence[RunResult], most: int = 12) -> list[Pair]:
    """The pairs with the most wrong pixels in the run that is worst at each, the worst first.

    Runs that lack a confusion matrix, or have other classes than the last, are left out.
    """
    matrices = [_matrix(run, runs[-1]) for run in runs]
    known = [matrix for matrix in matrices if matrix is not None]
    if not known:
        return []
    wrong = np.maximum.reduce(known).copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    rows = runs[-1].classes
    pairs = []
    for place in order.tolist():
        i, j = divmod(place, wrong.shape[1])
        if not wrong[i, j]:
            break
        shares = tuple(None if matrix is None else _share(matrix, i, j) for matrix in matrices)
        named, kind = (rows[j]["name"], rows[j]["seen"]) if j < len(rows) else ("", True)
        pairs.append(Pair(rows[i]["name"], named, shares, (rows[i]["seen"], kind)))
    return pairs


def _matrix(run: RunResult, last: RunResult) -> NDArray[np.int64] | None:
    """(K, K + 1) counts of a run whose classes are those of the last one."""
    names = [[row["name"] for row in one.classes] for one in (run, last)]
    matrix = np.array(run.confusion, dtype=np.int64)
    size = len(names[0])
    if not size or names[0] != names[1] or matrix.shape not in ((size, size), (size, size + 1)):
        return None
    return np.pad(matrix, ((0, 0), (0, size + 1 - matrix.shape[1])))


def _share(matrix: NDArray[np.int64], true: int, named: int) -> float | None:
    total = int(matrix[true].sum())
    return 100.0 * int(matrix[true, named]) / total if total else None


def pair_table(runs: Sequence[RunResult], most: int = 12) -> str:
    """The pairs as HTML, with a bar for each run; nothing where no run has any."""
    pairs = worst_pairs(runs, most)
    if not pairs:
        return ""
    rows = []
    for pair in pairs:
        names = [_tagged(pair.true, pair.seen[0]), _tagged(pair.named, pair.seen[1])]
        lines = "".join(
            f'<div class="track"><div class="bar run{i}" style="width:{share or 0:.1f}%"></div>'
            f'</div><div class="figure">{"–" if share is None else f"{share:.1f}"}</div>'
            for i, share in enumerate(pair.shares)
        )
        span = f'style="grid-row: 1 / span {len(runs)}"'
        rows.append(
            f'<div class="class pairs"><div class="name" {span}>{names[0]} called {names[1]}</div>'
            f"{lines}</div>"
        )
    return f'<div class="bars">{"".join(rows)}</div>'


def _tagged(name: str, seen: bool) -> str:
    if not name:
        return "none of these"
    return f"“{escape(name)}”" + ("" if seen else ' <span class="tag">unseen</span>')
