"""Runs of `train_net.py` in forks, which spares each of them the imports; for the stress tools.

A fork is as good as a new interpreter as long as nothing was computed before it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler
from torch.distributed.run import main as torchrun

from alignzeg.__main__ import main as alignzeg
from alignzeg.engine.processes import supervision

TRAIN_NET = Path(__file__).resolve().parent.parent / "tools" / "train_net.py"


def forked(run: Callable[[], int], logs: Path) -> int:
    """Runs something in a fork, in a session of its own, writing to LOGS.stdout and .stderr.

    Returns:
        The fork's process id, which is the session's.
    """
    pid = os.fork()
    if pid == 0:
        os.setsid()
        for number, suffix in ((1, ".stdout"), (2, ".stderr")):
            file = os.open(logs.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
        # Somebody else may have replaced them.
        sys.stdout, sys.stderr = (
            open(n, "w", encoding="utf-8", buffering=1, closefd=False) for n in (1, 2)
        )
        finish(run)
    return pid


def finish(run: Callable[[], int]) -> Any:
    """Ends this fork with the exit code of what it runs."""
    # Threads do not survive a fork.
    torch.set_num_threads(1)
    code = 1
    try:
        code = run()
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:  # noqa: BLE001 (it goes to the run's own stderr)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def train(words: Sequence[str]) -> int:
    """`alignzeg train`; returns its exit code."""
    return alignzeg(["train", *words])


def by_option(words: Sequence[str]) -> int:
    """Two processes that --num-gpus asks for."""
    supervision.START_METHOD = "fork"
    return train(["--num-gpus", "2", *words])


def by_variables(words: Sequence[str]) -> int:
    """Two processes whose places are in variables, as under SLURM; nobody watches them.

    Returns:
        The exit code of the process that ended worst, 0 if one of them ended well.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    pids = []
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
            finish(lambda: train(words))
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return 0 if 0 in codes else max(codes)


class Fork(subprocess.Popen):
    """A fork that runs `train_net.py` where Popen would start an interpreter that does."""

    def _execute_child(self, args: Any, *others: Any) -> None:
        variables = others[5]
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            os.environ.update(variables)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
                signal.signal(number, signal.SIG_DFL)
            finish(lambda: train(args[args.index(str(TRAIN_NET)) + 1 :]))
        self._child_created = True


def by_torchrun(words: Sequence[str]) -> int:
    """Two processes started, watched and ended by torchrun."""
    SubprocessHandler._popen = lambda _, args, env: Fork(args, env=env)
    torchrun(["--standalone", "--nproc-per-node", "2", str(TRAIN_NET), *words])
    return 0


LAUNCHERS = {"num-gpus": by_option, "variables": by_variables, "torchrun": by_torchrun}


def living(session: int) -> list[int]:
    """Processes of a session that have not ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, of = (
                (folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[:4]
            )
        except OSError:
            continue
        if state != "Z" and int(of) == session:
            found.append(int(folder.name))
    return found
