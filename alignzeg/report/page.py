"""The page that holds the sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from alignzeg.files import atomic_write
from alignzeg.report import sections
from alignzeg.report.confusions import pair_table
from alignzeg.report.runs import RunResult, Sample
from alignzeg.structures import Vocabulary


@dataclass(frozen=True)
class About:
    """What a report says beside the numbers.

    Attributes:
        title: the headline.
        lead: one or two sentences on what was done.
        commands: what makes the report again, before the runs' own commands.
        facts: settings and durations, name -> value.
        kind: what one of the images is called.
    """

    title: str
    lead: str
    commands: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "image"


def write_report(
    path: str | Path,
    runs: Sequence[RunResult],
    samples: Sequence[Sample],
    vocabulary: Vocabulary,
    about: About,
    worst: Sequence[Sample] = (),
) -> Path:
    """Writes one HTML file that needs nothing else: no network, no script, no other file.

    The first of the runs is what the others are compared with. `worst` are images that the last run
    names worst, the worst first.

    Raises:
        ValueError: if there is no run, or there are more than four.
    """
    if not 1 <= len(runs) <= 4:
        raise ValueError(f"a report shows one to four runs; got {len(runs)}")
    path = Path(path)
    atomic_write(path, render(runs, samples, vocabulary, about, worst))
    return path


def render(
    runs: Sequence[RunResult],
    samples: Sequence[Sample],
    vocabulary: Vocabulary,
    about: About,
    worst: Sequence[Sample] = (),
) -> str:
    """The page as text."""
    style = (resources.files("alignzeg") / "assets" / "report.css").read_text(encoding="utf-8")
    protocol = runs[-1].protocol
    body = "".join(
        [
            sections.section(
                "Result",
                _protocol_note(protocol, about.kind),
                sections.headline(runs) + _chance_note(runs),
            ),
            sections.section(
                "What it looks like",
                f"Validation {escape(about.kind)}s. Orange marks classes that had no mask in "
                "training. What the truth leaves unlabelled is not scored; the models name it all "
                "the same.",
                sections.samples_grid(samples, runs, vocabulary, about.kind),
            ),
            sections.section(
                "Worst images",
                f"Where {escape(runs[-1].label)} names the smallest share of the labelled pixels "
                "right.",
                sections.samples_grid(worst, runs, vocabulary, about.kind),
            ),
            sections.section(
                "Over training",
                "hIoU of the periodic evaluations, in percent.",
                sections.harmonic_chart(runs),
            ),
            sections.section(
                "Does the model still find what it was not taught?",
                "Share of segments, whatever their class, that some proposed mask covers with an "
                "IoU of at least 0.5, over training, in percent. Training rewards masks of seen "
                "classes only; a falling solid line is a model that forgets the unseen ones.",
                sections.recall_chart(runs),
            ),
            sections.section(
                "Seen and unseen mixed up",
                "Of the pixels of each kind of class, the share that was called either kind.",
                sections.confusions(runs),
            ),
            sections.section(
                "What is taken for what",
                "The pairs of classes that cost most pixels; percent of the true class's pixels.",
                _with_keys(runs, pair_table(runs)),
            ),
            sections.section(
                "Bias audit",
                "The bias towards seen classes in figures. The difference is green where the "
                "change is for the better.",
                sections.audit(runs),
            ),
            sections.section(
                "Class by class",
                "IoU in percent. Unseen classes first.",
                sections.class_bars(runs),
            ),
            sections.section(
                "Training losses",
                "Each term as it was logged, with its weight; of the masks, the final layer.",
                sections.loss_charts(runs),
            ),
            sections.section(
                "How to do it again",
                "Settings, durations and commands.",
                _settings(runs, about),
            ),
        ]
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(about.title)}</title><style>{style}</style></head><body>"
        f'<header><h1>{escape(about.title)}</h1><p class="lead">{escape(about.lead)}</p>'
        f"{sections.heroes(runs)}</header><main>{body}</main>"
        "<footer>Written by alignzeg. This file is complete in itself.</footer></body></html>\n"
    )


def _with_keys(runs: Sequence[RunResult], body: str) -> str:
    return sections.keys(runs) + body if body else ""


def _protocol_note(protocol: Mapping[str, Any], kind: str) -> str:
    if not protocol:
        return "In percent."
    parts = [
        f"{protocol.get('images', '?')} {kind}s of {protocol.get('dataset', '?')}, "
        f"{protocol.get('seen', '?')} seen and {protocol.get('unseen', '?')} unseen classes",
        *([str(protocol["setting"])] if protocol.get("setting") else []),
        *([f"the background is {protocol['background']}"] if protocol.get("background") else []),
    ]
    return escape("In percent. " + "; ".join(parts) + ".")


def _chance_note(runs: Sequence[RunResult]) -> str:
    """How far chance would move the figures: over images as intervals, over seeds in words."""
    rows = []
    for run in runs:
        spans = [
            f"{key} {run.intervals[key][0]:.1f} to {run.intervals[key][1]:.1f}"
            for key in sections.HEADLINE
            if key in run.intervals
        ]
        if spans:
            rows.append(f"{escape(run.label)}: {', '.join(spans)}.")
    over_images = (
        f"95 % intervals over the images: {' '.join(rows)}"
        if rows
        else "For intervals over the images evaluate with ALIGNZEG.TEST.SAVE_PER_IMAGE True."
    )
    return (
        '<p class="note">One seed for each run. Other seeds move these figures, by about a point '
        "on drawn scenes and by several points on few photographs; other processors by about a "
        f"point. A smaller difference says nothing. {over_images}</p>"
    )


def _settings(runs: Sequence[RunResult], about: About) -> str:
    """What was run and how, to do it again."""
    rows = "".join(
        f"<dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd>"
        for key, value in about.facts.items()
    )
    lines = "\n".join([*about.commands, *(run.command for run in runs if run.command)])
    block = f"<h3>Commands</h3><pre>{escape(lines)}</pre>" if lines else ""
    details = "".join(
        f"<details><summary>Whole config: {escape(run.label)}</summary>"
        f"<pre>{escape(run.config)}</pre></details>"
        for run in runs
        if run.config
    )
    facts_list = f"<dl>{rows}</dl>" if rows else ""
    return facts_list + block + details
