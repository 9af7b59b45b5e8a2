"""Many configs over several seeds: resumable runs, one JSON, mean and spread."""

from __future__ import annotations

import json
import logging
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignzeg.arguments import PARENT, TrainingError
from alignzeg.files import atomic_write, code_hash, file_hash

logger = logging.getLogger(__name__)

# What trains, or evaluates, one run; the words of `alignzeg train` follow.
TRAIN = (sys.executable, "-m", "alignzeg", "train")
# What a run's folder says of its identity, from its start on; "done" once it has its result.
MARKER = "ablation_run.json"
METRICS = (
    *("pAcc", "mIoU", "sIoU", "uIoU", "hIoU", "unseen_to_seen", "unseen_to_background"),
    *("AR50_seen", "AR50_unseen"),
)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what it is called in the table and on disk.
        config: YAML file.
        weights_from: name of a row whose final weights are evaluated instead of training; empty to
            train.
        starts_from: name of a row whose final weights the training starts from; empty for those of
            the config.
        opts: KEY VALUE pairs of its own, before those of the plan.
    """

    name: str
    config: Path
    weights_from: str = ""
    starts_from: str = ""
    opts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What is run, where.

    Attributes:
        rows: lines of the table; a row stands behind the row that it takes weights from.
        seeds: each row is trained once with each.
        output: folder of the runs, `<output>/<row>/seed_<seed>`.
        opts: KEY VALUE pairs for every run.
        jobs: runs at a time; the cores are shared out evenly.
        program: what trains a run; the words of `alignzeg train` follow.
    """

    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    output: Path
    opts: tuple[str, ...]
    jobs: int
    program: tuple[str, ...] = TRAIN

    def folder(self, name: str, seed: int) -> Path:
        """Where a row's run with a seed lives."""
        return self.output / name / f"seed_{seed}"


def check(plan: Plan) -> None:
    """Refuses a plan that cannot work, before anything runs.

    Raises:
        ValueError: naming the missing file, the doubled name or the unknown row.
    """
    names = [row.name for row in plan.rows]
    if not names or not plan.seeds:
        raise ValueError(
            "an ablation needs at least one config and one seed; give both --configs and --seeds"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"two configs share a name: {names}; rename one of the files")
    for index, row in enumerate(plan.rows):
        if not row.config.is_file():
            raise ValueError(
                f"no config file {row.config}; give one that exists, or run this in a checkout "
                "of the repository"
            )
        for other in filter(None, (row.weights_from, row.starts_from)):
            if other not in names[:index]:
                raise ValueError(
                    f"row {row.name!r} takes the weights of {other!r}, which is not among "
                    f"the rows before it: {names[:index]}"
                )


def run(plan: Plan) -> dict[str, Any]:
    """Does what is not done yet and summarises everything.

    A run that has its result is kept, and one that was cut off is resumed from its last checkpoint,
    if its identity is the same: KEY VALUE pairs, config, data, pretrained weights, plugins, and the
    weights that it takes from another row. The folder of a run with another identity is set aside
    as `seed_<seed>_before_<n>`, which is logged, and the run is made anew. Runs of other code are
    kept; that is logged, too.

    Returns:
        {"rows": {name: {"seeds": {seed: metrics}, "mean": {...}, "spread": {...}}}}; the spread is
        the sample standard deviation over seeds.

    Raises:
        ValueError: as `check`.
        TrainingError: if a run fails; the message holds the end of its log. Other runs are kept.
    """
    check(plan)
    # Rows that take weights wait for those that they take them from, chains of them in order.
    depths: dict[str, int] = {}
    for row in plan.rows:
        sources = [depths[name] for name in (row.weights_from, row.starts_from) if name]
        depths[row.name] = 1 + max(sources, default=-1)
    for depth in sorted(set(depths.values())):
        group = [row for row in plan.rows if depths[row.name] == depth]
        # Seed by seed, so that a first column of the table is complete early.
        _run_all(plan, [(row, seed) for seed in plan.seeds for row in group])
    _warn_of_code(plan)
    rows = {row.name: _row_summary(plan, row) for row in plan.rows}
    summary = {"seeds": list(plan.seeds), "opts": list(plan.opts), "rows": rows}
    atomic_write(plan.output / "ablation.json", json.dumps(summary, indent=1))
    return summary


def _run_all(plan: Plan, todo: Sequence[tuple[Row, int]]) -> None:
    """Does the runs, `plan.jobs` at a time; an interruption asks those at work to save and end."""
    processes: set[subprocess.Popen] = set()
    with ThreadPoolExecutor(plan.jobs) as pool:
        try:
            list(pool.map(lambda pair: _run_one(plan, pair[0], pair[1], processes), todo))
        except KeyboardInterrupt:
            for process in list(processes):
                process.terminate()
            raise


def _words(plan: Plan, row: Row, seed: int) -> list[str]:
    """What follows `alignzeg train` for a run."""
    command = ["--config-file", str(row.config)]
    command.append("--eval-only" if row.weights_from else "--resume")
    other = row.weights_from or row.starts_from
    if other:
        command += ["MODEL.WEIGHTS", str(plan.folder(other, seed) / "model_final.pth")]
    command += [*row.opts, *plan.opts, "SEED", str(seed)]
    return [*command, "OUTPUT_DIR", str(plan.folder(row.name, seed))]


def _identity(plan: Plan, row: Row, seed: int) -> dict[str, str]:
    """All that the figures of a run follow from but the code; rows that it builds on are done."""
    # Reads data sets and weights, which a help text needs not.
    from alignzeg.studies.identity import described

    opts = [*row.opts, *plan.opts, "SEED", str(seed)]
    parts = described(row.config, opts)
    for what, other in (("weights_from", row.weights_from), ("starts_from", row.starts_from)):
        if other:
            parts[what] = file_hash(plan.folder(other, seed) / "model_final.pth")
    return parts


def _read_marker(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _set_aside(folder: Path, changed: Sequence[str]) -> None:
    number = 1
    while (aside := folder.with_name(f"{folder.name}_before_{number}")).exists():
        number += 1
    folder.rename(aside)
    why = f"another {', '.join(changed)}" if changed else "no word of what it was made of"
    logger.warning("%s has %s: set aside as %s, made anew", folder, why, aside.name)


def _warn_of_code(plan: Plan) -> None:
    now = code_hash()
    folders = [plan.folder(row.name, seed) for row in plan.rows for seed in plan.seeds]
    others = [folder for folder in folders if _read_marker(folder).get("code") != now]
    if others:
        logger.warning(
            "%d of %d runs were made by other code of alignzeg than today's, such as %s; delete "
            "their folders to make them anew",
            *(len(others), len(folders), others[0]),
        )


def _run_one(plan: Plan, row: Row, seed: int, processes: set[subprocess.Popen]) -> None:
    folder, identity = plan.folder(row.name, seed), _identity(plan, row, seed)
    marker = _read_marker(folder)
    before = marker.get("identity", {})
    if before == identity and marker.get("done"):
        logger.info("%s, seed %d: kept", row.name, seed)
        return
    if before != identity and folder.is_dir() and any(folder.iterdir()):
        keys = sorted(identity.keys() | before.keys()) if before else []
        _set_aside(folder, [key for key in keys if identity.get(key) != before.get(key)])
        marker = {}
    folder.mkdir(parents=True, exist_ok=True)
    # A run that goes on with other code is one of the code that it began with.
    content = {"identity": identity, "code": marker.get("code", code_hash()), "done": False}
    atomic_write(folder / MARKER, json.dumps(content, indent=1))
    words = _words(plan, row, seed)
    logger.info("%s, seed %d: running, log in %s", row.name, seed, folder / "ablation_log.txt")
    threads = str(max((os.cpu_count() or 1) // plan.jobs, 1))
    with open(folder / "ablation_log.txt", "a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*plan.program, *words],
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C reaches this process alone, which then asks that one to save.
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": threads, PARENT: str(os.getpid())},
        )
        processes.add(process)
        code = process.wait()
        processes.discard(process)
    if code:
        tail = (folder / "ablation_log.txt").read_text("utf-8", "replace")[-2000:]
        raise TrainingError(f"{row.name} with seed {seed} failed with exit code {code}:\n{tail}")
    atomic_write(folder / MARKER, json.dumps(content | {"done": True}, indent=1))


def read_metrics(folder: Path) -> dict[str, float]:
    """The metrics of a run's last evaluation, in percent by name.

    Raises:
        ValueError: if the run has no evaluation, or evaluated several data sets.
    """
    files = sorted((folder / "inference").glob("evaluation_*.json"))
    if len(files) != 1:
        raise ValueError(
            f"{folder / 'inference'} holds {len(files)} evaluations and the table needs one; "
            "give DATASETS.TEST one data set, and delete the folder of a run that was cut off"
        )
    metrics = json.loads(files[0].read_text(encoding="utf-8"))["metrics"]
    return {name: metrics[name] for name in METRICS if metrics.get(name) is not None}


def _row_summary(plan: Plan, row: Row) -> dict[str, Any]:
    seeds = {seed: read_metrics(plan.folder(row.name, seed)) for seed in plan.seeds}
    values = {name: [m[name] for m in seeds.values() if name in m] for name in METRICS}
    return {
        "config": str(row.config),
        "seeds": seeds,
        "mean": {name: statistics.fmean(v) for name, v in values.items() if v},
        "spread": {name: statistics.stdev(v) for name, v in values.items() if len(v) > 1},
    }


def table(summary: dict[str, Any], metrics: Sequence[str] = METRICS) -> str:
    """The summary as a Markdown table, mean ± spread in percent."""
    lines = ["| row | " + " | ".join(metrics) + " |", "|--" * (len(metrics) + 1) + "|"]
    for name, row in summary["rows"].items():
        cells = []
        for metric in metrics:
            mean, spread = row["mean"].get(metric), row["spread"].get(metric)
            cell = "" if mean is None else f"{mean:.1f}"
            cells.append(cell if spread is None else f"{cell} ± {spread:.1f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
