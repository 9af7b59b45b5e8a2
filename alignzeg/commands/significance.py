"""`alignzeg significance`: how far chance alone would move sIoU, uIoU and hIoU."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from alignzeg.arguments import OneLineParser, command_parser
from alignzeg.files import atomic_write

if TYPE_CHECKING:
    from rich.table import Table

    from alignzeg.evaluation.per_image import PerImage
    from alignzeg.evaluation.uncertainty import Comparison, Interval


def parser() -> OneLineParser:
    """The command line."""
    result = command_parser(
        "significance",
        "Bootstrap intervals over images of one evaluation, or a paired comparison of two. An "
        "evaluation is a run's folder or a per_image_*.npz file; evaluate with "
        "ALIGNZEG.TEST.SAVE_PER_IMAGE True to get one.",
        "alignzeg significance output/baseline output/alignzeg",
    )
    result.add_argument(
        "evaluations", nargs="+", metavar="RUN", help="one run's folder, or two to compare"
    )
    result.add_argument(
        "--level", type=float, default=0.95, help="the confidence level; %(default)s by default"
    )
    result.add_argument(
        "--resamples",
        type=int,
        default=2000,
        metavar="N",
        help="resamples of the bootstrap; %(default)s by default",
    )
    result.add_argument(
        "--permutations",
        type=int,
        default=9999,
        metavar="N",
        help="permutations of the paired test; %(default)s by default",
    )
    result.add_argument(
        "--seed", type=int, default=0, help="the seed of both; %(default)s by default"
    )
    result.add_argument(
        "--json", default="", metavar="FILE", help="also write the figures to this file"
    )
    return result


def find_files(place: str) -> dict[str, Path]:
    """The per-image files of a run's folder by data set, or the one file.

    Raises:
        ValueError: if there are none.
    """
    from alignzeg.evaluation.per_image import FILE_PATTERN

    path = Path(place)
    if path.is_file():
        return {path.name: path}
    if not path.exists():
        raise ValueError(
            f"{place!r} does not exist; give a run's folder, evaluated with "
            "ALIGNZEG.TEST.SAVE_PER_IMAGE True"
        )
    pattern = FILE_PATTERN.format("*")
    found = {p.name: p for folder in (path, path / "inference") for p in folder.glob(pattern)}
    if not found:
        raise ValueError(
            f"{place!r} holds no {pattern}; evaluate with ALIGNZEG.TEST.SAVE_PER_IMAGE True first"
        )
    return dict(sorted(found.items()))


def pairs(first: str, second: str) -> list[tuple[str, PerImage, PerImage]]:
    """The data sets that both evaluations hold, with their counts.

    Raises:
        ValueError: if there is none.
    """
    from alignzeg.evaluation.per_image import load_per_image

    ours, theirs = find_files(first), find_files(second)
    if len(ours) == len(theirs) == 1:
        names = [(next(iter(ours)), next(iter(theirs)))]
    else:
        names = [(name, name) for name in ours if name in theirs]
    if not names:
        raise ValueError(f"{first!r} holds {list(ours)}, {second!r} holds {list(theirs)}")
    return [(a, load_per_image(ours[a]), load_per_image(theirs[b])) for a, b in names]


def interval_table(title: str, found: dict[str, Interval], level: float) -> Table:
    """Figures with their intervals, for the terminal."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in ("", "value", f"{100 * level:g} % interval"):
        table.add_column(name, justify="right")
    for name, span in found.items():
        table.add_row(name, f"{span.value:.2f}", f"{span.low:.2f} to {span.high:.2f}")
    return table


def comparison_table(title: str, found: dict[str, Comparison], level: float) -> Table:
    """Figures of two evaluations, their difference and its p-value, for the terminal."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in ("", "A", "B", "B - A", f"{100 * level:g} % interval", "p"):
        table.add_column(name, justify="right")
    for name, row in found.items():
        span = row.difference
        table.add_row(
            name,
            f"{row.first:.2f}",
            f"{row.second:.2f}",
            f"{span.value:+.2f}",
            f"{span.low:+.2f} to {span.high:+.2f}",
            f"{row.p_value:.4f}",
        )
    return table


def checked(args: argparse.Namespace) -> argparse.Namespace:
    """The same command line, if it makes sense.

    Raises:
        ValueError: naming the first word that does not.
    """
    if len(args.evaluations) > 2:
        raise ValueError(f"give one or two evaluations, not {len(args.evaluations)}")
    if not 0 < args.level < 1:
        raise ValueError(f"--level is {args.level}; it must be between 0 and 1, such as 0.95")
    for name in ("resamples", "permutations"):
        if getattr(args, name) < 100:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be 100 or more")
    if args.seed < 0:
        raise ValueError(f"--seed is {args.seed}; it must be 0 or more")
    if args.json and (Path(args.json).is_dir() or not Path(args.json).parent.is_dir()):
        raise ValueError(f"--json is {args.json!r}; it must be a file in a folder that exists")
    return args


def main(args: argparse.Namespace) -> None:
    """Prints the intervals or the comparison; whether it is significant is not an exit code.

    Raises:
        ValueError: on missing or unlike evaluations, or a command line that makes no sense.
    """
    from rich.console import Console

    from alignzeg.evaluation.per_image import load_per_image
    from alignzeg.evaluation.uncertainty import compare, intervals

    checked(args)
    how = {"level": args.level, "resamples": args.resamples, "seed": args.seed}
    console = Console(highlight=False, soft_wrap=True)
    report: dict[str, dict[str, object]] = {}
    if len(args.evaluations) == 1:
        for name, path in find_files(args.evaluations[0]).items():
            evaluation = load_per_image(path)
            found = intervals(evaluation, **how)
            title = f"{name}: {len(evaluation.images)} images"
            console.print(interval_table(title, found, args.level))
            report[name] = {key: vars(value) for key, value in found.items()}
    else:
        for name, first, second in pairs(*args.evaluations):
            both = compare(first, second, permutations=args.permutations, **how)
            title = f"{name}: {len(first.images)} images, paired"
            console.print(comparison_table(title, both, args.level))
            report[name] = {
                key: {**vars(row), "difference": vars(row.difference)} for key, row in both.items()
            }
    if args.json:
        atomic_write(args.json, json.dumps(report, indent=1) + "\n")
    sys.stdout.flush()
