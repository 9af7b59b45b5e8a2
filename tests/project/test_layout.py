"""Where tests are: in the folder that has the name of what they test."""

from __future__ import annotations

from helpers import REPOSITORY

TESTS = REPOSITORY / "tests"
PACKAGE = REPOSITORY / "alignzeg"


def test_folders_of_tests_are_folders_of_the_package() -> None:
    folders = {path.parent.relative_to(TESTS) for path in TESTS.rglob("test_*.py")}
    unknown = {path for path in folders if not (PACKAGE / path).is_dir()}
    assert {str(path) for path in unknown} == {"project"}


def test_every_folder_of_the_package_has_tests() -> None:
    parts = {path.parent for path in PACKAGE.glob("*/*.py")}
    untested = [path.name for path in parts if not any((TESTS / path.name).rglob("test_*.py"))]
    assert not untested
