"""Damaged class lists: split files and folders of a user's own."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import yaml
from detectron2.data import MetadataCatalog

from fuzzing.common import SMALL, TRAIN, VALUES, Case, Source, damage_bytes, nested

# A plugin's exceptions become errors of the user; one that is a bug of ours must show.
PLUGIN = """
from pathlib import Path

try:
    from alignzeg.data.benchmark import read_split_file
    from alignzeg.data.catalog import register

    register(read_split_file("split.json"))
except (ValueError, OSError):
    raise
except Exception as error:
    Path("bug.txt").write_text(repr(error))
    raise
"""


def split_file(rng: random.Random) -> dict[str, Any]:
    """The content of a split file of zeroshapes with something wrong in it."""
    facts = MetadataCatalog.get("zeroshapes_train").as_dict()
    vocabulary = facts["vocabulary"]
    content: dict[str, Any] = {
        "name": "fuzzed",
        "classes": list(vocabulary.names),
        "unseen": [vocabulary.names[i] for i in vocabulary.unseen_ids],
        "pseudo_unseen": list(facts["pseudo_unseen"]),
        "raw_ids": list(facts["raw_ids"]),
        "ignore_label": 255,
        "ignored_raw_ids": [],
        "prompts": list(vocabulary.prompts),
        "splits": {
            split: {
                "image_root": f"zeroshapes/images/{split}",
                "sem_seg_root": f"zeroshapes/annotations/{split}",
            }
            for split in ("train", "val")
        },
    }
    key = rng.choice(list(content))
    action = rng.randrange(4)
    if action == 0:
        del content[key]
    elif action == 1:
        content[key] = rng.choice(VALUES)
    elif action == 2 and isinstance(content[key], list) and content[key]:
        items = content[key]
        place = rng.randrange(len(items))
        items[place] = rng.choice((*VALUES[:30], items[0]))
    else:
        content[rng.choice(("", "clases", "seen", "prepare"))] = rng.choice(VALUES)
    return content


def classes_case(source: Source, folder: Path, rng: random.Random) -> Case:
    """A split file, or a folder of the user's own with classes.txt and unseen.txt."""
    own = rng.random() < 0.4
    config = nested(SMALL)
    if own:
        own_root = folder / "own"
        shutil.copytree(source.data / "zeroshapes" / "images", own_root / "images")
        shutil.copytree(source.data / "zeroshapes" / "annotations", own_root / "labels")
        damage_lists(own_root, rng)
        keys = {"NAME": "fuzzed", "ROOT": str(own_root)}
        if rng.random() < 0.3:
            key = rng.choice(("NAME", "ROOT", "IMAGES", "LABELS", "CLASSES", "UNSEEN"))
            keys[key] = rng.choice(VALUES)
        config["ALIGNZEG"]["DATA"] = {"OWN": keys}
    else:
        content = json.dumps(split_file(rng), default=str).encode()
        content = damage_bytes(content, rng) if rng.random() < 0.4 else content
        (folder / "split.json").write_bytes(content)
        (folder / "plugin.py").write_text(PLUGIN)
        config["ALIGNZEG"]["PLUGINS"] = ["plugin.py"]
        config["DATASETS"] = {"TRAIN": ["fuzzed_train"], "TEST": ["fuzzed_val"]}
    text = yaml.safe_dump({"_BASE_": str(source.base if own else source.config), **config})
    (folder / "config.yaml").write_text(text, "utf-8")
    what = "own folder" if own else "split file"
    return Case("classes", what, TRAIN, ("--config-file", "config.yaml"), source.data)


def damage_lists(root: Path, rng: random.Random) -> None:
    """Writes classes.txt and unseen.txt of zeroshapes with something wrong in them."""
    names = list(MetadataCatalog.get("zeroshapes_train").vocabulary.names)
    for file, lines in (("classes.txt", names), ("unseen.txt", names[-9:])):
        lines = list(lines)
        if rng.random() < 0.6:
            place = rng.randrange(len(lines))
            lines[place : place + rng.randrange(3)] = rng.choice(
                ([lines[0]], [" "], [], ["ü" * 300], ["a", "b"], ["\u0000"], ["grass,brick"])
            )
        content = "\n".join(lines).encode()
        (root / file).write_bytes(damage_bytes(content, rng) if rng.random() < 0.3 else content)
