"""How the images were prepared that the weights of a CLIP were trained with, and its activation.

Of a file that is what lies beside it or in it, else what the pretrained tag says whose name its
path bears, so that a file is read as the tag of the same weights.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import open_clip
from open_clip.transform import PreprocessCfg
from safetensors import safe_open

from alignzeg.modeling.pretrained import UNREADABLE

logger = logging.getLogger(__name__)

IMAGES = ("mean", "std", "interpolation", "resize_mode")
INTERPOLATIONS = ("bicubic", "bilinear")
# Numbers of Pillow's filters, as the files of transformers give them.
_FILTERS = {2: "bilinear", 3: "bicubic"}
_DEFAULT = {key: getattr(PreprocessCfg(), key) for key in IMAGES}

Facts = dict[str, Any]


def _family(model_name: str) -> tuple[str, ...]:
    base = model_name.removesuffix("-quickgelu")
    return model_name, base, f"{base}-quickgelu"


def of_tag(model_name: str, tag: str) -> Facts:
    """What a pretrained tag of a model, or of the same one with the other GELU, says; or nothing.

    Keys are those of IMAGES and "quick_gelu".
    """
    for name in _family(model_name):
        if tag and open_clip.is_pretrained_cfg(name, tag):
            said = open_clip.get_pretrained_cfg(name, tag)
            images = {key: said[key] for key in IMAGES if key in said}
            return {**images, "quick_gelu": bool(said.get("quick_gelu", False))}
    return {}


def of_file(model_name: str, path: Path) -> Facts:
    """What is known of a weight file, of the keys of `of_tag`, without reading its tensors.

    Raises:
        ValueError: if the file beside it gives numbers that cannot be.
    """
    facts = of_tag(model_name, _tag_in(model_name, path)) | _beside(path.parent)
    try:
        with safe_open(path, framework="pt") as stream:
            said = (stream.metadata() or {}).get("quick_gelu", "").lower()
    except UNREADABLE:
        said = ""
    if said:
        facts["quick_gelu"] = said == "true"
    for key in ("mean", "std"):
        given = facts.get(key, _DEFAULT[key])
        if not _three_numbers(given) or (key == "std" and min(given) <= 0):
            raise ValueError(
                f"the JSON beside {str(path)!r} gives {key} as {given!r}: three numbers are needed"
            )
    return facts


def completed(
    model_name: str, weights: str, facts: Mapping[str, Any], bundled: Collection[str]
) -> Facts:
    """Facts with what lacks, as the model's tags say where they agree; logs what is assumed."""
    tags = {
        t for name in _family(model_name) for t in open_clip.list_pretrained_tags_by_model(name)
    }
    known = [of_tag(model_name, tag) for tag in sorted(tags)]
    built = bool((open_clip.get_model_config(model_name) or {}).get("quick_gelu", False))
    assumed = {**(known[0] if known else {}), "quick_gelu": built}
    # A model without tags is one that this package ships, or one of a plugin.
    agreed = all(other == assumed for other in known)
    agreed = agreed and (bool(known) or model_name in bundled)
    full = {**_DEFAULT, **(assumed if agreed else {"quick_gelu": built}), **facts}
    lacking = [key for key in ("mean", "std", "interpolation", "quick_gelu") if key not in facts]
    if lacking and (weights or not agreed):
        logger.log(
            logging.INFO if agreed else logging.WARNING,
            "nothing says how weights %r were trained: %s assumed; if that is wrong, put the "
            "open_clip_config.json that belongs to them beside the file",
            weights,
            ", ".join(f"{key} {_shown(full[key])}" for key in lacking),
        )
    if full["interpolation"] not in INTERPOLATIONS:
        logger.warning(
            "weights %r want images resized by %r, which is not read: bicubic is taken",
            *(weights, full["interpolation"]),
        )
        full["interpolation"] = "bicubic"
    return full


def _shown(value: Any) -> str:
    return str(list(value)) if isinstance(value, (list, tuple)) else str(value)


def _three_numbers(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 3
        and all(isinstance(v, (int, float)) and abs(v) < float("inf") for v in value)
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower())


def _tag_in(model_name: str, path: Path) -> str:
    """The tag that a file's name, its folder's, or that of the Hub's cache bears; the longest."""
    hubs = [part.split("--")[-1] for part in path.parts if part.startswith("models--")]
    names = [path.stem, path.parent.name, *hubs]
    whole = "\n".join(_plain(name) for name in names)
    found = ""
    for name in _family(model_name):
        for tag in open_clip.list_pretrained_tags_by_model(name):
            hub = open_clip.get_pretrained_cfg(name, tag).get("hf_hub", "").strip("/")
            if hub and hub.rpartition("/")[2] in names:
                return tag
            if re.search(rf"(?<![a-z0-9]){_plain(tag)}(?![a-z0-9])", whole) and len(tag) > len(
                found
            ):
                found = tag
    return found


def _beside(folder: Path) -> Facts:
    """What the JSON that hubs put beside weights says: open_clip's, else that of transformers."""
    said = read_json(folder / "open_clip_config.json")
    model = said.get("model_cfg")
    if isinstance(model, dict):
        images = said.get("preprocess_cfg") or {}
        facts = {key: images[key] for key in IMAGES if images.get(key) is not None}
        return {**facts, "quick_gelu": bool(model.get("quick_gelu", False))}
    facts = {}
    config = read_json(folder / "config.json")
    text = config.get("text_config")
    if config.get("model_type") == "clip" and isinstance(text, dict):
        # What transformers builds where the file does not say.
        facts["quick_gelu"] = text.get("hidden_act", "quick_gelu") == "quick_gelu"
    images = read_json(folder / "preprocessor_config.json")
    images = images or read_json(folder / "processor_config.json").get("image_processor") or {}
    if images.get("do_normalize") is False:
        images |= {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if images.get(theirs) is not None:
            facts[ours] = images[theirs]
    if "resample" in images:
        facts["interpolation"] = _FILTERS.get(images["resample"], str(images["resample"]))
    return facts


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; nothing if there is none."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
