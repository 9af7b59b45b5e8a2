#!/usr/bin/env python
"""Makes runs of two processes fail in every way, and checks that all leave and say why.

    python dev/stress_failures.py --rounds 20

One line for each way; exit code 1 if any run broke a promise: an exit code other than 0, the cause
in one line and no traceback, no process left 60 seconds after the fault, and, for values that are
not finite, exit code 3 and a bundle from which one process fails again.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import itertools
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from forks import LAUNCHERS, forked, living

from alignzeg.__main__ import main as alignzeg
from alignzeg.data.zeroshapes import write_dataset
from alignzeg.engine.processes.errors import NON_FINITE

REPOSITORY = Path(__file__).resolve().parent.parent
# From the fault until all processes have gone; and to reach the fault, which nobody promises.
LIMIT_SECONDS = 60
START_SECONDS = 500
OPTS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.META_ARCHITECTURE": "FaultyAlignZeg",
    "ALIGNZEG.PLUGINS": str(REPOSITORY / "dev" / "faults.py"),
    "ALIGNZEG.EXTRACTOR.NUM_QUERIES": "9",
    "ALIGNZEG.EXTRACTOR.HIDDEN_DIM": "32",
    "ALIGNZEG.EXTRACTOR.FFN_DIM": "32",
    "ALIGNZEG.EXTRACTOR.LAYERS": "2",
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.WARMUP_ITERS": "0",
    "SOLVER.MAX_ITER": "3",
    "DATALOADER.NUM_WORKERS": "1",
}
VALUES = {
    "image": r"the input image of .*\.png.* is NaN",
    "feature": r"the output of backbone.* is NaN .*\.png",
    "cost": r"cost of layer \d is not finite for image .*\.png",
    "loss": r"loss_dice is NaN for .*\.png",
    "gradient": r"the gradient of head\..* is NaN .*\.png",
}
ENDS = {
    "raise": r"process {rank}.*a fault on command",
    "kill": r"process {rank}.*(killed by SIGKILL|died without a word)",
    "exit": r"process {rank}.*(exit code 7|died without a word)",
}
EXPECTED = {
    **{
        kind: rf"process {{rank}}: .*{text}.*; iteration 1, learning rate .*replay (\S+)"
        for kind, text in VALUES.items()
    },
    **ENDS,
    **{
        f"evaluation-{kind}": text + (r".*the last image was .*\.png" if kind == "raise" else "")
        for kind, text in ENDS.items()
    },
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A way to fail: who started the processes, what happens, and in which of them."""

    launcher: str
    kind: str
    rank: int

    def __str__(self) -> str:
        """As in --cases."""
        return f"{self.launcher}/{self.kind}/{self.rank}"


CASES = [
    *(Case(*parts) for parts in itertools.product(LAUNCHERS, EXPECTED, (0, 1))),
    # By variables nobody has started the processes.
    *(Case(launcher, "parent", 0) for launcher in LAUNCHERS if launcher != "variables"),
]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What was seen: what was wrong with it, and seconds from the fault until all were gone."""

    problem: str
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all rounds and reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--cases",
        default="*",
        help=f"comma-separated patterns of LAUNCHER/KIND/PROCESS, such as {CASES[0]} or */parent/*",
    )
    args = parser.parse_args(argv)
    patterns = args.cases.split(",")
    chosen = [case for case in CASES if any(fnmatch.fnmatch(str(case), p) for p in patterns)]
    if not chosen:
        parser.error(f"--cases {args.cases} matches none of {[str(case) for case in CASES]}")
    folder = Path(tempfile.mkdtemp(prefix="alignzeg-stress-"))
    os.environ.update(
        DETECTRON2_DATASETS=str(folder / "data"), OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore"
    )
    write_dataset(folder / "data", "train", 4, size=64, workers=1)
    write_dataset(folder / "data", "val", 5, size=64, workers=1)
    wrong = 0
    for case in chosen:
        begin = time.monotonic()
        outcomes = [
            attempt(case, folder / str(case) / str(number)) for number in range(args.rounds)
        ]
        problems = [outcome.problem for outcome in outcomes if outcome.problem]
        wrong += len(problems)
        slowest = max(outcome.seconds for outcome in outcomes)
        sys.stdout.write(
            f"{str(case):32} {len(outcomes) - len(problems)} of {len(outcomes)}, gone after at "
            f"most {slowest:.1f} s, {(time.monotonic() - begin) / len(outcomes):.0f} s a run"
            f"{'; ' if problems else ''}{'; '.join(problems[:3])}\n"
        )
        sys.stdout.flush()
    if not wrong:
        shutil.rmtree(folder)
    return int(wrong > 0)


def command_line(case: Case, output: Path) -> list[str]:
    """The words after `train_net.py`."""
    opts = {
        **OPTS,
        "OUTPUT_DIR": str(output),
        "ALIGNZEG.VLM.CACHE_DIR": str(output.parents[3] / "text"),
        "FAULT.KIND": case.kind,
        "FAULT.RANK": str(case.rank),
    }
    if case.kind == "parent":
        opts |= {"FAULT.KIND": "", "SOLVER.MAX_ITER": "100000"}
    words = ["--config-file", str(REPOSITORY / "configs" / "zeroshapes" / "alignzeg.yaml")]
    return [*words, *(word for pair in opts.items() for word in pair)]


def attempt(case: Case, output: Path) -> Outcome:
    """One run, and everything that must be true of it."""
    output.mkdir(parents=True)
    words = command_line(case, output)
    session = forked(lambda: LAUNCHERS[case.launcher](words), output / "run")
    fault, gone, code = observe(case, session, output)
    problem = ""
    if fault is None:
        problem = "the fault did not happen"
    elif gone is None:
        problem = "processes were left"
    elif gone - fault > LIMIT_SECONDS:
        problem = f"{gone - fault:.0f} s until all had gone"
    elif code == 0 or (case.kind in VALUES and case.launcher != "torchrun" and code != NON_FINITE):
        problem = f"exit code {code}"
    elif case.kind != "parent":
        problem = check_report(case, output)
    if problem:
        problem += f" (see {output})"
    else:
        shutil.rmtree(output)
    return Outcome(problem, (gone or time.time()) - (fault or time.time()))


def check_report(case: Case, output: Path) -> str:
    """What is wrong with what the user saw."""
    text = (output / "run.stderr").read_text("utf-8", "replace")
    # torchrun always shows its own.
    if "Traceback (most" in text and case.launcher != "torchrun":
        return f"a traceback: {text[-300:]!r}"
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    pattern = EXPECTED[case.kind].replace("{rank}", str(case.rank))
    found = next(filter(None, (re.search(pattern, line) for line in errors)), None)
    if found is None:
        return f"the report does not name the cause: {errors or text[-300:]!r}"
    if case.kind not in VALUES:
        return ""
    pid = forked(lambda: alignzeg(["replay", found.group(1)]), output / "again")
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    seen = (output / "again.stdout").read_text("utf-8")
    if code != 3 or not re.search("now: .*" + VALUES[case.kind], seen):
        return f"the replay gave exit code {code}: {seen[-300:]!r}"
    return ""


def observe(case: Case, session: int, output: Path) -> tuple[float | None, float | None, int]:
    """When the fault happened, when the last process had gone, and the exit code."""
    fault: float | None = None
    code: int | None = None
    limit = time.time() + START_SECONDS
    while time.time() < limit:
        if code is None:
            pid, status = os.waitpid(session, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if pid else None
        if fault is None and case.kind == "parent":
            curve = output / "losses.jsonl"
            if curve.exists() and curve.read_text("utf-8").count("\n") > 1:
                fault = time.time()
                os.kill(session, signal.SIGKILL)
                limit = fault + 2 * LIMIT_SECONDS
        elif fault is None and (output / "fault").exists():
            fault = float((output / "fault").read_text("utf-8") or time.time())
            limit = fault + 2 * LIMIT_SECONDS
        if code is not None and not living(session):
            return fault, time.time(), code
        time.sleep(0.1)
    for pid in living(session):
        os.kill(pid, signal.SIGKILL)
    return fault, None, code or 0


if __name__ == "__main__":
    sys.exit(main())
