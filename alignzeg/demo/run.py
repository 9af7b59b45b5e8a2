"""The demo from data to report."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog
from rich.console import Console
from rich.table import Table

from alignzeg.data.catalog import dataset_root
from alignzeg.data.labels import get_vocabulary, label_lookup, read_labels
from alignzeg.data.pictures import read_rgb
from alignzeg.data.zeroshapes import write_dataset
from alignzeg.demo.plan import LABELS, Plan, write_json
from alignzeg.demo.training import DONE, train_all
from alignzeg.engine import setup_config
from alignzeg.inference import Predictor
from alignzeg.report import About, RunResult, Sample, read_run, write_report
from alignzeg.structures import Vocabulary

DATASET = "zeroshapes_val"
METRICS = ("pAcc", "mIoU", "sIoU", "uIoU", "hIoU")
_SAMPLES = 8


def run_demo(plan: Plan, fresh: bool = False, console: Console | None = None) -> dict[str, Any]:
    """Prepares, trains, evaluates, compares.

    Args:
        plan: what to do.
        fresh: forget earlier runs in the output folder.
        console: where progress and the table go.

    Returns:
        {"baseline": {metric: percent}, "alignzeg": {...}, "seconds": {part: wall time}}; also
        written to results.json beside report.html. The time of a run that was used again is that
        of its training.

    Raises:
        ValueError: on a config that cannot run.
        DemoError: if a training fails.
    """
    console = console or Console()
    if fresh:
        for name in LABELS:
            shutil.rmtree(plan.folder(name), ignore_errors=True)
    cfgs = {name: setup_config(plan.config(name), plan.run_opts(name)) for name in LABELS}
    seconds: dict[str, float] = {}
    start = time.monotonic()
    # Said once and for all where no live display is possible, such as a log file.
    console.print(f"Preparing zeroshapes in {dataset_root()[0]}", soft_wrap=True)
    with console.status("Preparing zeroshapes"):
        root = dataset_root()[0]
        for split, count in zip(("train", "val"), plan.scenes, strict=True):
            write_dataset(root, split, count, plan.size)
    seconds["prepare"] = time.monotonic() - start
    steps = cfgs["alignzeg"].SOLVER.MAX_ITER
    console.print(f"Training {steps} steps each; logs in {plan.output}/*/log.txt", soft_wrap=True)
    train_all(plan, {name: cfg.SOLVER.MAX_ITER for name, cfg in cfgs.items()}, console)
    for name in LABELS:
        seconds[f"train_{name}"] = json.loads((plan.folder(name) / DONE).read_text())["seconds"]
    start = time.monotonic()
    runs = [
        read_run(name, label, plan.folder(name), DATASET, _shown(plan, name))
        for name, label in LABELS.items()
    ]
    with console.status("Writing the report"):
        facts = {
            "iterations": cfgs["alignzeg"].SOLVER.MAX_ITER,
            "pictures": f"{plan.scenes[0]} to train on, {plan.scenes[1]} to judge by",
            "seed": cfgs["alignzeg"].SEED,
            **{
                f"seconds, {key.replace('_', ' ')}": f"{value:.0f}"
                for key, value in seconds.items()
            },
        }
        report = _write_report(plan, runs, facts)
    seconds["report"] = time.monotonic() - start
    results: dict[str, Any] = {
        run.name: {key: run.metrics.get(key) for key in METRICS} for run in runs
    }
    results["seconds"] = {key: round(value, 1) for key, value in seconds.items()}
    write_json(plan.output / "results.json", results)
    console.print(results_table(runs))
    console.print(f"Report: {report}", highlight=False, soft_wrap=True)
    return results


def _shown(plan: Plan, name: str) -> str:
    """The training command as somebody in the repository would type it."""
    config = plan.config(name).relative_to(plan.repository)
    opts = " ".join(plan.run_opts(name)[:-2])
    return f"python tools/train_net.py --config-file {config} {opts}".strip()


def _write_report(plan: Plan, runs: Sequence[RunResult], facts: dict[str, Any]) -> Path:
    vocabulary = get_vocabulary(DATASET)
    predictors = {
        run.name: Predictor(plan.folder(run.name) / "model_final.pth", vocabulary.names)
        for run in runs
    }
    seen, unseen = len(vocabulary.seen_ids), len(vocabulary.unseen_ids)
    example = vocabulary.names[vocabulary.unseen_ids[0]] if unseen else ""
    about = About(
        title="AlignZeg against its baseline on zeroshapes",
        lead=f"Both models learned from masks of {seen} classes and are asked to name "
        f"{seen + unseen}. The other {unseen}, such as “{example}”, were visible in the training "
        "pictures, but without any label. Pictures, schedule, seed and the frozen "
        "vision-language model are the same for both.",
        commands=["make demo", "# or one by one:"],
        facts=facts,
    )
    samples = choose_samples(vocabulary, predictors)
    return write_report(plan.output / "report.html", runs, samples, vocabulary, about)


def choose_samples(vocabulary: Vocabulary, predictors: Mapping[str, Predictor]) -> list[Sample]:
    """The first validation pictures that show an unseen class, with everybody's answer."""
    lookup = label_lookup(DATASET, vocabulary)
    unseen = set(vocabulary.unseen_ids)
    samples: list[Sample] = []
    for record in DatasetCatalog.get(DATASET):
        truth = lookup[read_labels(record["sem_seg_file_name"], DATASET)]
        if unseen.isdisjoint(np.unique(truth).tolist()):
            continue
        name = record["file_name"]
        answers = {key: predict(name).labels for key, predict in predictors.items()}
        samples.append(Sample(Path(name).stem, read_rgb(name), truth, answers))
        if len(samples) == _SAMPLES:
            break
    return samples


def results_table(runs: Sequence[RunResult]) -> Table:
    """The two rows, in percent."""
    table = Table("percent", *METRICS)
    for run in runs:
        values = (run.metrics.get(key) for key in METRICS)
        table.add_row(run.label, *("–" if v is None else f"{v:.1f}" for v in values))
    return table
