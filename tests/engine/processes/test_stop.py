"""Two processes that are told to stop, by whatever way a signal takes: saved, and gone on from."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from forks import LAUNCHERS, forked
from helpers import CONFIGS, TINY_OPTS, TOY_PLUGIN
from stress_kills import difference, final

from alignzeg.engine.processes.process_exit import StopRequest

# In its third step the run is sent a signal; then it takes its time, for the signal to arrive.
PLUGIN = f"""
import os, signal, time
from alignzeg.engine import import_plugin
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm

toy = import_plugin("{TOY_PLUGIN}")
add_config = toy.add_config


@META_ARCH_REGISTRY.register()
class StoppedSegmenter(toy.ToySegmenter):
    def forward(self, batch):
        losses = super().forward(batch)
        name, *targets = os.environ["STOPPED_BY"].split()
        if self.steps == 3 and (comm.get_rank() == 0 or "each" in targets):
            number = getattr(signal, name)
            if "parent" in targets:
                os.kill(os.getppid(), number)
            elif "group" in targets:
                os.killpg(0, number)
            elif "each" in targets:
                os.kill(os.getpid(), number)
        time.sleep(0.3 if self.steps > 2 and targets else 0)
        return losses
"""
STEPS = 80
NEVER = "SIGTERM"


def run(launcher: str, output: Path, stopped_by: str) -> int:
    """Trains in two processes, going on where the folder stands; returns the exit code."""
    plugin = output.parent / "plugin.py"
    plugin.write_text(PLUGIN)
    opts = ["ALIGNZEG.PLUGINS", str(plugin), "MODEL.META_ARCHITECTURE", "StoppedSegmenter"]
    opts += ["SOLVER.MAX_ITER", str(STEPS), "SOLVER.CHECKPOINT_PERIOD", "1000"]
    opts += ["ALIGNZEG.DATA.SYNONYM_COSINE", "1", "DATASETS.TEST", "()"]
    words = ["--resume", "--config-file", str(CONFIGS / "zeroshapes" / "alignzeg.yaml")]
    words += [*TINY_OPTS, *opts, "DATALOADER.NUM_WORKERS", "1", "OUTPUT_DIR", str(output)]

    def start() -> int:
        os.environ["STOPPED_BY"] = stopped_by
        return LAUNCHERS[launcher](words)

    pid = forked(start, output.with_suffix(".run"))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_signal_saves_and_the_run_goes_on_to_the_bit(zeroshapes: Path, tmp_path: Path) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    assert run("num-gpus", whole, NEVER) == 0
    last = -1
    for launcher, stopped_by, expected in (
        ("num-gpus", "SIGTERM parent", 75),
        ("num-gpus", "SIGUSR1 parent", 75),
        # What a process manager does: parent and children get it.
        ("num-gpus", "SIGTERM group", 75),
        # What srun does.
        ("variables", "SIGUSR1 each", 75),
        # torchrun has an exit code of its own for whatever does not end well.
        ("torchrun", "SIGTERM parent", 1),
        ("torchrun", "SIGUSR1 each", 1),
    ):
        code = run(launcher, pieces, stopped_by)
        text = f"{launcher}, {stopped_by}: {pieces.with_suffix('.stderr').read_text()}"
        assert code == expected, text
        name = (pieces / "last_checkpoint").read_text()
        step = int(name.removeprefix("model_").removesuffix(".pth"))
        assert last + 3 <= step < STEPS - 1, text
        last = step
    assert run("num-gpus", pieces, NEVER) == 0
    assert difference(final(whole), final(pieces)) == ""


@pytest.mark.parametrize(
    ("number", "saving", "code"),
    [(signal.SIGTERM, False, 143), (signal.SIGUSR1, False, 138), (signal.SIGTERM, True, 0)],
)
def test_a_step_has_the_grace_time_and_a_save_all_it_needs(
    tmp_path: Path, number: int, saving: bool, code: int
) -> None:
    def step() -> int:
        stop = StopRequest(grace_s=0.2)
        with stop.listening():
            os.kill(os.getpid(), number)
            assert stop.agreed()
            if saving:
                stop.disarm()
            time.sleep(0.6 if saving else 60)
        return 0

    start = time.monotonic()
    pid = forked(step, tmp_path / "step")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
    assert time.monotonic() - start < 30
