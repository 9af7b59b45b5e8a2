"""Damaged configs: wrong values, wrong keys, broken YAML, wrong words on the command line."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml

from alignzeg.config.reading import default_config, flat_keys
from alignzeg.config.values import flatten
from fuzzing.common import SMALL, TRAIN, VALUES, Case, Source, damage_bytes, nested, opts

# Sections whose keys this project reads.
SECTIONS = ("ALIGNZEG", "SOLVER", "INPUT", "DATASETS", "DATALOADER", "TEST", "MODEL.BACKBONE")
SECTIONS += ("MODEL.FPN", "MODEL.PIXEL", "MODEL.META", "MODEL.DEVICE", "MODEL.WEIGHTS", "SEED")
# Components that exist, if not everywhere.
NAMES = (
    *(
        "PlainExtractor",
        "MutuallyRefinedExtractor",
        "VLMAffinityExtractor",
        "ManifoldMixup",
        "NoCorrection",
        "soft",
        "fast",
    ),
    *("build_resnet_fpn_backbone", "build_swin_fpn_backbone", "build_vit_fpn_backbone", "Muon"),
    *("WarmupCosineLR", "WarmupMultiStepLR", "norm", "value", "bfloat16", "pseudo_unseen", "cuda"),
    *("vertical", "MaskPooling", "ConstantShift", "relative_range", "ViT-B-16", "GN", "res5"),
)
# Nobody is served by a million processes, here or there.
CALM = {"DATALOADER.NUM_WORKERS": (0, 1, -1, "x", None, 1.5, [], True)}
YAML_LINES = (
    "_BASE_: config.yaml",
    "_BASE_: none.yaml",
    "_BASE_: [a, b]",
    "MODEL: !!python/object/apply:os.system ['touch hacked']",
    "A: &a [*a]",
    "MODEL: []",
    "ALIGNZEG: 3",
    "? {a: b} : c",
    "1: 2",
    "\tSEED: 1",
    "SEED: !!binary x",
    "SEED: 2024-01-01",
)


def likely(default: Any) -> tuple[Any, ...]:
    """Values of the same type as the default, or what it becomes with another scale or length."""
    if isinstance(default, bool):
        return (not default,)
    if isinstance(default, (int, float)):
        numbers = tuple(
            v for v in VALUES if isinstance(v, (int, float)) and not isinstance(v, bool)
        )
        return (*numbers, default * 2, default + 1, -default)
    if isinstance(default, str):
        return (*(v for v in VALUES if isinstance(v, str)), *NAMES)
    if isinstance(default, (list, tuple)) and default:
        items = list(default)
        return (items[::-1], items[:1], items * 2, [items[0]] * len(items), items[1:])
    return VALUES


def config_case(source: Source, folder: Path, rng: random.Random) -> Case:
    """A wrong value, wrong keys, damaged YAML, or wrong words on the command line."""
    keys = [key for key in flat_keys(default_config()) if key.startswith(SECTIONS)]
    defaults = dict(flatten(default_config()))
    changes = {
        key: rng.choice(CALM.get(key, likely(defaults[key]) if rng.random() < 0.85 else VALUES))
        for key in rng.sample(keys, rng.choice((1, 1, 1, 2, 3)))
    }
    base = {"_BASE_": str(source.config), **nested(SMALL)}
    words: list[str] = []
    how = rng.choice(("value",) * 6 + ("option", "option", "text", "line", "words"))
    if how == "value":
        base = {"_BASE_": str(source.config), **nested({**SMALL, **changes})}
    text = yaml.safe_dump(base, allow_unicode=True)
    what = f"{changes}"
    if how == "option":
        words = opts(changes)
    elif how == "text":
        what = "damaged text"
        content = damage_bytes(text.encode(), rng)
        (folder / "config.yaml").write_bytes(content)
    elif how == "line":
        line = rng.choice(YAML_LINES)
        lines = text.splitlines()
        lines.insert(rng.randrange(len(lines) + 1), line)
        text, what = "\n".join(lines), line
    elif how == "words":
        words = rng.choice(
            (["SEED"], ["--gpus", "1"], ["NO.SUCH", "1"], ["MODEL", "1"])
            + (["", ""], ["."], [".", "1"], ["A..B", "1"], ["\u0000", "1"], ["SEED", "1" * 5000])
        )
        what = f"{words}"[:200]
    if how != "text":
        (folder / "config.yaml").write_text(text, encoding="utf-8")
    argv = ("--config-file", "config.yaml", *words)
    return Case("config", f"{how}: {what}", TRAIN, argv, source.data)
