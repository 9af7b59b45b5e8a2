"""ZS3Net against recursive training over numbers of unseen classes: the plan, and its table.

A recursive run holds both: it is evaluated after round 0, which is ZS3Net, and after the last.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from alignzeg.ablation import Row

METRICS = ("pAcc", "mIoU", "sIoU", "uIoU", "hIoU")
METHODS = ("ZS3Net", "recursive")
_PREFIX = "sem_seg/"

Figures = dict[str, float]


def rows(configs: Path, splits: Sequence[int], base: int = 0) -> tuple[Row, ...]:
    """What is trained: a pixel network, and the recursive method on top of it, for each split.

    Args:
        configs: folder of the benchmark's configs.
        splits: numbers of unseen classes, K.
        base: K of the one split whose pixel network serves all; it must not be smaller than any
            other. 0 trains one for each.

    Raises:
        ValueError: if that pixel network would have seen an unseen class of a split.
    """
    if base and base < max(splits):
        raise ValueError(
            f"the pixel network of K = {base} has seen classes that are unseen for K = "
            f"{max(splits)}; share that of the largest K"
        )
    result = {}
    for split in splits:
        pixel, top = f"k{base or split}_pixel", f"k{split}_transductive_recursive"
        result[pixel] = Row(pixel, configs / f"{pixel}.yaml")
        result[top] = Row(top, configs / f"{top}.yaml", starts_from=pixel)
    return tuple(result.values())


def rounds(folder: Path) -> list[Figures]:
    """The figures after each round of a run, in percent.

    Raises:
        ValueError: if the run was not evaluated.
    """
    found: dict[int, Figures] = {}
    path = folder / "metrics.json"
    for line in path.read_text().splitlines() if path.is_file() else ():
        entry = json.loads(line)
        figures = {name: entry[_PREFIX + name] for name in METRICS if _PREFIX + name in entry}
        if figures:
            found[entry["iteration"]] = figures
    if not found:
        raise ValueError(f"{path} holds no evaluation; run the command again to finish this run")
    return [found[iteration] for iteration in sorted(found)]


def table(runs: Mapping[int, Sequence[Path]]) -> str:
    """A Markdown table, mean and sample standard deviation over seeds, and who wins.

    Args:
        runs: for each K the folders of its recursive runs, one for each seed.
    """
    lines = ["| K | method | " + " | ".join(METRICS) + " |", "|--" * (len(METRICS) + 2) + "|"]
    wins = 0
    gains: dict[str, list[float]] = {name: [] for name in METRICS}
    for split, folders in runs.items():
        each = [rounds(folder) for folder in folders]
        means = []
        for method, place in zip(METHODS, (0, -1), strict=True):
            figures = [run[place] for run in each]
            values = {name: [f[name] for f in figures if name in f] for name in METRICS}
            means.append({name: statistics.fmean(v) for name, v in values.items() if v})
            cells = " | ".join(_cell(values[name]) for name in METRICS)
            lines.append(f"| {split} | {method} | {cells} |")
        for name in METRICS:
            gains[name].append(means[1].get(name, 0.0) - means[0].get(name, 0.0))
        wins += gains["uIoU"][-1] > 0
    gained = ", ".join(f"{name} {statistics.fmean(gains[name]):+.1f}" for name in METRICS)
    return "\n".join(
        [*lines, "", f"uIoU is higher with recursion for {wins} of {len(runs)} K; mean: {gained}"]
    )


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"
