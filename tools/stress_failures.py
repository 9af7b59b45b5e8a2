#!/usr/bin/env python
"""Makes runs of two processes fail in every way, and checks that all leave and say why.

    python tools/stress_failures.py --rounds 20

One line for each way; exit code 1 if any run broke a promise: an exit code other than 0, the cause
in one line, no process left 60 seconds after the fault, and, for values that are not finite, a
bundle from which one process fails again.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from forks import MARKER, finish, forked, living

REPOSITORY = Path(__file__).resolve().parent.parent
TRAIN_NET = REPOSITORY / "tools" / "train_net.py"
LIMIT_SECONDS = 60
RUN_SECONDS = 300
OPTS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.META_ARCHITECTURE": "FaultyAlignZeg",
    "ALIGNZEG.PLUGINS": str(REPOSITORY / "tools" / "faults.py"),
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
    "parent": "",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A way to fail: what, in which process, and who started the processes."""

    kind: str
    rank: int
    launcher: str


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What was seen: what was wrong with it, and seconds from the fault until all were gone."""

    problem: str
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all rounds and reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--kinds", default=",".join(EXPECTED))
    parser.add_argument("--ranks", default="0,1")
    parser.add_argument(
        "--launchers",
        default="num-gpus,variables",
        help="num-gpus, variables (of torchrun, set by hand), torchrun (slow)",
    )
    args = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="alignzeg-stress-"))
    os.environ.update(
        DETECTRON2_DATASETS=str(folder / "data"), OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore"
    )
    prepare(folder / "data")
    wrong = 0
    for case in cases(args):
        outcomes = []
        for number in range(args.rounds):
            outcomes.append(
                attempt(case, folder / f"{case.launcher}-{case.kind}-{case.rank}-{number}")
            )
        problems = [outcome.problem for outcome in outcomes if outcome.problem]
        wrong += len(problems)
        slowest = max(outcome.seconds for outcome in outcomes)
        sys.stdout.write(
            f"{case.launcher:9} {case.kind:16} process {case.rank}: "
            f"{len(outcomes) - len(problems)} of {len(outcomes)}, gone after at most "
            f"{slowest:.1f} s{'; ' if problems else ''}{'; '.join(problems[:3])}\n"
        )
        sys.stdout.flush()
    if not wrong:
        shutil.rmtree(folder)
    return int(wrong > 0)


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """All combinations that make sense."""
    for launcher in args.launchers.split(","):
        for kind in args.kinds.split(","):
            if kind == "parent":
                # With variables set by hand nobody has started the processes.
                if launcher != "variables":
                    yield Case(kind, 0, launcher)
                continue
            for rank in args.ranks.split(","):
                yield Case(kind, int(rank), launcher)


def prepare(root: Path) -> None:
    """A few scenes, and everything imported that a run needs, once for all of them."""
    from alignzeg.data.zeroshapes import write_dataset
    from alignzeg.engine.processes import supervision

    write_dataset(root, "train", 4, size=64, workers=1)
    write_dataset(root, "val", 5, size=64, workers=1)
    # Nothing has been computed here, so that a fork is as good as a new process, and faster.
    supervision.START_METHOD = "fork"


def command_line(case: Case, output: Path) -> list[str]:
    """The words after `train_net.py`."""
    opts = {
        **OPTS,
        "OUTPUT_DIR": str(output),
        "ALIGNZEG.VLM.CACHE_DIR": str(output.parent / "text"),
        "FAULT.KIND": case.kind,
        "FAULT.RANK": str(case.rank),
    }
    if case.kind == "parent":
        opts |= {"FAULT.KIND": "", "SOLVER.MAX_ITER": "100000"}
    words = ["--config-file", str(REPOSITORY / "configs" / "zeroshapes" / "alignzeg.yaml")]
    words += ["--num-gpus", "2"] if case.launcher == "num-gpus" else []
    return [*words, *(word for pair in opts.items() for word in pair)]


def attempt(case: Case, output: Path) -> Outcome:
    """One run, and everything that must be true of it."""
    output.mkdir(parents=True)
    words = command_line(case, output)
    mark = f"{case.kind}{case.rank}{time.time()}"
    session = start(case, words, output, mark)
    fault, gone, code = observe(case, session, output, mark)
    text = (output / "stderr").read_text("utf-8", "replace")
    problem = ""
    if fault is None:
        problem = "the fault did not happen"
    elif gone is None:
        problem = "processes were left"
    elif gone - fault > LIMIT_SECONDS:
        problem = f"{gone - fault:.0f} s until all had gone"
    elif code == 0:
        problem = "exit code 0"
    elif case.kind != "parent":
        problem = check_report(case, text)
    if problem:
        problem += f" (see {output})"
    else:
        shutil.rmtree(output)
    return Outcome(problem, (gone or time.time()) - (fault or time.time()))


def check_report(case: Case, text: str) -> str:
    """What is wrong with what the user saw."""
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    pattern = EXPECTED[case.kind].replace("{rank}", str(case.rank))
    found = next(filter(None, (re.search(pattern, line) for line in errors)), None)
    if found is None:
        return f"the report does not name the cause: {errors or text[-300:]!r}"
    if case.kind not in VALUES:
        return ""
    again = Path(found.group(1)).parent.parent / "again"
    pid = forked(lambda: replay(found.group(1)), again)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    seen = (again.with_suffix(".stdout")).read_text("utf-8")
    if code != 3 or not re.search("now: .*" + VALUES[case.kind], seen):
        return f"the replay gave exit code {code}: {seen[-300:]!r}"
    return ""


def replay(bundle: str) -> int:
    """`python -m alignzeg replay`."""
    from alignzeg.__main__ import main as alignzeg

    return alignzeg(["replay", bundle])


def train(words: Sequence[str]) -> int:
    """`tools/train_net.py`."""
    from alignzeg import engine

    spec = importlib.util.spec_from_file_location("train_net", TRAIN_NET)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return engine.guarded(lambda: module.start(engine.parse_args(words)))


def start(case: Case, words: Sequence[str], output: Path, mark: str) -> int:
    """Starts a run in a session of its own; returns the session's id."""
    logs = output / "run"
    if case.launcher == "num-gpus":
        pid = forked(lambda: train(words), logs)
    elif case.launcher == "variables":
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = str(server.getsockname()[1])
        pid = forked(lambda: by_variables(words, port), logs)
    else:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        with logs.with_suffix(".stdout").open("w") as out, (output / "stderr").open("w") as err:
            process = subprocess.Popen(
                [*torchrun, "--nproc-per-node", "2", str(TRAIN_NET), *words],
                env={**os.environ, MARKER: mark},
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        return process.pid
    (output / "stderr").symlink_to(logs.with_suffix(".stderr"))
    return pid


def by_variables(words: Sequence[str], port: str) -> int:
    """Two processes whose places are in variables, as torchrun sets them; nobody watches them."""
    pids = []
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
            finish(lambda: train(words))
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return 0 if 0 in codes else 1


def observe(
    case: Case, session: int, output: Path, mark: str
) -> tuple[float | None, float | None, int]:
    """When the fault happened, when the last process had gone, and the exit code."""
    fault: float | None = None
    code: int | None = None
    limit = time.time() + RUN_SECONDS
    while time.time() < limit:
        if code is None:
            pid, status = os.waitpid(session, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if pid else None
        if fault is None and case.kind == "parent":
            curve = output / "losses.jsonl"
            if curve.exists() and curve.read_text().count("\n") > 1:
                fault = time.time()
                os.kill(session, signal.SIGKILL)
        elif fault is None and (output / "fault").exists():
            fault = float((output / "fault").read_text() or time.time())
            limit = fault + 2 * LIMIT_SECONDS
        if code is not None and not living(session, mark):
            return fault, time.time(), code
        time.sleep(0.1)
    for pid in living(session, mark):
        os.kill(pid, signal.SIGKILL)
    return fault, None, code or 0


if __name__ == "__main__":
    sys.exit(main())
