"""The files in configs/: how they are composed, what they say of themselves, no recipe twice."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from detectron2.data import DatasetCatalog
from helpers import CONFIGS

from alignzeg.config.values import flatten
from alignzeg.engine import setup_config

BASE = CONFIGS / "_base_"
# The folders that a leaf lists files of, in this order.
KINDS = ("models", "datasets", "schedules", "methods")
FILES = sorted(CONFIGS.rglob("*.yaml"))
LEAVES = [path for path in FILES if BASE not in path.parents]


def below(path: Path) -> list[Path]:
    """The files that a config lists."""
    base = yaml.safe_load(path.read_text(encoding="utf-8")).get("_BASE_", [])
    return [(path.parent / name).resolve() for name in ([base] if isinstance(base, str) else base)]


def chain(path: Path) -> int:
    """How many files lie on the longest way down from a config."""
    return 1 + max(map(chain, below(path)), default=0)


def test_a_leaf_lists_its_parts_in_order_or_builds_on_its_neighbour() -> None:
    assert len(FILES) <= 70
    for path in LEAVES:
        bases = below(path)
        if bases[0].parent == path.parent:
            assert all(base.parent == BASE / "methods" for base in bases[1:]), path
            continue
        kinds = [KINDS.index(base.parent.name) for base in bases]
        assert kinds == sorted(kinds) and {0, 1, 2} <= {*kinds}, path
        assert all(BASE in base.parents and chain(base) <= 2 for base in bases), path


def test_every_part_is_used() -> None:
    used = {part for path in FILES for part in below(path)}
    assert {path for path in FILES if BASE in path.parents} <= used


def test_the_first_line_says_the_status_and_the_next_one_what_it_is() -> None:
    zoo = (CONFIGS.parent / "docs/results.md").read_text(encoding="utf-8")
    cells = {cell.strip() for line in zoo.splitlines() for cell in line.split("|")[1:3]}
    for path in LEAVES:
        status, what = path.read_text(encoding="utf-8").splitlines()[:2]
        assert what.startswith("# "), path
        if status != "# builds and trains two steps only":
            row = status.removeprefix("# measured: ").removesuffix(", which builds on this")
            assert row != status and row in cells, path


def test_a_recipe_stands_once() -> None:
    recipes: dict[tuple, Path] = {}
    for path in LEAVES:
        keys = dict(flatten(setup_config(path)))
        # Which pseudo-labels is a matter of the data set, whether there are any is not.
        keys["ALIGNZEG.DATA.PSEUDO.ROOT"] = bool(keys["ALIGNZEG.DATA.PSEUDO.ROOT"])
        data = ("DATASETS.", "ALIGNZEG.DATA.OWN.")
        recipe = tuple(sorted((k, repr(v)) for k, v in keys.items() if not k.startswith(data)))
        other = recipes.setdefault(recipe, path)
        assert other == path, f"{path} is {other} with other data sets"


def test_real_benchmarks_have_the_strengths_that_were_chosen() -> None:
    measured = setup_config(CONFIGS / "zeroshapes" / "cel.yaml").ALIGNZEG
    for benchmark in ("voc2012", "coco_stuff", "context", "cross"):
        corrector = setup_config(CONFIGS / benchmark / "alignzeg_R50.yaml").ALIGNZEG.CORRECTOR
        assert corrector.NAME == "UnseenIndicator" and corrector.GAMMA > 0
    for path in CONFIGS.glob("*/cel_R50.yaml"):
        node = setup_config(path).ALIGNZEG
        for key in ("ENHANCE_WEIGHT", "RANK_WEIGHT"):
            assert node.LOSS[key] == measured.LOSS[key], path
        assert node.TEST.DUPLICATE_IOU == measured.TEST.DUPLICATE_IOU


def test_configs_that_the_texts_name_exist() -> None:
    for text in (CONFIGS.parent / "README.md", *sorted((CONFIGS.parent / "docs").rglob("*.md"))):
        for name in re.findall(r"configs/[\w/]+\.yaml", text.read_text(encoding="utf-8")):
            assert (CONFIGS.parent / name).is_file(), f"{text.name} names {name}"


def test_every_open_vocabulary_set_is_evaluated_by_a_config() -> None:
    tested = set(setup_config(CONFIGS / "cross" / "alignzeg_R50.yaml").DATASETS.TEST)
    wanted = {"ade20k_150", "ade20k_847", "pc59", "context459", "voc20", "pas20b", "pas21"}
    assert tested == {f"{name}_val" for name in wanted}
    assert tested <= set(DatasetCatalog.list())
