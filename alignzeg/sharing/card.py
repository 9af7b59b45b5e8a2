"""The model card, a README.md: from a checkpoint's config and the JSON of its evaluations."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

logger = logging.getLogger(__name__)

# Figures of the table, in this order, where an evaluation has them.
_FIGURES = ("pAcc", "mIoU", "sIoU", "uIoU", "hIoU")
_BIAS = ("unseen_to_seen", "unseen→seen")
_PROTOCOL = ("setting", "background", "denominator")
_TAGS = ("zero-shot", "semantic-segmentation", "alignzeg", "detectron2")


@dataclass(frozen=True)
class Evaluation:
    """One evaluation, as its JSON has it.

    Attributes:
        dataset: registered name of the test set.
        metrics: figures in percent; None where a group of classes has no pixel.
        classes: rows with "name", "seen" and "IoU".
        protocol: what was evaluated.
        settings: keys of inference whose values are others than the model's, as "KEY VALUE".
    """

    dataset: str
    metrics: Mapping[str, float | None]
    classes: Sequence[Mapping[str, Any]]
    protocol: Mapping[str, Any]
    settings: Sequence[str] = ()

    @property
    def names(self) -> list[str]:
        """The classes that were asked for."""
        return [str(row["name"]) for row in self.classes]


def read_evaluation(
    path: str | Path, seen: Sequence[str], weights: str, config: Mapping[str, Any]
) -> Evaluation:
    """Reads an `evaluation_<data set>.json` of a model.

    Args:
        path: the file.
        seen: the classes that the model was trained on.
        weights: the hash of its weights, see `weights_hash`.
        config: its config.

    Raises:
        ValueError: if the file is missing or no evaluation, or is that of other weights or of a
            model trained on other classes.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        # Evaluations of an older version do not say what they are of.
        made_by = content.get("made_by") or {"weights": None, "settings": {}}
        result = Evaluation(
            str(content["protocol"]["dataset"]),
            dict(content["metrics"]),
            [
                {"name": row["name"], "seen": row["seen"], "IoU": row["IoU"]}
                for row in content["classes"]
            ],
            dict(content["protocol"]),
            _other_settings(made_by["settings"], config),
        )
    except OSError as error:
        raise ValueError(
            f"the evaluation {str(path)!r} cannot be read: {error.strerror or error}"
        ) from error
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{str(path)!r} is no evaluation of alignzeg; give an evaluation_<data set>.json of "
            "OUTPUT_DIR/inference"
        ) from error
    strange = {row["name"] for row in result.classes if row["seen"]} - set(seen)
    if strange:
        raise ValueError(
            f"the evaluation {str(path)!r} is of another model: it counts {sorted(strange)} as "
            "seen, which this model was not trained on"
        )
    if made_by["weights"] not in (None, weights):
        raise ValueError(
            f"the evaluation {str(path)!r} is of other weights; evaluate these: alignzeg evaluate"
        )
    if made_by["weights"] is None:
        logger.warning("the evaluation %s does not say which weights it is of", path)
    if result.settings:
        logger.warning(
            "the evaluation %s was made with %s, which is not in the model's config; the card says "
            "so",
            *(path, ", ".join(result.settings)),
        )
    return result


def _other_settings(settings: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[str, ...]:
    """Of an evaluation's settings, "KEY VALUE" where a config has another value."""
    found = []
    for key, value in settings.items():
        node: Any = config
        for part in key.split("."):
            node = node.get(part, value) if isinstance(node, Mapping) else value
        if node != value and not (isinstance(value, list) and list(node) == value):
            found.append(f"{key} {value}")
    return tuple(found)


def model_card(
    about: Mapping[str, Any],
    config: Mapping[str, Any],
    names: Sequence[str],
    results: Sequence[Evaluation],
) -> str:
    """The card as Markdown: what the checkpoint says, its config, class names and evaluations."""
    node = config.get("ALIGNZEG", {})
    parts = {
        "Meta-architecture": config.get("MODEL", {}).get("META_ARCHITECTURE"),
        "Image encoder": config.get("MODEL", {}).get("BACKBONE", {}).get("NAME"),
        **{
            word: node.get(section, {}).get("NAME")
            for word, section in (
                ("Head", "HEAD"),
                ("Proposals", "EXTRACTOR"),
                ("Synthetic features", "SYNTHESIZER"),
                ("Bias correction", "CORRECTOR"),
            )
        },
    }
    seen = list(about["seen"])
    lines = [
        "---",
        yaml.safe_dump(_front(results), sort_keys=False, allow_unicode=True).strip(),
        "---",
        "",
        "# Zero-shot semantic segmentation",
        "",
        f"A mask-proposal model trained on masks of {len(seen)} classes with alignzeg.",
        "It names pixels among any class names, of seen and unseen classes.",
        "",
        "## Use",
        "",
        "```python",
        "from alignzeg.inference import Predictor",
        "",
        f'predictor = Predictor.from_pretrained("FOLDER_OR_ID", classes={list(names[:3])!r})',
        'predictor("image.png").save("predictions", "image")',
        "```",
        "",
        "## Model",
        "",
        "| part | |",
        "|--|--|",
        *(f"| {word} | {_code(value)} |" for word, value in parts.items() if value),
        f"| Frozen VLM | {_code(about['vlm_id'])} |",
        f"| SHA-256 of its weights | {_code(about['vlm_hash'])} |",
        "",
        "The VLM's weights are not in this folder; other ones than these are refused.",
        "",
        f"Seen classes: {', '.join(map(_text, seen))}.",
        "",
        *_results(results),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _front(results: Sequence[Evaluation]) -> dict[str, Any]:
    """The card's YAML header, as the Hub reads it."""
    front: dict[str, Any] = {
        "library_name": "alignzeg",
        "pipeline_tag": "image-segmentation",
        "tags": list(_TAGS),
    }
    if results:
        entries = [
            {
                "task": {"type": "image-segmentation"},
                "dataset": {"name": result.dataset, "type": result.dataset},
                "metrics": [
                    {"type": name, "value": round(value, 2)}
                    for name in _FIGURES
                    if (value := result.metrics.get(name)) is not None
                ],
            }
            for result in results
        ]
        front["model-index"] = [{"name": "alignzeg", "results": entries}]
    return front


def _results(results: Sequence[Evaluation]) -> list[str]:
    lines = ["## Results", ""]
    if not results:
        return [*lines, "Not measured."]
    heads = (*_FIGURES, _BIAS[1])
    keys = (*_FIGURES, _BIAS[0])
    lines += [
        "Percent.",
        "",
        f"| data set | images | {' | '.join(heads)} |",
        "|" + "--|" * (2 + len(heads)),
    ]
    for result in results:
        cells = (_percent(result.metrics.get(key)) for key in keys)
        images = result.protocol.get("images", "")
        lines.append(f"| {_text(result.dataset)} | {_text(images)} | {' | '.join(cells)} |")
    for result in results:
        lines += ["", f"### {_text(result.dataset)}", ""]
        said = (result.protocol.get(key) for key in _PROTOCOL)
        lines += [f"- {_text(text)}" for text in said if text]
        lines += [f"- made with {_code(text)}, unlike the config" for text in result.settings]
        lines += ["", "| class | | IoU |", "|--|--|--|"]
        lines += [
            f"| {_text(row['name'])} | {seen} | {_percent(row['IoU'])} |"
            for row in result.classes
            for seen in ["seen" if row["seen"] else "unseen"]
        ]
    return lines


def _text(value: object) -> str:
    """Words of somebody else as Markdown that shows them, and no HTML, link or table of theirs."""
    return re.sub(r"([\\`*<>&|\[\]])", r"\\\1", " ".join(str(value).split()))


def _code(value: object) -> str:
    return "`" + " ".join(str(value).split()).replace("`", "'").replace("|", "\\|") + "`"


def _percent(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, (int, float)) else "-"
