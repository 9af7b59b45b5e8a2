"""The confusions and images that a report shows first."""

from __future__ import annotations

import numpy as np

from alignzeg.evaluation.per_image import PerImage, sparse
from alignzeg.report import RunResult
from alignzeg.report.confusions import pair_table, worst_pairs
from alignzeg.report.runs import accuracies


def confused(matrix: list[list[int]], names: str = "abc", label: str = "one") -> RunResult:
    """A run with a confusion matrix; the last class is unseen."""
    classes = [{"name": name, "seen": name != names[-1], "IoU": None} for name in names]
    return RunResult(label, label, {}, classes=classes, confusion=matrix)


def test_the_worst_pairs_come_first() -> None:
    first = confused([[50, 30, 0, 20], [1, 9, 0, 0], [40, 0, 60, 0]])
    last = confused([[90, 10, 0, 0], [0, 10, 0, 0], [0, 25, 25, 0]], label="two")
    pairs = worst_pairs([first, last])
    assert [(pair.true, pair.named, pair.shares, pair.seen) for pair in pairs] == [
        ("c", "a", (40.0, 0.0), (False, True)),
        ("a", "b", (30.0, 10.0), (True, True)),
        ("c", "b", (0.0, 50.0), (False, True)),
        ("a", "", (20.0, 0.0), (True, True)),
        ("b", "a", (10.0, 0.0), (True, True)),
    ]
    assert [pair.true for pair in worst_pairs([first, last], 2)] == ["c", "a"]


def test_pairs_of_runs_that_do_not_fit_are_left_out() -> None:
    last = confused([[3, 1], [0, 0]], "ab")
    others = [confused([[3, 1, 0], [0, 4, 0]], "xb"), RunResult("b", "B", {})]
    (pair,) = worst_pairs([*others, last])
    assert (pair.true, pair.named, pair.shares) == ("a", "b", (None, None, 25.0))
    assert worst_pairs(others) == []
    assert pair_table([confused([[3, 0], [0, 4]], "ab")]) == ""
    table = pair_table([confused([[3, 1], [0, 0]], ["<i>", "b"])])
    assert "“&lt;i&gt;” called “b”" in table and "25.0" in table and "<i>" not in table


def test_images_are_ordered_by_the_share_that_is_right() -> None:
    matrices = {"good": [[9, 1, 0], [0, 10, 0]], "bad": [[1, 2, 1], [0, 0, 0]]}
    matrices |= {"middle": [[1, 0, 0], [1, 0, 0]], "empty": [[0, 0, 0], [0, 0, 0]]}
    rows = [(f"/d/{name}.png", *sparse(np.array(m))) for name, m in matrices.items()]
    kept = PerImage.collect(["a", "b"], [True, False], rows)
    assert list(accuracies(kept).items()) == [
        ("bad.png", 25.0),
        ("middle.png", 50.0),
        ("good.png", 95.0),
    ]
