"""The rules of the house, read off the source: who may import whom, and who may read the config."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import REPOSITORY

PACKAGE = REPOSITORY / "alignzeg"
FILES = sorted(PACKAGE.rglob("*.py"))
IDS = [str(path.relative_to(REPOSITORY)) for path in FILES]

# Longest prefix wins. Imports point to a lower layer; files of one room (the second value) may
# import each other, other files of the same layer not.
LAYERS = {
    "alignzeg": (6, "alignzeg"),
    "alignzeg.__main__": (6, "commands"),
    "alignzeg.commands": (6, "commands"),
    "alignzeg.engine": (5, "engine"),
    "alignzeg.evaluation": (4, "evaluation"),
    "alignzeg.generative": (5, "generative"),
    "alignzeg.inference": (5, "inference"),
    "alignzeg.modeling.meta_arch": (4, "meta_arch"),
    "alignzeg.modeling.generator": (1, "generator"),
    "alignzeg.modeling.heads": (3, "heads"),
    "alignzeg.modeling": (2, ""),
    "alignzeg.modeling.layers": (1, "layers"),
    "alignzeg.modeling.freezing": (1, "freezing"),
    "alignzeg.modeling.pretrained": (1, "weights"),
    "alignzeg.modeling.tensor_files": (1, "weights"),
    "alignzeg.modeling.interpolation": (1, "label_map"),
    "alignzeg.modeling.label_tiles": (1, "label_map"),
    "alignzeg.modeling.semantic_inference": (1, "label_map"),
    "alignzeg.modeling.label_counts": (1, "label_map"),
    "alignzeg.modeling.test_time_augmentation": (1, "label_map"),
    "alignzeg.modeling.augmented_inference": (3, "viewing"),
    "alignzeg.modeling.proposals": (2, "proposals"),
    "alignzeg.modeling.vlm": (2, "vlm"),
    "alignzeg.modeling.vlm.regions": (1, "regions"),
    "alignzeg.modeling.vlm.templates": (1, "templates"),
    "alignzeg.losses": (2, ""),
    "alignzeg.losses.functional": (1, "functional"),
    "alignzeg.losses.mmd": (1, "mmd"),
    "alignzeg.losses.criteria.base": (1, "criteria.base"),
    "alignzeg.data": (2, ""),
    "alignzeg.data.catalog": (2, "catalog"),
    "alignzeg.data.preparation": (5, "preparation"),
    "alignzeg.data.custom": (2, "catalog"),
    "alignzeg.data.worker_registration": (2, "catalog"),
    "alignzeg.data.pseudo": (2, "catalog"),
    "alignzeg.data.zeroshapes": (2, "zeroshapes"),
    "alignzeg.data.zeroshapes.names": (1, "names"),
    "alignzeg.data.zeroshapes.shapes": (1, "shapes"),
    "alignzeg.data.zeroshapes.textures": (1, "textures"),
    "alignzeg.data.benchmark": (1, "benchmark"),
    "alignzeg.data.label_hints": (1, "labels"),
    "alignzeg.data.labels": (1, "labels"),
    "alignzeg.data.class_names": (1, "class_names"),
    "alignzeg.data.color_jitter": (1, "color_jitter"),
    "alignzeg.data.input_images": (0, "images"),
    "alignzeg.data.pictures": (0, "images"),
    "alignzeg.data.picture_files": (0, "images"),
    "alignzeg.data.picture_kinds": (0, "images"),
    "alignzeg.data.color_profiles": (0, "images"),
    "alignzeg.files": (0, "files"),
    "alignzeg.structures": (0, "structures"),
    "alignzeg.contracts": (0, "structures"),
    "alignzeg.peers": (0, "peers"),
    "alignzeg.progress": (0, "progress"),
    "alignzeg.registries": (0, "structures"),
    # Its table names the registries.
    "alignzeg.config": (1, "config"),
    "alignzeg.arguments": (0, "arguments"),
}
# Folders of the repository that the package must work without.
OUTSIDE = ("tools", "dev", "projects", "tiny_clip", "fuzzing", "bench", "datasets", "tests")
# Layer 5 may lean on each other, and only there: a tool needs the trainer and its settings.
TOP = 5
CONFIG_READERS = (
    "from_config",
    "build",
    "_build",
    "validate",
    "setup",
    "start",
    "run_line",
    "add_",
)

# Builders by another name.
OTHER_READERS = {
    "training_vocabulary",
    "eval_vocabulary",
    "training_augmentations",
    "test_augmentations",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module: str) -> tuple[int, str]:
    prefix = module
    while prefix not in LAYERS or (prefix == "alignzeg" and module != "alignzeg"):
        if "." not in prefix:
            return TOP, module.split(".")[1]
        prefix = prefix.rpartition(".")[0]
    number, room = LAYERS[prefix]
    return number, room or module


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules() -> set[str]:
    return {module_name(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_point_down(path: Path) -> None:
    name = module_name(path)
    number, room = layer(name)
    known = modules()
    for target in imported(ast.parse(path.read_text("utf-8"))):
        assert target.split(".")[0] not in OUTSIDE, f"{name} imports {target}"
        if target not in known or target in ("alignzeg", name) or name == "alignzeg":
            continue
        if name.startswith(f"{target}.") or target.startswith(f"{name}."):
            continue  # a package and what is in it
        other, other_room = layer(target)
        fine = other < number or other_room == room or (number == other == TOP)
        assert fine, f"{name} (layer {number}) imports {target} (layer {other})"


def config_reads(tree: ast.AST, inside: str = "") -> Iterator[tuple[str, int]]:
    """The innermost function around every `cfg.SOMETHING` and `self.cfg.SOMETHING`."""
    for node in ast.iter_child_nodes(tree):
        where = node.name if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else inside
        if isinstance(node, ast.Attribute):
            owner = node.value
            named = isinstance(owner, ast.Name) and owner.id == "cfg"
            held = isinstance(owner, ast.Attribute) and owner.attr == "cfg"
            if (named or held) and node.attr.isupper():
                yield where, node.lineno
        yield from config_reads(node, where)


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_only_builders_read_the_config(path: Path) -> None:
    number, room = layer(module_name(path))
    if number >= TOP:
        return
    for function, line in config_reads(ast.parse(path.read_text("utf-8"))):
        fine = function.startswith(CONFIG_READERS) or function in OTHER_READERS
        assert fine, f"{path.name}:{line}: {function or 'the module'} reads cfg"


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_nothing_prints_and_every_file_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    assert ast.get_docstring(tree), f"{path.name} has no docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "breakpoint"), f"{path.name}:{node.lineno}"


def test_the_command_to_train_is_short() -> None:
    lines = (REPOSITORY / "tools" / "train_net.py").read_text("utf-8").splitlines()
    assert len(lines) < 80


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_no_file_is_long(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 300


def test_no_test_file_is_long() -> None:
    paths = (REPOSITORY / "tests").rglob("*.py")
    assert not [path.name for path in paths if len(path.read_text("utf-8").splitlines()) > 300]


def test_the_table_names_files_that_exist() -> None:
    assert set(LAYERS) <= modules()
