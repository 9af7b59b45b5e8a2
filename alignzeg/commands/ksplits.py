"""`alignzeg ksplits`: ZS3Net against recursive training over numbers of unseen classes.

A recursive run holds both: it is evaluated after round 0, which is ZS3Net, and after the last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignzeg.arguments import OneLineParser, command_parser
from alignzeg.commands import find_repository
from alignzeg.commands.ablate import add_run_arguments, checked_plan, whole_numbers
from alignzeg.studies.ablation import Row, run

RESUMABLE = True
METRICS = ("pAcc", "mIoU", "sIoU", "uIoU", "hIoU")
_PREFIX = "sem_seg/"
_SPLIT_DIR = Path(__file__).parents[1] / "data" / "splits"

Figures = dict[str, float]


@dataclass(frozen=True)
class Method:
    """A line of the table for each K.

    Attributes:
        name: what it is called there.
        config: the config is <config>.yaml.
        place: of the evaluation that counts among those of a run: 0 or -1.
    """

    name: str
    config: str
    place: int


METHODS = (
    Method("ZS3Net", "transductive_recursive", 0),
    Method("ZS3Net, self-training", "transductive_self_training", -1),
    Method("recursive", "transductive_recursive", -1),
    Method("recursive, generated", "transductive_recursive_generated", -1),
)


@dataclass(frozen=True)
class Splits:
    """The configs of a benchmark, and the data set whose K-splits they are trained on.

    Attributes:
        folder: of the configs.
        encoder: what their names end with, such as "R101"; may be empty.
        dataset: as registered, without its K; empty: the name of the folder.
    """

    folder: Path
    encoder: str = ""
    dataset: str = ""

    def name(self, split: int, config: str) -> str:
        """What a run is called."""
        return f"k{split}_{self.path(config).stem}"

    def path(self, config: str) -> Path:
        """A config, whether it exists or not."""
        return self.folder / (config + (f"_{self.encoder}" if self.encoder else "") + ".yaml")

    def opts(self, split: int) -> tuple[str, ...]:
        """The KEY VALUE pairs that make a config one of a K-split.

        Raises:
            ValueError: if there is no such split.
        """
        return split_opts(self.dataset or self.folder.name, split)

    @property
    def methods(self) -> tuple[Method, ...]:
        """Those that there are configs of.

        Raises:
            ValueError: if there are none.
        """
        found = tuple(m for m in METHODS if self.path(m.config).is_file())
        if not found:
            raise ValueError(
                f"there is no config {self.path(METHODS[0].config)}; where names end with "
                "an image encoder, say which, as --encoder R101"
            )
        return found


def parser() -> OneLineParser:
    """The command line."""
    result = command_parser(
        "ksplits",
        "Trains ZS3Net and recursive training for several numbers K of unseen classes, and prints "
        "a table. Run it again to go on where it stopped.",
        "alignzeg ksplits --splits 2,4 --seeds 1,2,3 --jobs 2",
    )
    result.add_argument(
        "--benchmark",
        default="zeroshapes",
        metavar="NAME",
        help="a folder of configs; %(default)s by default",
    )
    result.add_argument(
        "--encoder", default="", metavar="NAME", help="the end of the configs' names, such as R101"
    )
    result.add_argument(
        "--dataset",
        default="",
        metavar="NAME",
        help="the data set of the configs, such as context60; by default the folder's name",
    )
    result.add_argument(
        "--splits",
        type=whole_numbers,
        default="2,4,6,8,10",
        metavar="LIST",
        help="the numbers K, separated by commas; %(default)s by default",
    )
    result.add_argument(
        "--base",
        type=int,
        default=0,
        metavar="K",
        help="the split whose pixel network serves all others; by default each has its own",
    )
    add_run_arguments(result, "output/ksplits")
    return result


def main(args: argparse.Namespace) -> None:
    """Trains, and prints the table.

    Raises:
        ValueError: if the configs or the numbers cannot work.
        TrainingError: if a training fails.
    """
    splits = Splits(find_repository() / "configs" / args.benchmark, args.encoder, args.dataset)
    plan = checked_plan(args, rows(splits, args.splits, args.base))
    run(plan)
    folders = {
        split: {
            method: [plan.folder(splits.name(split, method.config), seed) for seed in plan.seeds]
            for method in splits.methods
        }
        for split in args.splits
    }
    sys.stdout.write(table(folders) + "\n")


def split_opts(dataset: str, split: int) -> tuple[str, ...]:
    """KEY VALUE pairs for training and evaluating a data set, such as "context60", with K unseen.

    Raises:
        ValueError: if there is no such split; the message names those that there are.
    """
    name = f"{dataset}_k{split}"
    known = sorted(path.stem for path in _SPLIT_DIR.glob("*_k*.json"))
    if name not in known:
        raise ValueError(
            f"there is no split {name}; where a folder of configs serves several data sets, say "
            f"which, as --dataset context60; there are {', '.join(known)}"
        )
    return ("DATASETS.TRAIN", f"{name}_train", "DATASETS.TEST", f"{name}_val")


def rows(splits: Splits, numbers: Sequence[int], base: int = 0) -> tuple[Row, ...]:
    """What is trained for each split: a pixel network, and the methods on top of it.

    Args:
        splits: the configs.
        numbers: of unseen classes, K.
        base: K of the one split whose pixel network serves all; it must not be smaller than any
            other. 0 trains one for each.

    Raises:
        ValueError: if that pixel network would have seen an unseen class of a split, or a split has
            no configs, or does not exist.
    """
    if base and base < max(numbers):
        raise ValueError(
            f"the pixel network of K = {base} has seen classes that are unseen for K = "
            f"{max(numbers)}; share that of the largest K"
        )
    result = {}
    for split in numbers:
        pixel = splits.name(base or split, "pixel")
        result[pixel] = Row(pixel, splits.path("pixel"), opts=splits.opts(base or split))
        for method in splits.methods:
            name, path = splits.name(split, method.config), splits.path(method.config)
            result[name] = Row(name, path, starts_from=pixel, opts=splits.opts(split))
    return tuple(result.values())


def rounds(folder: Path) -> list[Figures]:
    """The figures after each round of a run, in percent.

    Raises:
        ValueError: if the run was not evaluated.
    """
    found: dict[int, Figures] = {}
    path = folder / "metrics.json"
    for line in path.read_text("utf-8").splitlines() if path.is_file() else ():
        entry = json.loads(line)
        figures = {name: entry[_PREFIX + name] for name in METRICS if _PREFIX + name in entry}
        if figures:
            found[entry["iteration"]] = figures
    if not found:
        raise ValueError(f"{path} holds no evaluation; run the command again to finish this run")
    return [found[iteration] for iteration in sorted(found)]


def table(runs: Mapping[int, Mapping[Method, Sequence[Path]]]) -> str:
    """A Markdown table, mean and sample standard deviation over seeds, and who wins.

    Each method has one folder for each seed; the first is what the others are compared with.
    """
    lines = ["| K | method | " + " | ".join(METRICS) + " |", "|--" * (len(METRICS) + 2) + "|"]
    means: dict[str, list[Figures]] = {}
    for split, methods in runs.items():
        for method, folders in methods.items():
            figures = [rounds(folder)[method.place] for folder in folders]
            values = {name: [f[name] for f in figures if name in f] for name in METRICS}
            found = {name: statistics.fmean(v) for name, v in values.items() if v}
            means.setdefault(method.name, []).append(found)
            cells = " | ".join(_cell(values[name]) for name in METRICS)
            lines.append(f"| {split} | {method.name} | {cells} |")
    (first, reference), *others = means.items()
    for name, figures in others:
        pairs = list(zip(figures, reference, strict=True))
        gains = {key: [a.get(key, 0.0) - b.get(key, 0.0) for a, b in pairs] for key in METRICS}
        gained = ", ".join(f"{key} {statistics.fmean(gain):+.1f}" for key, gain in gains.items())
        wins = sum(gain > 0 for gain in gains["uIoU"])
        lines += ["", f"{name}: uIoU above {first}'s for {wins} of {len(runs)} K; mean: {gained}"]
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"
