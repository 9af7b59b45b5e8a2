"""Prompt template sets: sentences with one ``{}`` for the class name."""

from __future__ import annotations

from collections.abc import Sequence

from open_clip import OPENAI_IMAGENET_TEMPLATES

SINGLE = ("a photo of a {}.",)

SHORT = ("a photo of a {}", "a {}", "{}", "a photo of the {} in a scene")

VILD = (
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    "a photo of a small {}.",
    "a photo of a medium {}.",
    "a photo of a large {}.",
    "This is a photo of a small {}.",
    "This is a photo of a medium {}.",
    "This is a photo of a large {}.",
    "There is a small {} in the scene.",
    "There is a medium {} in the scene.",
    "There is a large {} in the scene.",
)
"""Source: arXiv:2104.13921 (ViLD), the 14 that open-vocabulary segmentation uses."""

TEMPLATE_SETS: dict[str, tuple[str, ...]] = {
    "single": SINGLE,
    "short": SHORT,
    "vild": VILD,
    "imagenet": tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES),
}


def resolve_templates(templates: Sequence[str], default: Sequence[str] = VILD) -> tuple[str, ...]:
    """Template sets by name and templates of the caller's own, in one list.

    Args:
        templates: each entry is "single", "short" (4), "vild" (14), "imagenet" (80), "default" or
            a sentence with exactly one ``{}``.
        default: what "default" stands for, the caller's own choice.

    Returns:
        The templates, in order, without repetition.

    Raises:
        ValueError: if the list is empty, or an entry is neither a set nor has exactly one ``{}``.
    """
    entries = [templates] if isinstance(templates, str) else list(templates)
    if not entries:
        raise ValueError("no prompt templates: set ALIGNZEG.VLM.TEMPLATES, for example ['vild']")
    sets = {"default": default, **TEMPLATE_SETS}
    resolved: list[str] = []
    for entry in entries:
        if entry in sets:
            resolved.extend(sets[entry])
        elif entry.count("{}") == 1:
            resolved.append(entry)
        else:
            raise ValueError(
                f"prompt template {entry!r} is neither one of {sorted(sets)} nor a "
                "sentence with "
                "exactly one {} for the class name"
            )
    return tuple(dict.fromkeys(resolved))
