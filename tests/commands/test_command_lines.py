"""Command lines are read before anything heavy is imported; wrong words are one line, code 2."""

from __future__ import annotations

import argparse
import ast
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.engine import default_argument_parser
from helpers import REPOSITORY

from alignzeg import __version__
from alignzeg.__main__ import load, main, read_words
from alignzeg.arguments import did_you_mean, example_of, require_file_place, require_folder
from alignzeg.commands import COMMANDS, train

MODULE = ["-m", "alignzeg"]
SCRIPTS = [
    "tools/train_net.py",
    "projects/tiny_clip/train_tiny_clip.py",
    "datasets/prepare_zeroshapes.py",
]
# Commands that take KEY VALUE pairs, with the other words that they need.
WITH_KEYS = {
    "train": "",
    "evaluate": "",
    "predict": "IMAGE --weights WEIGHTS --classes grass,brick",
    "web": "--weights WEIGHTS",
    "demo": "",
    "photos": "",
    "ablate": "--configs CONFIG",
    "ksplits": "--splits 2",
    "calibrate": "--config-file CONFIG --weights WEIGHTS",
    "pseudo-labels": "--config-file CONFIG --dataset zeroshapes_train --output FOLDER",
    "audit": "--config-file CONFIG",
    "vocabulary": "grass,brick",
    "doctor": "",
    "replay": "",
    "export": "WEIGHTS model.onnx",
}
# Of these, those whose keys are read only with a checkpoint, a crash bundle or photographs.
NEEDING_FILES = ("predict", "web", "replay", "photos", "export")
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
        timeout=300,
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
        ([*MODULE, "train", "--config-fil"], 2, "--config-fil"),
        ([*MODULE, "demo", "SEED"], 2, "come in pairs KEY VALUE, but 1 words were given"),
        ([*MODULE, "train", "SEED", "1", "--resume"], 2, "--resume comes after the KEY VALUE"),
        *(([*MODULE, name, "--help"], 0, f"  alignzeg {name} ") for name in COMMANDS),
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
        "assert all(getattr(alignzeg, name) for name in alignzeg.__all__)\n"
    )
    assert ask(tmp_path, "-c", check).returncode == 0
    (tmp_path / "script.py").write_text(check)
    assert ask(tmp_path, str(tmp_path / "script.py")).returncode == 0


def options(parser: argparse.ArgumentParser) -> dict[str, object]:
    return {action.dest: action.default for action in parser._actions}


def test_the_training_command_takes_what_detectron2s_does() -> None:
    theirs, ours = options(default_argument_parser()), options(train.parser())
    assert theirs.keys() <= ours.keys()
    same = theirs.keys() - {"dist_url", "opts"}
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
    assert train.parse_args(["--resume", "A", "1"]).opts == ["A", "1"]


def test_the_script_that_trains_is_the_command() -> None:
    """tools/train_net.py has no parser and no code of its own."""
    tree = ast.parse((REPOSITORY / "tools" / "train_net.py").read_text("utf-8"))
    imports = [ast.unparse(n) for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert "from alignzeg.__main__ import main" in imports
    assert not any(isinstance(n, (ast.FunctionDef, ast.ClassDef)) for n in ast.walk(tree))
    assert ast.unparse(tree).count("sys.exit(main(['train', *sys.argv[1:]]))") == 1


def test_evaluation_is_training_with_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(train, "main", seen.append)
    assert main(["evaluate", "--weights", "m.pth", "--num-gpus", "2", "SEED", "1"]) == 0
    (args,) = seen
    assert args.eval_only and args.num_gpus == 2 and not args.overwrite
    assert args.opts == ["MODEL.WEIGHTS", "m.pth", "SEED", "1"]


def test_a_command_is_a_file_of_its_name() -> None:
    files = {path.stem for path in (REPOSITORY / "alignzeg" / "commands").glob("*.py")}
    assert files == {"__init__", *(name.replace("-", "_") for name in COMMANDS)}
    others = (p for p in (REPOSITORY / "alignzeg").rglob("*.py") if p.parent.name != "commands")
    assert files & {path.stem for path in others} == {"__init__"}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_a_command_parses(name: str) -> None:
    parser = load(name).parser()
    example = example_of(parser)
    program, command, *words = shlex.split(example)
    assert [program, command] == ["alignzeg", name]
    assert example in parser.format_help()
    args = read_words(parser, words)
    configs = [getattr(args, "config_file", ""), *getattr(args, "configs", [])]
    assert all((REPOSITORY / config).is_file() for config in configs if config)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_is_explained(name: str) -> None:
    for action in load(name).parser()._actions:
        assert action.help and len(action.help.split()) > 2, action.dest


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--no-such-option"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "--no-such-option" in line


def test_every_command_that_takes_keys_is_listed() -> None:
    taking = {n for n in COMMANDS if any(a.dest == "opts" for a in load(n).parser()._actions)}
    assert taking == WITH_KEYS.keys()


@pytest.mark.parametrize("name", [name for name in WITH_KEYS if name not in NEEDING_FILES])
def test_a_wrong_key_is_one_line(
    name: str,
    zeroshapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pth").write_text("")
    config = str(REPOSITORY / "configs" / "zeroshapes" / "alignzeg.yaml")
    given = {"CONFIG": config, "WEIGHTS": "model.pth", "FOLDER": "labels"}
    words = [given.get(word, word) for word in WITH_KEYS[name].split()]
    assert main([name, *words, "SOLVER.MAX_ITR", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "did you mean SOLVER.MAX_ITER?" in line
    assert main([name, *words, "SOLVER.MAX_ITER"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "SOLVER.MAX_ITER" in line


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
