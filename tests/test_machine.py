"""Packages that are there and cannot be imported; users without a name, a home or UTF-8."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REPOSITORY

from alignzeg import machine
from alignzeg.commands import guarded
from alignzeg.config.reading import config_from_file
from alignzeg.files import user_cache

BROKEN = {
    "cv2": (
        "raise ImportError('libGL.so.1: cannot open shared object file: No such file')",
        "apt-get install libgl1, or without root: pip uninstall -y opencv-python; "
        "pip install opencv-python-headless",
    ),
    "torch": (
        "raise OSError('libcudart.so.13: cannot open shared object file: No such file')",
        "pip install --force-reinstall torch torchvision",
    ),
    "torchvision": (
        "raise RuntimeError('operator torchvision::nms does not exist')",
        "pip install --force-reinstall torch torchvision",
    ),
    "pycocotools": (
        "raise ValueError('numpy.dtype size changed, may indicate binary incompatibility')",
        "pip install --force-reinstall --no-deps --no-cache-dir pycocotools",
    ),
    "scipy": (
        "raise ImportError('libgomp.so.1: cannot open shared object file: No such file')",
        "apt-get install libgomp1",
    ),
    "timm": ("import cv2", "opencv-python-headless"),
    "fvcore": ("import iopath_of_nobody", "pip install iopath_of_nobody"),
}


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages that look installed and fail when they are imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, (text, _) in BROKEN.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.parametrize("module", BROKEN)
def test_the_fix_mends_what_is_broken(broken: None, module: str, capsys) -> None:
    check = machine.check_package(module)
    assert not check.ok and BROKEN[module][1] in check.fix
    if module != "fvcore":  # needs a package that nobody knows
        assert guarded(lambda: __import__(module)) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1 and BROKEN[module][1] in said


def test_one_cause_is_one_fix(broken: None, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("timm", "cv2", "torch", "torchvision", "yaml")
    monkeypatch.setattr(machine, "PACKAGES", {name: machine.PACKAGES[name] for name in names})
    (found,) = (check for check in machine.packages(False) if not check.ok)
    assert found.detail.startswith("timm: it needs cv2: ImportError: libGL.so.1")
    assert found.fix.count("headless") == found.fix.count("--force-reinstall") == 1
    assert "make setup" not in found.fix


NOBODY = """
import os, pwd, sys
def getpwuid(uid):
    raise KeyError(uid)
pwd.getpwuid = getpwuid  # as for an unknown user id
for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
    os.environ.pop(name, None)
__alignzeg_late__ = True
from alignzeg.__main__ import main
assert main(["vocabulary", sys.argv[1]]) == 1
assert main(["demo", "--output", "~/demo"]) == 2
"""


def test_a_user_without_a_name_and_a_home(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NOBODY, "Gr\u00f6\u00dfe,red star"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gr\\xf6\\xdfe" in done.stdout
    assert "HOME is not set" in done.stderr
    assert not [*tmp_path.iterdir()]  # no folder named ~


def test_without_a_home_there_is_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert user_cache() == Path("/somewhere/.cache/alignzeg")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert user_cache() is None


def test_configs_are_utf8_whatever_the_locale(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("OUTPUT_DIR: Gr\u00f6\u00dfe\n", "utf-8")
    config = tmp_path / "a.yaml"
    config.write_text("_BASE_: base.yaml\nSEED: 3\n", "utf-8-sig")
    program = (
        "import sys; from alignzeg.config.reading import config_from_file as read; "
        "cfg = read(sys.argv[1]); assert (cfg.SEED, cfg.OUTPUT_DIR) == (3, 'Gr\\xf6\\xdfe')"
    )
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    subprocess.run([sys.executable, "-c", program, config], env=os.environ | ascii_only, check=True)
    config.write_text("OUTPUT_DIR: Gr\u00f6\u00dfe\n", "utf-16")
    with pytest.raises(ValueError, match=r"a.yaml', or its _BASE_, is not UTF-8 .*; save it as"):
        config_from_file(config)
