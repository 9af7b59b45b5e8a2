"""Runs one command line in a process of its own and judges what a user would see of it."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from alignzeg.__main__ import main as command
from alignzeg.engine import run
from alignzeg.engine.records.provenance import describe_code
from fuzzing.common import TRAIN, Case

REPOSITORY = Path(__file__).resolve().parent.parent.parent
# Address space that a case may add to what the parent holds.
MEMORY = 3 * 2**30
# Exit codes that an error of the input may have; 1 is a fault of the program.
REFUSED = (2, 3)


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        result: ran, refused, slow (stopped at the time limit), or one of the failures: traceback,
            bug (an error that is not the user's), lines (more or less than one line), killed,
            hacked (code in the input was run).
        detail: the error line, or the end of the output.
    """

    result: str
    detail: str

    @property
    def failed(self) -> bool:
        """Whether the promise was broken."""
        return self.result not in ("ran", "refused", "slow")


def warm_up() -> None:
    """Finds out once what every case would find out again: compilers, versions, source hashes."""
    found = run.collect_env_info()
    run.collect_env_info = lambda: found
    describe_code()


def environment(case: Case) -> dict[str, str]:
    """Variables of a case."""
    return {
        "DETECTRON2_DATASETS": str(case.data),
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
    }


def run_forked(case: Case, folder: Path, limit: float) -> Outcome:
    """Runs a case in a fork of this process, which has everything imported already.

    Args:
        case: what to run.
        folder: where; its output is left there as stdout and stderr.
        limit: seconds.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = _inside(case, folder)
        finally:
            os._exit(code)
    deadline = time.monotonic() + limit
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return judge(folder, os.waitstatus_to_exitcode(status))
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Outcome("slow", f"stopped after {limit:g} s")
        time.sleep(0.01)


def _inside(case: Case, folder: Path) -> int:
    """What the forked process does: as little as possible beside the command itself."""
    os.setpgid(0, 0)
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
    sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", errors="replace", closefd=False)
    used = resource.getpagesize() * int(
        Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]
    )
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    os.environ.update(environment(case))
    argv = list(case.argv)
    sys.argv = [case.program, *argv]
    try:
        return command(["train", *argv] if case.program == TRAIN else argv)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 (as the interpreter does with what nobody caught)
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def run_started(case: Case, folder: Path, limit: float) -> Outcome:
    """Runs a case as a user does, in a new interpreter."""
    script = [str(REPOSITORY / "tools" / "train_net.py")]
    words = [sys.executable, *(script if case.program == TRAIN else ["-m", "alignzeg"]), *case.argv]
    if any("\0" in word for word in words):
        return Outcome("refused", "no operating system passes on such a word")
    try:
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            done = subprocess.run(
                words,
                cwd=folder,
                env={**os.environ, **environment(case)},
                stdout=out,
                stderr=err,
                timeout=limit,
                check=False,
            )
    except subprocess.TimeoutExpired:
        return Outcome("slow", f"stopped after {limit:g} s")
    return judge(folder, done.returncode)


def judge(folder: Path, code: int) -> Outcome:
    """Reads the output of a case and its exit code."""
    out, err = (
        (folder / name).read_text(encoding="utf-8", errors="replace")
        for name in ("stdout", "stderr")
    )
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    end = (errors[-1] if errors else (err or out).strip()[-300:])[:400]
    if list(folder.rglob("hacked")):
        return Outcome("hacked", end)
    if (folder / "bug.txt").exists():
        return Outcome("bug", (folder / "bug.txt").read_text("utf-8"))
    if "Traceback (most" in out + err:
        return Outcome("traceback", end)
    if code == 0:
        return Outcome("ran", "")
    if code < 0:
        return Outcome("killed", f"signal {-code}: {end}")
    if code not in REFUSED:
        return Outcome("bug", f"exit code {code}: {end}")
    if len(errors) != 1 or len(errors[0]) < 15 or not err.rstrip().endswith(errors[0].rstrip()):
        return Outcome("lines", end)
    return Outcome("refused", errors[0][:400])
