"""The page of results, made of what was measured, and what the machine is."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bench.measure import DISTURBED, OTHER_CORES, Row

PACKAGES = ("torch", "torchvision", "transformers", "sal-detectron2", "open-clip-torch", "numpy")
HEAD = """# Benchmarks

`make bench` measures the path from files to the confusion matrix beside what people would use
instead, in the same run, and writes this page and `output/bench/results.json`.
A ratio is that of medians of runs in turns: above 1 ours is faster, or takes less memory.
"Pinned" tells glibc to keep freed memory, on both sides, as training does here; "default" gives
large buffers back to the system after every use.
Each OpenMP thread is bound to a core (`OMP_PROC_BIND`), on both sides, but in the rows `loader`
and `processes`.
Many small operations, such as those of matching, can still take twice as long from one moment to
the next, where two threads wait for each other.
Rows without a goal inform. Weights are random: nothing here is about accuracy.

The peers are transformers' MaskFormer and Mask2Former built from a config, Detectron2's mapper,
evaluator and SemanticSegmentor, and usual algorithms written plainly in `dev/bench`.
Where answers must be equal, the benchmark compares them before it measures, and fails otherwise.
"""


def machine() -> dict[str, Any]:
    """Processor, memory, threads and versions."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not a package"
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def disturbed(found: Mapping[str, Any]) -> str:
    """What speaks for other load while the rows were measured; empty if nothing does."""
    if not found:
        return ""
    before, after = found["loop_ms"]
    said = []
    if max(before, after) > DISTURBED * min(before, after):
        said.append(f"a fixed loop took {before} ms before and {after} ms after")
    if found["other_cores"] > OTHER_CORES:
        said.append(f"other processes kept {found['other_cores']} cores busy")
    return "; ".join(said)


def render(report: Mapping[str, Any], rows: Mapping[str, Row]) -> str:
    """The page.

    Args:
        report: "rows" as in results.json, "machine" and "disturbance".
        rows: every row; one without a result is said to be not measured.
    """
    lines = [HEAD]
    about = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines.append(
        f"Machine: {about['processor']}, {about['cores']} cores, {about['threads']} threads, "
        f"{about['memory_gib']} GiB; {about['system']}, Python {about['python']}; {versions}.\n"
    )
    noise = disturbed(report["disturbance"])
    if noise:
        lines.append(f"**Disturbed by other load: {noise}.** Ratios are less certain.\n")
    lines += ["| row | what | ratio | goal | ours | peer | default |", "|--|--|--|--|--|--|--|"]
    notes = []
    for name, row in rows.items():
        found = report["rows"].get(name, {"error": "not measured"})
        lines.append(_line(name, row, found))
        if found.get("note"):
            notes.append(f"- {name}: {found['note']}.")
    return "\n".join([*lines, "", "What the rows said about their answers:", "", *notes, ""])


def _line(name: str, row: Row, found: Mapping[str, Any]) -> str:
    goal = f"{row.goal:.2g}" if row.goal else ""
    if "error" in found:
        return f"| {name} | {row.what} | {found['error'][:60]} | {goal} | | | |"
    default = found.get("default", {})
    beside = f"{default['ratio']:.2f}x" if "ratio" in default else ""
    ratio = f"{found['ratio']:.2f}x"
    if row.goal:
        ratio = f"**{ratio}**" if found["ratio"] >= found["goal"] else f"{ratio} (below)"
    return (
        f"| {name} | {row.what} | {ratio} | {goal} | {found['ours']:.4g} {row.unit} | "
        f"{found['peer']:.4g} {row.unit} | {beside} |"
    )
