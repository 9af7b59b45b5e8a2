"""`alignzeg report`: runs side by side in one HTML file."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignzeg.arguments import (
    OneLineParser,
    add_trust,
    code_allowed,
    command_parser,
    number,
    require_folder,
)

_PREFIX = "evaluation_"
_FINAL = "model_final.pth"


def parser() -> OneLineParser:
    """The command line."""
    result = command_parser(
        "report",
        "Compares one to four evaluated runs in one HTML file: results, classes, confusion of seen "
        "and unseen, losses, and images with the answer of every run. The first run is what the "
        "others are compared with.",
        "alignzeg report output/baseline output/alignzeg --output output/report.html",
    )
    result.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder (OUTPUT_DIR)")
    result.add_argument(
        "--dataset",
        default="",
        metavar="NAME",
        help="the test set to report; by default the one that every run was evaluated on",
    )
    result.add_argument(
        "--output",
        default="output/report.html",
        metavar="FILE",
        help="the file to write; %(default)s by default",
    )
    result.add_argument(
        "--images",
        type=number(int, 0),
        default=8,
        metavar="N",
        help=f"images to segment with the {_FINAL} of every run; %(default)s by default",
    )
    result.add_argument(
        "--worst",
        type=number(int, 0),
        default=4,
        metavar="N",
        help="images to show that the last run names worst; %(default)s by default. They are known "
        "where it was evaluated with ALIGNZEG.TEST.SAVE_PER_IMAGE True",
    )
    result.add_argument(
        "--device", default=None, help='the device, such as "cpu" or "cuda:0"; a GPU by default'
    )
    add_trust(result)
    return result


def main(args: argparse.Namespace) -> None:
    """Writes the report.

    Raises:
        ValueError: if a folder is none of an evaluated run, the runs share no test set, or the
            file cannot be written.
    """
    if len(args.runs) > 4:
        raise ValueError(f"a report shows one to four runs; got {len(args.runs)}")
    path = Path(args.output).expanduser()
    if path.is_dir():
        raise ValueError(f"--output is {args.output!r}, which is a folder; give a file")
    require_folder(path.parent, "--output")
    folders = [Path(run) for run in args.runs]
    dataset = args.dataset or common_dataset(folders)
    from alignzeg.data.labels import eval_vocabulary
    from alignzeg.engine.settings import setup_config_of
    from alignzeg.inference import Predictor
    from alignzeg.report import About, choose_samples, choose_worst, read_run, write_report

    runs = [
        read_run(label, label, folder, dataset, command_of(folder))
        for label, folder in zip(labels(folders), folders, strict=True)
    ]
    if not (folders[-1] / "config.yaml").is_file():
        raise ValueError(
            f"{str(folders[-1])!r} holds no config.yaml; give the OUTPUT_DIR of a run itself"
        )
    # Of the last run, which also registers its data set where that is a folder of the user.
    allowed = code_allowed(args)
    cfg = setup_config_of(folders[-1] / "config.yaml", **allowed)
    vocabulary = eval_vocabulary(cfg, dataset)
    weights = {run.name: folder / _FINAL for run, folder in zip(runs, folders, strict=True)}
    predictors = {
        name: Predictor(file, vocabulary.names, args.device, **allowed)
        for name, file in weights.items()
        if (args.images or args.worst) and file.is_file()
    }
    images = args.images if predictors else 0
    seen, unseen = len(vocabulary.seen_ids), len(vocabulary.unseen_ids)
    about = About(
        title=f"{' and '.join(run.label for run in runs)} on {dataset}",
        lead=f"Evaluated on {dataset}: {seen} seen and {unseen} unseen classes.",
        commands=[shlex.join(["alignzeg", "report", *args.runs])],
        facts={f"folder of {run.label}": str(f) for run, f in zip(runs, folders, strict=True)},
        kind="image",
    )
    samples = choose_samples(dataset, vocabulary, predictors, images)
    worst = choose_worst(dataset, vocabulary, predictors, runs[-1].images, args.worst)
    write_report(path, runs, samples, vocabulary, about, worst)
    sys.stdout.write(f"{path}\n")


def common_dataset(folders: Sequence[Path]) -> str:
    """The one test set that all runs were evaluated on.

    Raises:
        ValueError: if there is none, or more than one.
    """
    found = []
    for folder in folders:
        files = folder.rglob(f"{_PREFIX}*.json")
        found.append({file.stem.removeprefix(_PREFIX) for file in files})
        if not found[-1]:
            raise ValueError(
                f"{str(folder)!r} holds no evaluation; give the OUTPUT_DIR of an evaluated run"
            )
    common = sorted(set.intersection(*found))
    if len(common) != 1:
        held = "; ".join(
            f"{folder}: {sorted(names)}" for folder, names in zip(folders, found, strict=True)
        )
        problem = f"all were evaluated on {common}; give one as --dataset" if common else held
        raise ValueError(f"the runs share {len(common)} test sets ({problem})")
    return common[0]


def labels(folders: Sequence[Path]) -> list[str]:
    """What each run is called: its folder's name, with the folders above where two are alike."""
    for depth in range(1, 1 + max(len(folder.absolute().parts) for folder in folders)):
        names = ["/".join(folder.absolute().parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"a run is given twice: {[str(folder) for folder in folders]}")


def command_of(folder: Path) -> str:
    """What trained a run, as it recorded it; empty if it did not."""
    from alignzeg.engine.records.provenance import read_history
    from alignzeg.studies.divergence import last_training

    entries: list[dict[str, Any]] = last_training(read_history(folder))
    words = [*entries[0].get("command", ())] if entries else []
    # Where the program lies on that machine is of no use to others.
    return shlex.join([Path(word).name if place == 0 else word for place, word in enumerate(words)])
