"""Command lines are read before anything heavy is imported; wrong words are one line, code 2."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from detectron2.engine import default_argument_parser

from alignzeg import __version__, command_lines
from alignzeg.__main__ import COMMANDS
from alignzeg.arguments import did_you_mean, require_file_place, require_folder

MODULE = ["-m", "alignzeg"]
TOOLS = ("train_net", "calibrate", "ablate", "ksplits", "demo", "make_pseudo_labels")
SCRIPTS = [
    *(f"tools/{name}.py" for name in TOOLS),
    "projects/tiny_clip/train_tiny_clip.py",
    "datasets/prepare_zeroshapes.py",
]
# Prints what a command line has made the process import, after its own output.
WATCHED = """
import atexit, json, sys
heavy = ("torch", "detectron2", "open_clip", "timm", "matplotlib")
atexit.register(lambda: print(json.dumps([n for n in heavy if n in sys.modules]), file=sys.stderr))
"""


def ask(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own; the last line of stderr lists its heavy imports."""
    (tmp_path / "sitecustomize.py").write_text(WATCHED)
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": path},
    )


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([*MODULE, "--help"], 0, "predict"),
        ([*MODULE, "--version"], 0, f"alignzeg {__version__}"),
        ([*MODULE, "predcit", "x.png"], 2, "unknown command 'predcit'; did you mean 'predict'?"),
        ([*MODULE, "--verison"], 2, "did you mean '--version'?"),
        ([*MODULE, "predict", "x.png", "--weigths", "m"], 2, "did you mean '--weights'?"),
        (
            [*MODULE, "predict", "x", "--weights", "m", "--classes", "a", "--reject", "50"],
            2,
            "--reject: '50' is not a number from 0 to 1",
        ),
        *(([*MODULE, name, "--help"], 0, f"alignzeg {name}") for name in COMMANDS),
        *(([script, "--help"], 0, "usage") for script in SCRIPTS),
        *(([script, "--hlep"], 2, "did you mean '--help'?") for script in SCRIPTS),
    ],
)
def test_words_are_answered_without_heavy_imports(
    tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    done = ask(tmp_path, *words)
    *complaint, imported = done.stderr.splitlines()
    assert done.returncode == code, done.stderr
    assert json.loads(imported) == []
    assert said in (done.stdout if code == 0 else complaint[0])
    assert len(complaint) == (code == 2)


def test_importing_the_package_registers_its_parts(tmp_path: Path) -> None:
    check = (
        "import alignzeg\n"
        "from detectron2.data import DatasetCatalog\n"
        "from detectron2.modeling import META_ARCH_REGISTRY\n"
        "assert 'AlignZeg' in META_ARCH_REGISTRY and 'zeroshapes_val' in DatasetCatalog\n"
        "assert alignzeg.heads and alignzeg.register_folder\n"
    )
    assert ask(tmp_path, "-c", check).returncode == 0
    (tmp_path / "script.py").write_text(check)
    assert ask(tmp_path, str(tmp_path / "script.py")).returncode == 0


def options(parser: argparse.ArgumentParser) -> dict[str, object]:
    return {action.dest: action.default for action in parser._actions}


def test_the_training_command_takes_what_detectron2s_does() -> None:
    theirs, ours = options(default_argument_parser()), options(command_lines.train())
    assert theirs.keys() <= ours.keys()
    same = theirs.keys() - {"dist_url", "opts"}
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
    assert command_lines.train().parse_args(["--resume", "A", "1"]).opts == ["A", "1"]


def test_names_are_suggested_only_where_alike() -> None:
    assert did_you_mean("Zeroshapes_vla", ["zeroshapes_val", "voc"]) == (
        "did you mean 'zeroshapes_val'? "
    )
    assert did_you_mean("qqq", ["zeroshapes_val", "voc"]) == ""


def test_places_that_cannot_be_written_name_the_option(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert require_folder(tmp_path / "new" / "deep", "--output") == tmp_path / "new" / "deep"
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="--output is '.*file/deep', but .*file is a file"):
        require_folder(tmp_path / "file" / "deep", "--output")
    with pytest.raises(ValueError, match="--json is .*which is a folder"):
        require_file_place(tmp_path, "--json")
    with pytest.raises(ValueError, match="--json is .*no folder"):
        require_file_place(tmp_path / "no" / "x.json", "--json")
    assert require_file_place(tmp_path / "x.json", "--json") == tmp_path / "x.json"
