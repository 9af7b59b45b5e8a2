"""The command line, the machines it may name, and errors of the user."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from helpers import CONFIGS

from alignzeg.arguments import TrainingError
from alignzeg.commands import guarded
from alignzeg.commands.train import parse_args
from alignzeg.engine import (
    setup_config,
    validate,
)
from alignzeg.engine.processes.launch import find_distributed_env, slurm_url, world_size


def test_the_command_line_is_that_of_detectron2() -> None:
    with pytest.raises(ValueError, match="--num-gpus"):
        parse_args(["--num-gpus", "two"])
    args = parse_args(["--eval-only", "ALIGNZEG.CORRECTOR.GAMMA", "-1"])
    assert args.opts == ["ALIGNZEG.CORRECTOR.GAMMA", "-1"] and args.dist_url == "auto"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--num-gpus", "0"], "must be 1 or more"),
        (["--num-machines", "2", "--machine-rank", "2"], "it can be 0 to 1"),
        (["--num-machines", "2"], "need --dist-url"),
    ],
)
def test_impossible_machines_are_refused(argv: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        world_size(parse_args(argv))


def test_torchrun_and_slurm_are_recognised() -> None:
    one, many = parse_args([]), parse_args(["--num-gpus", "4"])
    torchrun = {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "h",
        "MASTER_PORT": "1",
    }
    place = find_distributed_env(one, torchrun)
    assert (place.rank, place.world_size, place.local_rank, place.local_world_size) == (5, 8, 1, 4)
    assert find_distributed_env(one, {**torchrun, "WORLD_SIZE": "1"}) is None

    slurm = {
        "SLURM_PROCID": "5",
        "SLURM_NTASKS": "8",
        "SLURM_LOCALID": "1",
        "SLURM_TASKS_PER_NODE": "4(x2)",
        "SLURM_JOB_NODELIST": "gpu[07-08,11],big3",
        "SLURM_JOB_ID": "1230042",
    }
    place = find_distributed_env(one, slurm)
    assert (place.rank, place.world_size, place.local_rank, place.local_world_size) == (5, 8, 1, 4)
    assert place.url == "tcp://gpu07:20042"
    assert slurm_url({**slurm, "SLURM_JOB_NODELIST": "n1,n2", "MASTER_PORT": "9"}) == "tcp://n1:9"
    assert find_distributed_env(many, slurm) is None
    assert find_distributed_env(one, {}) is None


def test_errors_of_the_user_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ValueError("a\nb")

    def interrupt() -> None:
        raise KeyboardInterrupt

    assert guarded(fail) == 2
    assert capsys.readouterr().err == "error: a b\n"
    assert guarded(interrupt) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert guarded(interrupt, resumable=True) == 130
    assert capsys.readouterr().err == "stopped; run the same command to go on\n"
    assert guarded(lambda: None) == 0 and guarded(lambda: 3) == 3
    with pytest.raises(ValueError, match="a\nb"):
        guarded(fail, debug=True)
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 / 0, debug=True)
    assert guarded(lambda: 1 / 0) == 1
    line = capsys.readouterr().err
    assert line.startswith("error: ZeroDivisionError: division by zero; ") and "--debug" in line
    assert line.count("\n") == 1
    for size in (10**15, 2**62):
        assert guarded(lambda size=size: torch.empty(size)) == 2
        assert "not enough memory; lower" in capsys.readouterr().err


def test_sigterm_stops_a_resumable_command_as_ctrl_c_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tidied = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            tidied.append(True)

    before = signal.getsignal(signal.SIGTERM)
    assert guarded(work, resumable=True) == 143
    assert tidied and capsys.readouterr().err == "stopped; run the same command to go on\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_failed_training_keeps_the_lines_of_its_log(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise TrainingError("seed 1 failed:\nthe end\nof its log")

    assert guarded(fail, resumable=True) == 1
    assert capsys.readouterr().err == "error: seed 1 failed:\nthe end\nof its log\n"


def test_every_config_is_valid(zeroshapes: Path) -> None:
    files = sorted(p for p in (CONFIGS / "zeroshapes").glob("*.yaml"))
    assert len(files) >= 3
    for file in files:
        cfg = setup_config(file)
        if cfg.ALIGNZEG.DATA.PSEUDO.ROOT:
            # Valid but for its pseudo-labels, which test_configs makes first.
            with pytest.raises(
                ValueError, match="holds no pseudo_labels.json.*--dataset zeroshapes_train"
            ):
                validate(cfg)
        else:
            validate(cfg)
