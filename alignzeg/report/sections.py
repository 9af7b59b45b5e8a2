"""The sections of the report, each a function from data to HTML; empty text where data lack."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from alignzeg.colors import UNNAMED_COLOR, class_colors
from alignzeg.report.charts import Series, line_chart
from alignzeg.report.runs import RunResult, Sample
from alignzeg.structures import Vocabulary
from alignzeg.visualize import colorize, png_data_uri

HEADLINE = ("pAcc", "mIoU", "sIoU", "uIoU", "hIoU")
MEANING = {
    "pAcc": "share of labelled pixels that got the right name.",
    "mIoU": "overlap of answer and truth (intersection over union), averaged over all classes.",
    "sIoU": "the same, over the classes that had masks in training.",
    "uIoU": "the same, over the unseen classes: no mask of them was ever shown.",
    "hIoU": "harmonic mean of sIoU and uIoU: high only where both are.",
}
_LOSS_TITLES = {
    "total_loss": "total",
    "loss_mask": "mask, per pixel",
    "loss_dice": "mask, overlap (dice)",
    "loss_class": "classification",
    "loss_synthetic": "synthetic features",
    "loss_diversity": "background diversity",
    "loss_indicator": "unseen indicator",
}
_AUDIT = (
    ("unseen_to_seen", "unseen pixels called a seen class", True),
    ("seen_to_unseen", "seen pixels called an unseen class", True),
    ("unseen_to_unseen_wrong", "unseen pixels called a wrong unseen class", True),
    ("AR50_seen", "seen segments found by a mask (IoU ≥ 0.5)", False),
    ("AR50_unseen", "unseen segments found by a mask (IoU ≥ 0.5)", False),
    ("AR75_seen", "seen segments found by a mask (IoU ≥ 0.75)", False),
    ("AR75_unseen", "unseen segments found by a mask (IoU ≥ 0.75)", False),
)


def number(value: float | None) -> str:
    """A figure in percent with one digit; a dash where it is not defined."""
    return "–" if value is None else f"{value:.1f}"


def section(title: str, note: str, body: str) -> str:
    """A titled card; nothing if the body is empty."""
    if not body:
        return ""
    return f'<section><h2>{escape(title)}</h2><p class="note">{note}</p>{body}</section>'


def keys(runs: Sequence[RunResult]) -> str:
    """Which colour is which run."""
    parts = [
        f'<span><span class="key run{i}"></span>{escape(run.label)}</span>'
        for i, run in enumerate(runs)
    ]
    return f'<div class="keys">{"".join(parts)}</div>'


def heroes(runs: Sequence[RunResult]) -> str:
    """The three figures that matter, large."""
    first, last = runs[0], runs[-1]
    what = {"hIoU": "hIoU, both together", "uIoU": "uIoU, unseen", "sIoU": "sIoU, seen"}
    parts = []
    for key, text in what.items():
        before, after = first.metrics.get(key), last.metrics.get(key)
        parts.append(
            f'<div class="hero"><div class="what">{text}</div>'
            f'<div class="value">{number(after)}</div>'
            f'<div class="from">{escape(first.label)} {number(before)} {delta(before, after)}</div>'
            "</div>"
        )
    return f'<div class="heroes">{"".join(parts)}</div>'


def delta(before: float | None, after: float | None, lower_is_better: bool = False) -> str:
    """A signed difference, coloured by whether it is good."""
    if before is None or after is None:
        return ""
    change = round(after - before, 1)
    style = "" if not change else "up" if (change > 0) != lower_is_better else "down"
    sign = "+" if change > 0 else "−" if change < 0 else "±"
    return f'<span class="delta {style}">{sign}{abs(change):.1f}</span>'


def headline(runs: Sequence[RunResult]) -> str:
    """The table of runs with the difference to the first, and what each column means."""
    head = "".join(f"<th>{key}</th>" for key in HEADLINE)
    rows = []
    for i, run in enumerate(runs):
        cells = "".join(f"<td>{number(run.metrics.get(key))}</td>" for key in HEADLINE)
        label = f'<span class="key run{i}"></span>{escape(run.label)}'
        rows.append(f"<tr><th>{label}</th>{cells}</tr>")
    for run in runs[1:]:
        cells = "".join(
            f"<td>{delta(runs[0].metrics.get(key), run.metrics.get(key))}</td>" for key in HEADLINE
        )
        name = "difference" if len(runs) == 2 else f"{run.label}, difference"
        rows.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    meaning = "".join(f"<dt>{key}</dt><dd>{text}</dd>" for key, text in MEANING.items())
    return (
        f'<div class="scroll"><table class="big"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div><dl>{meaning}</dl>"
    )


def recall_chart(runs: Sequence[RunResult]) -> str:
    """Class-agnostic recall over training; nothing where no run has two evaluations.

    Lone points do not say which of them is that of the seen segments.
    """
    series, legend = [], []
    for i, run in enumerate(runs):
        for group, style in (("seen", f"run{i} dashed"), ("unseen", f"run{i}")):
            points = run.evaluations.get(f"AR50_{group}", [])
            label = f"{run.label}, {group}"
            series.append(Series(label, style, points))
            if points:
                dashes = 'class="dashed"' if group == "seen" else ""
                legend.append(f'<span class="run{i}"><i {dashes}></i>{escape(label)}</span>')
    if max((len(line.points) for line in series), default=0) < 2:
        return ""
    top = 100.0
    lowest = min((y for line in series for _, y in line.points), default=0)
    low = 50.0 if lowest >= 50 else 0.0
    chart = line_chart(series, "Recall of masks over training", "iteration", (low, top), True)
    if not chart:
        return ""
    return (
        f'<div class="charts wide"><figure>{chart}</figure></div>'
        f'<div class="keys">{"".join(legend)}</div>'
    )


def harmonic_chart(runs: Sequence[RunResult]) -> str:
    """The hIoU of the periodic evaluations; nothing where no run has two of them."""
    lines = [
        Series(run.label, f"run{i}", run.evaluations.get("hIoU", [])) for i, run in enumerate(runs)
    ]
    if max((len(line.points) for line in lines), default=0) < 2:
        return ""
    chart = line_chart(lines, "hIoU over training", marks=True)
    return keys(runs) + f'<div class="charts wide"><figure>{chart}</figure></div>'


def loss_charts(runs: Sequence[RunResult]) -> str:
    """One small chart per loss term."""
    names = list(dict.fromkeys(name for run in runs for name in run.losses))
    order = [*_LOSS_TITLES, *sorted(set(names) - set(_LOSS_TITLES))]
    figures = []
    for name in order:
        series = [
            Series(run.label, f"run{i}", thinned(run.losses.get(name, [])))
            for i, run in enumerate(runs)
        ]
        title = _LOSS_TITLES.get(name, name)
        chart = line_chart(series, f"Loss: {title}")
        if chart:
            figures.append(f"<figure><h3>{escape(title)}</h3>{chart}</figure>")
    if not figures:
        return ""
    return keys(runs) + f'<div class="charts">{"".join(figures)}</div>'


def thinned(points: Sequence[tuple[int, float]], limit: int = 120) -> list[tuple[float, float]]:
    """Means of neighbouring points, so that a long run does not make a large file."""
    step = -(-len(points) // limit)
    if step <= 1:
        return [(float(x), y) for x, y in points]
    groups = [points[i : i + step] for i in range(0, len(points), step)]
    return [
        (float(np.mean([x for x, _ in group])), float(np.mean([y for _, y in group])))
        for group in groups
    ]


def class_bars(runs: Sequence[RunResult]) -> str:
    """IoU of every class, unseen ones first, then by the last run's figure."""
    tables = [{row["name"]: row for row in run.classes} for run in runs]
    if not tables or not tables[-1]:
        return ""
    rows = [row for row in tables[-1].values() if row.get("IoU") is not None]
    rows.sort(key=lambda row: (row["seen"], -row["IoU"]))
    parts = []
    for row in rows:
        tag = "" if row["seen"] else ' <span class="tag">unseen</span>'
        lines = []
        for i, table in enumerate(tables):
            value = table.get(row["name"], {}).get("IoU")
            lines.append(
                f'<div class="track"><div class="bar run{i}" style="width:{value or 0:.1f}%"></div>'
                f'</div><div class="figure">{number(value)}</div>'
            )
        span = f'style="grid-row: 1 / span {len(runs)}"'
        parts.append(
            f'<div class="class"><div class="name" {span}>{escape(row["name"])}{tag}</div>'
            f"{''.join(lines)}</div>"
        )
    return keys(runs) + f'<div class="bars">{"".join(parts)}</div>'


def confusions(runs: Sequence[RunResult]) -> str:
    """Seen/unseen confusion of every run, as shares of the true pixels."""
    parts = [_confusion(i, run) for i, run in enumerate(runs) if run.groups]
    return f'<div class="pair">{"".join(parts)}</div>' if parts else ""


def _confusion(index: int, run: RunResult) -> str:
    columns = ["seen", "unseen"]
    if any(group.get("rejected") for group in run.groups.values()):
        columns.append("rejected")
    rows = []
    for true in ("seen", "unseen"):
        counts = run.groups.get(true, {})
        total = sum(counts.values())
        cells = []
        for column in columns:
            share = counts.get(column, 0) / total if total else 0.0
            color = "--heat" if column == true else "--wrong"
            cells.append(
                f'<td style="background: rgba(var({color}), {0.06 + 0.4 * share:.2f})">'
                f"{100 * share:.1f} %</td>"
            )
        rows.append(f"<tr><th>{true}</th>{''.join(cells)}</tr>")
    head = "".join(f"<th>called {column}</th>" for column in columns)
    return (
        f'<div><h3><span class="key run{index}"></span>{escape(run.label)}</h3>'
        f'<table class="matrix"><thead><tr><th>truth</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def audit(runs: Sequence[RunResult]) -> str:
    """The bias audit of every run with differences."""
    rows = []
    for key, text, lower_is_better in _AUDIT:
        values = [run.metrics.get(key) for run in runs]
        if all(value is None for value in values):
            continue
        cells = "".join(f"<td>{number(value)}</td>" for value in values)
        change = delta(values[0], values[-1], lower_is_better) if len(runs) > 1 else ""
        rows.append(f"<tr><td>{text}</td>{cells}<td>{change}</td></tr>")
    if not rows:
        return ""
    head = "".join(f"<th>{escape(run.label)}</th>" for run in runs)
    return (
        f'<div class="scroll"><table><thead><tr><th>percent</th>{head}<th></th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def samples_grid(
    samples: Sequence[Sample], runs: Sequence[RunResult], vocabulary: Vocabulary, kind: str
) -> str:
    """Image (a `kind`), truth and every run's answer, with a legend of the classes in sight."""
    colors = class_colors(vocabulary.names)
    parts = []
    for sample in samples:
        tiles = [(kind, sample.image), ("truth", colorize(sample.truth, colors))]
        maps = [sample.truth]
        for run in runs:
            if run.name in sample.predictions:
                labels = sample.predictions[run.name]
                maps.append(labels)
                tiles.append((run.label, colorize(labels, colors)))
        figures = "".join(
            f"<figure><figcaption>{escape(title)}</figcaption>"
            f'<img alt="{escape(f"{sample.name}: {title}")}" src="{png_data_uri(pixels)}"></figure>'
            for title, pixels in tiles
        )
        chips = _chips(maps, vocabulary)
        note = f'<p class="note">{escape(sample.note)}</p>' if sample.note else ""
        parts.append(f'<div class="sample">{note}<div class="tiles">{figures}</div>{chips}</div>')
    return "".join(parts)


def _chips(maps: Sequence[np.ndarray], vocabulary: Vocabulary) -> str:
    colors = class_colors(vocabulary.names)
    present = np.unique(np.concatenate([labels.ravel() for labels in maps]))
    chips = []
    for i in (int(value) for value in present if value < len(vocabulary)):
        tag = "" if vocabulary.seen[i] else ' <span class="tag">unseen</span>'
        swatch = "#{:02x}{:02x}{:02x}".format(*colors[i])
        chips.append(f'<b style="--swatch:{swatch}">{escape(vocabulary.names[i])}{tag}</b>')
    if len(present) and present[-1] >= len(vocabulary):
        swatch = "#{:02x}{:02x}{:02x}".format(*UNNAMED_COLOR)
        chips.append(f'<b style="--swatch:{swatch}">unlabelled</b>')
    return f'<div class="chips">{"".join(chips)}</div>'
