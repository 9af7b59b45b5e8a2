"""No two folders of the package import each other, not even by way of others."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from helpers import REPOSITORY

PACKAGE = REPOSITORY / "alignzeg"


def modules_of(package: Path) -> dict[str, Path]:
    """Every module by its dotted name."""
    found = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(module, name in it or "") of all imports, those in functions too; not those for types."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imports_of(ast.Module(node.orelse, []))
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)
        else:
            yield from imports_of(node)


def graph(package: Path, group: Callable[[Path], str]) -> dict[str, set[str]]:
    """Which groups of modules each group imports from, itself left out."""
    modules = modules_of(package)
    found: dict[str, set[str]] = {group(path): set() for path in modules.values()}
    for path in modules.values():
        for module, name in imports_of(ast.parse(path.read_text("utf-8"))):
            target = modules.get(f"{module}.{name}") or modules.get(module)
            if target is not None:
                found[group(path)].add(group(target))
    return {key: targets - {key} for key, targets in found.items()}


def folder(path: Path) -> str:
    # `python -m` wants this file where it is; it belongs to the commands.
    parts = path.relative_to(PACKAGE).parent.parts
    return "commands" if path.name == "__main__.py" else "/".join(parts)


def room(path: Path) -> str:
    return folder(path).partition("/")[0]


def cycle(edges: dict[str, set[str]]) -> list[str]:
    """One cycle, or nothing."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_cycle_between_folders() -> None:
    assert not cycle(graph(PACKAGE, folder))


def test_no_cycle_between_rooms() -> None:
    """A room is a folder of the package with all that is below it."""
    assert not cycle(graph(PACKAGE, room))


@pytest.mark.parametrize(
    ("back", "found"),
    [
        ("import pack.a.one\n", True),
        ("from pack.a import one\n", True),
        ("def f():\n    from pack.a.one import x\n", True),
        ("if TYPE_CHECKING:\n    from pack.a.one import x\n", False),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    import pack.a.one\n", True),
        ("import json\n", False),
    ],
)
def test_a_cycle_is_found(tmp_path: Path, back: str, found: bool) -> None:
    """Three folders in a chain; the last imports the first, or does not."""
    files = {
        "a/one.py": "from pack.b import two\n",
        "b/two.py": "import pack.c.three\n",
        "c/three.py": back,
    }
    for name, text in files.items():
        path = tmp_path / "pack" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    edges = graph(tmp_path / "pack", lambda path: path.parent.name)
    assert edges["a"] == {"b"}
    assert edges["b"] == {"c"}
    assert set(cycle(edges)) == ({"a", "b", "c"} if found else set())
