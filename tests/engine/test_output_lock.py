"""Runs and the commands that start them: one run in one folder, and none left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import CONFIGS, REPOSITORY, TINY_OPTS

from alignzeg.__main__ import main
from alignzeg.arguments import PARENT
from alignzeg.engine.run import lock_output

HOLD = """
import sys, time
from alignzeg.engine.run import lock_output
lock_output(sys.argv[1])
print("held", flush=True)
time.sleep(600)
"""
# Starts a command as the ablation and the demo do.
START = f"""
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], env=os.environ | {{"{PARENT}": str(os.getpid())}})
print(child.pid, flush=True)
child.wait()
"""


def command(output: Path) -> list[str]:
    return [
        *(sys.executable, str(REPOSITORY / "tools" / "train_net.py"), "--resume", "--config-file"),
        *(str(CONFIGS / "zeroshapes" / "alignzeg.yaml"), *TINY_OPTS),
        *("OUTPUT_DIR", str(output), "SOLVER.MAX_ITER", "1000000", "DATASETS.TEST", "()"),
        *("SOLVER.CHECKPOINT_PERIOD", "1000000", "SOLVER.WARMUP_ITERS", "0"),
    ]


def test_a_folder_belongs_to_one_process_as_long_as_that_lives(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    other = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"held\n"
    with pytest.raises(ValueError, match=rf"process {other.pid} is training into .*run'; stop it"):
        lock_output(folder)
    other.kill()
    other.wait()
    lock_output(folder)
    # A process does not stand in its own way: training, and then resuming, in one script.
    lock_output(folder)
    worker = os.fork()
    if worker == 0:
        time.sleep(60)
        os._exit(0)
    code = "import sys; from alignzeg.engine.run import lock_output; lock_output(sys.argv[1])"
    again = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    assert f"process {os.getpid()} is training into" in again.stderr


def test_a_run_saves_and_ends_with_the_command_that_started_it(
    zeroshapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    starter = subprocess.Popen(
        [sys.executable, "-c", START, *command(output)], stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    child = int(starter.stdout.readline())
    losses = output / "losses.jsonl"
    # Before the first step there is nothing to save.
    while not (losses.is_file() and losses.stat().st_size):
        assert starter.poll() is None
        time.sleep(0.1)
    assert main(["train", *command(output)[2:]]) == 2
    assert f"error: process {child} is training into OUTPUT_DIR" in capsys.readouterr().err
    starter.kill()
    starter.wait()
    end = time.monotonic() + 60
    while Path(f"/proc/{child}").exists() and "zombie" not in state(child):
        assert time.monotonic() < end
        time.sleep(0.1)
    saved = (output / "last_checkpoint").read_text()
    assert (output / saved).is_file()
    assert "the command that started this run has ended" in (output / "log.txt").read_text()


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "zombie"
