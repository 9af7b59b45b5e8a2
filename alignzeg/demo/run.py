"""A comparison from data to report."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from rich.console import Console
from rich.table import Table

from alignzeg.data.catalog import dataset_root
from alignzeg.data.labels import get_vocabulary
from alignzeg.demo.plan import LABELS, Plan, write_json
from alignzeg.demo.training import DONE, train_all
from alignzeg.engine import setup_config
from alignzeg.engine.settings import validate_pretrained
from alignzeg.inference import Predictor
from alignzeg.report import (
    About,
    RunResult,
    choose_samples,
    choose_worst,
    read_run,
    write_report,
)
from alignzeg.structures import Vocabulary

METRICS = ("pAcc", "mIoU", "sIoU", "uIoU", "hIoU")


def run_plan(plan: Plan, fresh: bool = False, console: Console | None = None) -> dict[str, Any]:
    """Prepares, trains, evaluates, compares; `fresh` forgets earlier runs in the output folder.

    Returns:
        {"baseline": {metric: percent}, "alignzeg": {...}, "seconds": {part: wall time}}; also
        written to results.json beside report.html. The time of a run that was used again is that
        of its training.

    Raises:
        ValueError: on a config or a data set that cannot be worked with, before any work.
        TrainingError: if a training fails.
    """
    console = console or Console()
    plan.data.check()
    cfgs = {name: setup_config(plan.config(name), plan.run_opts(name)) for name in LABELS}
    for cfg in cfgs.values():
        validate_pretrained(cfg)
    if fresh:
        for name in LABELS:
            shutil.rmtree(plan.folder(name), ignore_errors=True)
    seconds = {"prepare": _prepare(plan, console)}
    steps = {name: cfg.SOLVER.MAX_ITER for name, cfg in cfgs.items()}
    seconds |= _train(plan, steps, console)
    start = time.monotonic()
    runs = [
        read_run(name, label, plan.folder(name), plan.dataset, _shown(plan, name))
        for name, label in LABELS.items()
    ]
    with console.status("Writing the report"):
        report = _write_report(plan, runs, cfgs, _facts(plan, cfgs["alignzeg"], seconds))
    seconds["report"] = time.monotonic() - start
    results: dict[str, Any] = {
        run.name: {key: run.metrics.get(key) for key in METRICS} for run in runs
    }
    results["seconds"] = {key: round(value, 1) for key, value in seconds.items()}
    write_json(plan.output / "results.json", results)
    console.print(results_table(runs))
    console.print(f"Report: {report}", highlight=False, soft_wrap=True)
    return results


def _prepare(plan: Plan, console: Console) -> float:
    """Makes the data set; returns the seconds that it took."""
    start = time.monotonic()
    name = plan.data.benchmark
    # Said once and for all where no live display is possible, such as a log file.
    console.print(f"Preparing {name} in {dataset_root()[0]}", soft_wrap=True)
    with console.status(f"Preparing {name}"):
        plan.data.prepare()
    return time.monotonic() - start


def _train(plan: Plan, iterations: dict[str, int], console: Console) -> dict[str, float]:
    """Trains both; returns the seconds that each took."""
    steps = iterations["alignzeg"]
    console.print(f"Training {steps} steps each; logs in {plan.output}/*/log.txt", soft_wrap=True)
    train_all(plan, iterations, console)
    return {
        f"train_{name}": json.loads(plan.record(name, DONE).read_text("utf-8"))["seconds"]
        for name in LABELS
    }


def _shown(plan: Plan, name: str) -> str:
    """The training command as somebody in the repository would type it, into a new folder."""
    config = plan.config(name).relative_to(plan.repository)
    folder = f"output/{plan.data.benchmark}/{name}"
    opts = shlex.join([*plan.run_opts(name)[:-1], folder])
    return f"alignzeg train --config-file {config} {opts}"


def _facts(plan: Plan, cfg: CfgNode, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Settings and durations, as the report shows them."""
    train, val = (len(DatasetCatalog.get(f"{plan.data.benchmark}_{s}")) for s in ("train", "val"))
    return {
        "iterations": cfg.SOLVER.MAX_ITER,
        f"{plan.data.kind}s": f"{train} to train on, {val} to judge by",
        **plan.data.facts(),
        "seed": cfg.SEED,
        **{f"seconds, {key.replace('_', ' ')}": f"{value:.0f}" for key, value in seconds.items()},
    }


def _write_report(
    plan: Plan,
    runs: Sequence[RunResult],
    cfgs: Mapping[str, CfgNode],
    facts: dict[str, Any],
) -> Path:
    vocabulary = get_vocabulary(plan.dataset)
    predictors = {
        run.name: Predictor(
            plan.folder(run.name) / "model_final.pth",
            vocabulary.names,
            plugins=cfgs[run.name].ALIGNZEG.PLUGINS,
        )
        for run in runs
    }
    about = About(
        title=f"AlignZeg against its baseline on {plan.data.title}",
        lead=_lead(plan, vocabulary, cfgs),
        commands=plan.data.commands(),
        facts=facts,
        kind=plan.data.kind,
    )
    samples = choose_samples(plan.dataset, vocabulary, predictors)
    worst = choose_worst(plan.dataset, vocabulary, predictors, runs[-1].images)
    return write_report(plan.output / "report.html", runs, samples, vocabulary, about, worst)


def _lead(plan: Plan, vocabulary: Vocabulary, cfgs: Mapping[str, CfgNode]) -> str:
    """What was done, and what the two models have in common."""
    seen, unseen = len(vocabulary.seen_ids), len(vocabulary.unseen_ids)
    example = vocabulary.names[vocabulary.unseen_ids[0]] if unseen else ""
    kind = plan.data.kind
    solvers = [cfg.SOLVER for cfg in cfgs.values()]
    schedule = "schedule" if solvers[0] == solvers[1] else "number of steps"
    return (
        f"Both models learned from masks of {seen} classes and are asked to name "
        f"{seen + unseen}. The other {unseen}, such as “{example}”, were visible in the training "
        f"{kind}s, but without any label. {kind.capitalize()}s, {schedule}, seed and the frozen "
        f"vision-language model are the same for both. {plan.data.remark}"
    ).strip()


def results_table(runs: Sequence[RunResult]) -> Table:
    """The two rows, in percent."""
    table = Table("percent", *METRICS)
    for run in runs:
        values = (run.metrics.get(key) for key in METRICS)
        table.add_row(run.label, *("–" if v is None else f"{v:.1f}" for v in values))
    return table
