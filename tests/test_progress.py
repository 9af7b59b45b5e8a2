"""What a command says while it is silent."""

from __future__ import annotations

import gc
import io
import subprocess
import sys
import time

import pytest

from alignzeg import machine, progress
from alignzeg.commands.doctor import unsearched
from alignzeg.machine import Check


def test_long_work_is_announced_once(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.waiting("embedding names", patience=0.01):
        time.sleep(0.3)
    assert capsys.readouterr().err == "embedding names ...\n"


def test_short_work_is_not_announced(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.waiting("embedding names", patience=0.2):
        pass
    time.sleep(0.4)
    assert capsys.readouterr().err == ""


def test_work_that_fails_is_not_announced_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no"), progress.waiting("it", patience=0.2):
        raise ValueError("no")
    time.sleep(0.4)
    assert capsys.readouterr().err == ""


def test_a_long_work_says_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each look at the clock is three seconds later: at 3, 18 and 33 a line is due.
    monkeypatch.setattr(progress.time, "monotonic", iter(range(0, 100, 3)).__next__)
    assert list(progress.tracked(range(9), "Looking", 9)) == list(range(9))
    said = capsys.readouterr().err.splitlines()
    assert said == [f"Looking: {n} of 9" for n in (1, 5, 9)]


def test_only_a_terminal_is_told_of_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, said in ((io.StringIO(), ""), (Terminal(), "loading PyTorch and Detectron2 ...\n")):
        monkeypatch.setattr(sys, "stderr", stream)
        progress.say_loading()
        assert stream.getvalue() == said


def test_a_training_does_not_wait_for_the_statistics_of_scipy() -> None:
    code = "import sys, alignzeg; sys.exit('scipy.stats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_doctor_names_a_package_before_it_imports_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def check(module: str) -> Check:
        asked.append(module)
        return Check(module, True, "1.0")

    monkeypatch.setattr(machine, "check_package", check)
    assert next(machine.packages(False)).name == asked[0] == "torch"
    assert len(asked) == 1


@pytest.mark.parametrize("enabled", [True, False])
def test_doctor_leaves_the_garbage_collector_as_it_was(enabled: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with unsearched():
            assert not gc.isenabled()
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
