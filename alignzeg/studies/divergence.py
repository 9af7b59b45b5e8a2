"""The first thing in which two runs differ."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from alignzeg.config.values import flatten
from alignzeg.engine.records.provenance import FILE_NAME, read_history
from alignzeg.engine.training.hooks import CURVE_FILE

# Where results go and what is kept for speed changes no number; plugins and weights are compared
# by their content, not by their path.
IGNORED_KEYS = frozenset(
    {"OUTPUT_DIR", "ALIGNZEG.VLM.CACHE_DIR", "ALIGNZEG.PLUGINS", "MODEL.WEIGHTS"}
)


@dataclass(frozen=True)
class Part:
    """One part of the comparison.

    Attributes:
        name: config, environment, VLM, data or losses.
        detail: what was compared, or why nothing was.
        differences: one line each, the first first; empty if equal.
        known: whether both runs recorded it.
    """

    name: str
    detail: str
    differences: tuple[str, ...] = ()
    known: bool = True

    def line(self) -> str:
        """The result on one line."""
        result = "differs" if self.differences else "equal" if self.known else "unknown"
        return f"{result:8} {self.name:12} {self.detail}"


def read_entries(folder: str) -> list[dict[str, Any]]:
    """The entries of a run's last training (or evaluation); from `config.yaml` for want of better.

    Raises:
        ValueError: if the folder is none of a run.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(f"{folder!r} is not a folder; give the OUTPUT_DIR of a run")
    history = read_history(path)
    entries = last_training(history) or history[-1:]
    if entries:
        return entries
    config = path / "config.yaml"
    if config.is_file():
        try:
            loaded = yaml.safe_load(config.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ValueError(f"cannot read {config}: {' '.join(str(error).split())}") from error
        return [{"config": loaded if isinstance(loaded, dict) else {}}]
    if find_curve(path) is not None:
        return [{}]
    raise ValueError(
        f"{folder!r} holds no {FILE_NAME}, config.yaml, {CURVE_FILE} or metrics.json; give the "
        "OUTPUT_DIR of a run"
    )


def find_curve(folder: Path) -> Path | None:
    """The exact losses, or Detectron2's smoothed ones, or None."""
    files = (folder / CURVE_FILE, folder / "metrics.json")
    return next((file for file in files if file.is_file()), None)


def flat(value: Any) -> dict[str, Any]:
    """A nested dict with dotted keys; a missing one is empty."""
    return dict(flatten(value)) if isinstance(value, Mapping) else {}


def settings_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The config of an entry without what cannot change a number, and its seed."""
    found = {k: v for k, v in flat(entry.get("config")).items() if k not in IGNORED_KEYS}
    if not found:
        return {}
    weights = entry.get("weights")
    if isinstance(weights, Mapping):
        found["MODEL.WEIGHTS"] = weights.get("sha256") or weights.get("path")
    found |= {f"plugin {k}": v for k, v in flat(entry.get("plugins")).items()}
    if "processes" in entry:
        found["processes"] = entry["processes"]
    return found


def environment_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Versions, hardware and source of an entry."""
    found = flat({"": entry.get("environment"), "git": entry.get("git")})
    found = {key.lstrip("."): value for key, value in found.items() if value is not None}
    return found | ({"source": entry["source"]} if "source" in entry else {})


PARTS: tuple[tuple[str, Callable[[Mapping[str, Any]], dict[str, Any]]], ...] = (
    ("config", settings_of),
    ("environment", environment_of),
    ("VLM", lambda entry: flat(entry.get("vlm"))),
    ("data", lambda entry: flat(entry.get("data"))),
)


def differences(
    here: Mapping[str, Any],
    there: Mapping[str, Any],
    labels: tuple[str, str] = ("here", "in the reference"),
) -> Iterator[str]:
    """What two flat dicts differ in, one line each."""
    for key in dict.fromkeys([*here, *there]):
        if key in here and key in there and here[key] == there[key]:
            continue
        values = [repr(side[key]) if key in side else "missing" for side in (here, there)]
        yield f"{key} is {values[0]} {labels[0]} and {values[1]} {labels[1]}"


def compare_part(
    name: str,
    read: Callable[[Mapping[str, Any]], dict[str, Any]],
    ours: Sequence[dict[str, Any]],
    theirs: Sequence[dict[str, Any]],
) -> Part:
    """Compares one part of where two trainings started, then of every resume."""
    here, there = read(ours[0]), read(theirs[0])
    if any("command" not in entries[0] for entries in (ours, theirs)):
        # A run from before there was a provenance has its config.yaml, and nothing beside it.
        here, there = ({k: v for k, v in side.items() if k.isupper()} for side in (here, there))
    if not here or not there:
        return Part(name, f"not recorded in {'REFERENCE' if here else 'RUN'}", known=False)
    found = list(differences(here, there))
    for owner, entries, start in (("RUN", ours, here), ("REFERENCE", theirs, there)):
        for entry in entries[1:]:
            labels = (f"since {owner} was resumed at iteration {entry.get('iteration')}", "before")
            found += differences(read(entry), start, labels)
    return Part(name, f"{len(here)} values", tuple(found))


def compare_losses(run: Path, reference: Path, tolerance: float) -> Part:
    """Finds the first iteration at which a loss term differs.

    Of the terms that differ there, the one named first is a part of the loss rather than the sum.
    """
    files = find_curve(run), find_curve(reference)
    if None in files:
        return Part(
            "losses", f"not recorded in {'RUN' if files[0] is None else 'REFERENCE'}", known=False
        )
    if {file.name for file in files if file} == {CURVE_FILE, "metrics.json"}:
        # The one holds exact values, the other medians over 20 iterations.
        files = run / "metrics.json", reference / "metrics.json"
        if not all(file.is_file() for file in files):
            return Part("losses", f"only one of them has {CURVE_FILE}", known=False)
    here, there = (read_curve(file) for file in files if file is not None)
    common = sorted(here.keys() & there.keys())
    if not common:
        return Part("losses", "no iteration in common", known=False)
    ends = max(here), max(there)
    detail = f"{len(common)} iterations up to {common[-1]}" + (
        f"; RUN ends at {ends[0]}, REFERENCE at {ends[1]}" if ends[0] != ends[1] else ""
    )
    for iteration in common:
        ours, theirs = here[iteration], there[iteration]
        names = sorted(ours.keys() | theirs.keys(), key=lambda name: (name == "total_loss", name))
        found = [
            f"iteration {iteration}: {name} is {ours.get(name)!r} here and {theirs.get(name)!r} "
            "in the reference"
            for name in names
            if not _close(ours.get(name), theirs.get(name), tolerance)
        ]
        if found:
            return Part("losses", detail, tuple(found))
    return Part("losses", detail)


def _close(first: float | None, second: float | None, tolerance: float) -> bool:
    if first is None or second is None:
        return first is second
    if math.isnan(first) or math.isnan(second):
        return math.isnan(first) and math.isnan(second)
    return first == second or math.isclose(first, second, rel_tol=tolerance)


def compare_runs(run: str, reference: str, tolerance: float = 0.0) -> list[Part]:
    """Compares two runs, part by part, in the order in which one causes the next.

    Raises:
        ValueError: if one of the folders is none of a run, if there is nothing that both have
            recorded, or if the tolerance is not in [0, 1).
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"--tolerance is {tolerance}; it must be in [0, 1), such as 1e-5")
    ours, theirs = read_entries(run), read_entries(reference)
    parts = [compare_part(name, read, ours, theirs) for name, read in PARTS]
    parts.append(compare_losses(Path(run), Path(reference), tolerance))
    if not any(part.known for part in parts):
        raise ValueError(f"{run!r} and {reference!r} have recorded nothing that can be compared")
    return parts


def read_curve(path: str | Path) -> dict[int, dict[str, float]]:
    """The losses of a run by iteration, from `losses.jsonl` or Detectron2's `metrics.json`.

    Where a run was resumed or started anew, the older lines from that iteration on do not count.
    Lines that a kill has cut short are left out.

    Raises:
        ValueError: if the file cannot be read.
    """
    curve: dict[int, dict[str, float]] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8-sig", errors="replace").splitlines()
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


def last_training(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries of the last training: where it was started, and every time it was resumed."""
    trained = [entry for entry in history if entry.get("action") == "train"]
    starts = [index for index, entry in enumerate(trained) if not entry.get("resumed")]
    return trained[starts[-1] :] if starts else trained
