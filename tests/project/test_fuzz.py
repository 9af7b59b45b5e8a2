"""A few rounds of the fuzz harness, and that it sees what it looks for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fuzzing.sandbox import judge
from helpers import REPOSITORY


def test_a_few_rounds_of_every_kind(tmp_path: Path) -> None:
    words = [sys.executable, "dev/fuzz.py", "--rounds", "20", "--workers", "1"]
    done = subprocess.run(
        [*words, "--keep", str(tmp_path), "--started-every", "0"],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"20 cases in \d+ s, 0 failures", done.stdout)
    for kind, count in (("config", 8), ("classes", 4), ("labels", 4), ("checkpoint", 4)):
        assert re.search(rf"^{kind} +{count} cases: ", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("code", "out", "err", "result"),
    [
        (0, "fine\n", "a warning\n", "ran"),
        (2, "", "a warning\nerror: label file a.png holds [77]\n", "refused"),
        (3, "", "error: the loss is not finite\n", "refused"),
        (2, "Traceback (most recent call last):\n", "error: label file a.png\n", "traceback"),
        (1, "", "error: TypeError: 'int' object is not iterable\n", "bug"),
        (2, "", "error: label file a.png\nerror: once more of it\n", "lines"),
        (2, "", "error: label file a.png\nand more\n", "lines"),
        (2, "", "error: \n", "lines"),
        (-11, "", "", "killed"),
    ],
)
def test_what_breaks_the_promise_is_seen(tmp_path, code, out, err, result):
    (tmp_path / "stdout").write_text(out)
    (tmp_path / "stderr").write_text(err)
    assert judge(tmp_path, code).result == result
    assert judge(tmp_path, code).failed == (result not in ("ran", "refused"))


def test_code_that_was_run_is_seen(tmp_path: Path) -> None:
    for name in ("stdout", "stderr"):
        (tmp_path / name).write_text("")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "hacked").mkdir()
    assert judge(tmp_path, 0).result == "hacked"
