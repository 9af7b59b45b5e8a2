from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import CONFIGS, REPOSITORY

import alignzeg
from alignzeg import machine
from alignzeg.__main__ import main
from alignzeg.commands import COMMANDS

BLOCKED = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "detectron2":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Block())
import alignzeg
"""


def test_without_detectron2_one_error_says_how_to_install_it() -> None:
    result = subprocess.run(
        [sys.executable, "-c", BLOCKED], capture_output=True, text=True, timeout=120, cwd=REPOSITORY
    )
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: alignzeg needs Detectron2")
    assert "make setup" in last and "sal-detectron2==0.7.2" in last
    assert "git+https://github.com/facebookresearch/detectron2.git" in last
    assert "During handling" not in result.stderr


def test_the_package_ships_its_data() -> None:
    package = Path(alignzeg.__file__).parent
    text = (REPOSITORY / "setup.py").read_text("utf-8")
    patterns = re.search(r'package_data=\{\s*"alignzeg": \[(.+?)\]', text, re.DOTALL).group(1)
    shipped = {p for glob in re.findall(r'"(.+?)"', patterns) for p in package.glob(glob)}
    data = {p for p in package.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert data and data == shipped
    assert re.fullmatch(r"\d+\.\d+\.\d+", alignzeg.__version__)


def test_the_lock_pins_every_requirement() -> None:
    lock = (REPOSITORY / "requirements.lock").read_text("utf-8")
    pinned = {line.split("==")[0] for line in lock.splitlines()}
    assert all("==" in line for line in lock.splitlines())
    text = (REPOSITORY / "setup.py").read_text("utf-8")
    blocks = re.findall(
        r"(?:DETECTRON2_NEEDS = |install_requires="
        r"|\"dev\": |\"imagenet\": |\"export\": |\"results\": |\"web\": )\[(.*?)\]",
        text,
        re.DOTALL,
    )
    wanted = {
        re.split(r"[>=]", name)[0] for block in blocks for name in re.findall(r'"(.+?)"', block)
    }
    assert len(wanted) > 20
    assert {name.lower().replace("_", "-") for name in wanted} <= pinned
    assert "sal-detectron2" not in pinned


def test_doctor_says_what_is_there(zeroshapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--config-file", str(CONFIGS / "zeroshapes" / "alignzeg.yaml")]) == 0
    said = capsys.readouterr().out
    for word in (
        "python",
        "torch",
        "torchvision",
        "detectron2",
        "open_clip",
        "numpy",
        "PIL",
        "cv2",
    ):
        assert re.search(rf"^ok   {word} +\d", said, re.MULTILINE), word
    assert "detectron2._C" in said and "not needed" in said
    assert len(said.splitlines()) <= 25
    assert re.search(r"^ok   bundled CLIP +alignzeg-tiny", said, re.MULTILINE)
    assert re.search(r"^ok   zeroshapes_train +8 images", said, re.MULTILINE)
    assert f"{zeroshapes} (from DETECTRON2_DATASETS" in said
    assert said.endswith("ready\n")


def test_doctor_names_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    config = str(CONFIGS / "zeroshapes" / "alignzeg.yaml")
    opts = ["ALIGNZEG.VLM.WEIGHTS", "no.safetensors"]
    assert main(["doctor", "--config-file", config, *opts]) == 1
    assert len(capsys.readouterr().out.splitlines()) <= 25
    assert main(["doctor", "--all", "--config-file", config, *opts]) == 1
    said = capsys.readouterr().out
    assert "FAIL VLM of the config" in said and "no.safetensors" in said
    assert re.search(
        r"FAIL zeroshapes_val .*nowhere.*\n +fix: python datasets/prepare_zeroshapes.py", said
    )
    assert re.search(
        r"--   msrc21_k4_val .*nowhere.*\n +fix: python datasets/prepare_msrc21.py, or set", said
    )
    assert said.endswith("3 required checks failed\n")
    assert main(["doctor", "SOLVER.MAX_ITR", "1"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown config key")
    lost = machine.check_package("no_such_package_of_ours")
    assert not lost.ok and lost.line().startswith("FAIL") and "pip install no_such" in lost.line()


def test_every_fix_names_a_script_that_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    # Wherever it is asked from.
    monkeypatch.chdir(tmp_path)
    main(["doctor", "--all"])
    scripts = re.findall(r"fix: python (\S+\.py)", capsys.readouterr().out)
    assert len(scripts) > 20
    assert all(Path(script).is_file() for script in scripts)


def test_a_misspelt_data_set_is_one_hint(zeroshapes: Path, capsys) -> None:
    assert main(["doctor", "DATASETS.TEST", "('zeroshapes_vla',)"]) == 1
    said = capsys.readouterr().out
    assert "did you mean 'zeroshapes_val'?" in said
    assert len(said.splitlines()) <= 25


def run_blocked(command: str) -> subprocess.CompletedProcess[str]:
    """A command where Detectron2 is not installed."""
    code = BLOCKED.replace(
        "import alignzeg\n",
        "import runpy\nsys.orig_argv[1:] = ['-m', 'alignzeg']\n"
        f"sys.argv = ['-m', *{command.split()!r}]\nimport alignzeg\n"
        "runpy.run_module('alignzeg', run_name='__main__', alter_sys=True)\n",
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=REPOSITORY
    )


def test_doctor_works_where_detectron2_is_not_installed() -> None:
    done = run_blocked("doctor")
    # Triton's bindings may say at the end what they have not freed.
    assert done.returncode == 1 and not re.search("Traceback|rror:", done.stderr)
    assert re.search(
        r"^FAIL packages +detectron2: .*\n +fix: make setup", done.stdout, re.MULTILINE
    )
    assert done.stdout.endswith("1 required checks failed\n")
    done = run_blocked("predict x.png --weights m.pth --classes a")
    assert done.returncode == 2
    assert done.stderr.startswith("error: alignzeg needs Detectron2, which is not installed.")
    assert done.stderr.count("\n") == 1


def test_commands_are_dispatched(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in COMMANDS)
    assert main([]) == 2
    assert main(["trane"]) == 2
    assert "unknown command 'trane'; did you mean 'train'?" in capsys.readouterr().err


# Runs command lines in one process; prints exit code, lines of stderr and stdout of each.
SEVERAL = """
import contextlib, io, json, sys
sys.path.insert(0, sys.argv[1])
__alignzeg_late__ = True
import alignzeg
from alignzeg.__main__ import main
assert alignzeg.__file__.startswith(sys.argv[1])
for words in json.loads(sys.argv[2]):
    said, wrong = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(wrong):
        code = main(words)
    print(json.dumps([code, wrong.getvalue().splitlines(), said.getvalue()]))
"""


def run_installed(folder: Path, options: list[str], *lines: str) -> list[tuple[int, list, str]]:
    """Runs commands of a copy of the package from an empty folder, outside of any checkout."""
    package, empty = folder / "site" / "alignzeg", folder / "empty"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(alignzeg.__file__).parent, package, ignore=ignore)
    empty.mkdir()
    words = json.dumps([line.split() for line in lines])
    done = subprocess.run(
        [sys.executable, *options, "-c", SEVERAL, str(package.parent), words],
        **{"capture_output": True, "text": True, "timeout": 300, "cwd": empty},
    )
    assert done.returncode == 0, done.stderr
    # Whoever only asks gets no new files.
    assert not [*empty.iterdir()]
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_without_its_dependencies_every_command_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "evaluation_x.json").write_text("{}")
    (tmp_path / "m.pth").touch()
    usage, doctor, page, *rest = run_installed(
        tmp_path,
        ["-I", "-S"],  # no site-packages
        "--help",
        "doctor",
        "web --help",
        "predict --weights ../m.pth --classes cat x.png",
        "train --config-file configs/zeroshapes/alignzeg.yaml",
        "evaluate --config-file c.yaml --weights ../m.pth",
        "calibrate --config-file c.yaml --weights ../m.pth",
        "export ../m.pth m.onnx --classes cat",
        "share ../m.pth shared",
        "report ../run",
        "vocabulary cat,dog",
        "audit --config-file c.yaml",
        "demo",
        "web --weights ../m.pth",
    )
    assert usage[0] == page[0] == 0 and "usage: alignzeg" in usage[2]
    assert "usage: alignzeg web" in page[2]
    assert doctor[0] == 1 and doctor[1] == [] and len(doctor[2].splitlines()) == 4
    assert "torch: not installed" in doctor[2] and "matplotlib: not installed" in doctor[2]
    assert "pip install torch torchvision open_clip_torch" in doctor[2]
    assert "pip install --python-version 3.10 --no-deps" in doctor[2]
    for code, (line,), _ in rest:
        assert code == 2 and line.startswith("error: ")
        assert "pip install" in line or "run this in a checkout" in line, line


def test_outside_of_a_checkout_every_command_works_or_says_what_is_missing(tmp_path: Path) -> None:
    wanted = {
        "train --config-file configs/zeroshapes/alignzeg.yaml": "in a checkout of the repository",
        "train": "DATASETS.TRAIN is empty; give a data set",
        "predict --weights m.pth --classes cat x.png": "x.png does not exist; give an image",
        "predict --weights m.pth --words": "checkpoint 'm.pth' does not exist; give another",
        "report run": "'run' holds no evaluation; give the OUTPUT_DIR of an evaluated run",
        "demo": "there is no folder configs; run this in a checkout of the repository",
        "ablate": "give one that exists, or run this in a checkout of the repository",
        "share m.pth shared": "checkpoint 'm.pth' does not exist; give another",
    }
    done = run_installed(tmp_path, [], *wanted)
    for (code, (line,), _), said in zip(done, wanted.values(), strict=True):
        assert code == 2 and said in line
