"""When to save and when to evaluate, also in a run that was stopped in between; and the losses."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from detectron2.config import CfgNode
from detectron2.engine import hooks
from detectron2.utils import comm

from alignzeg.data.labels import eval_vocabulary
from alignzeg.engine.checkpoints.checkpoint import AlignZegCheckpointer
from alignzeg.engine.checkpoints.state import isolated_rng
from alignzeg.engine.processes.process_exit import EXIT_SAVED, StopRequest
from alignzeg.structures import Vocabulary

logger = logging.getLogger(__name__)

# The losses of every single iteration, exact to the bit, for comparing runs.
CURVE_FILE = "losses.jsonl"


class SaveHook(hooks.PeriodicCheckpointer):
    """Detectron2's, which saves every few steps and after the last one; also on a request to stop.

    It belongs into every process, after the learning rate's hook and before the evaluation's.
    """

    def __init__(self, checkpointer: AlignZegCheckpointer, period: int, stop: StopRequest) -> None:
        super().__init__(checkpointer, period)
        self._stop = stop

    def before_train(self) -> None:
        """Writes the final checkpoint of a run that was killed just before it."""
        super().before_train()
        start = self.trainer.start_iter
        if start and start == self.trainer.max_iter:
            self.trainer.iter = start - 1
            self.checkpointer.save("model_final", iteration=start - 1)
            self.trainer.iter = start

    def after_step(self) -> None:
        """Saves if it is time.

        Raises:
            SystemExit: EXIT_SAVED, in all processes, if one of them was asked to stop.
        """
        step = self.trainer.iter
        if not self._stop.agreed():
            super().after_step()
            return
        self._stop.disarm()
        super().after_step()
        if (step + 1) % self.period and step + 1 < self.trainer.max_iter:
            self.checkpointer.save(f"model_{step:07d}", iteration=step)
        logger.warning(
            "stopped by %s: saved at iteration %d; start again with --resume (exit code %d)",
            *(self._stop.received or "a signal to another process", step, EXIT_SAVED),
        )
        raise SystemExit(EXIT_SAVED)


def selects_on_the_test(metric: str, tested: Iterable[Vocabulary], hold_out: str) -> bool:
    """Whether choosing a checkpoint by a figure looks at classes that stand for the unknown.

    sIoU alone knows seen classes only, and classes held out of the seen ones may be chosen on.
    """
    return not hold_out and not metric.endswith("/sIoU") and any(v.unseen_ids for v in tested)


class KeepBest:
    """Keeps the best checkpoint by one figure of the event storage, the higher the better."""

    def __init__(self, checkpointer: AlignZegCheckpointer, metric: str) -> None:
        self._checkpointer = checkpointer
        self.metric = metric
        self.value, self.iteration = -math.inf, -1

    def consider(self, storage: Any, step: int) -> None:
        """Saves if the evaluation just made is the best; to be called in all processes."""
        value, _ = storage.latest().get(self.metric, (math.nan, step))
        value = comm.all_gather(float(value))[0]
        if value > self.value:
            self.value, self.iteration = value, step
            chosen = {"iteration": step, "selected": {self.metric: value}}
            self._checkpointer.save("model_best", point=False, **chosen)
            return
        if self.iteration < 0:
            logger.warning(
                "ALIGNZEG.CHECKPOINT.BEST %s is not defined after iteration %d, so there is no "
                "model_best.pth: the test set shows no pixel of such a class; choose by another "
                "figure, such as sem_seg/sIoU",
                *(self.metric, step),
            )
            return
        logger.info(
            "%s is %.4f after iteration %d; the best is %.4f after iteration %d",
            *(self.metric, value, step, self.value, self.iteration),
        )


def build_keep_best(cfg: CfgNode, checkpointer: AlignZegCheckpointer) -> KeepBest | None:
    """By ALIGNZEG.CHECKPOINT.BEST, if that is set; warns of a choice that looks at the test."""
    best, hold_out = cfg.ALIGNZEG.CHECKPOINT.BEST, cfg.ALIGNZEG.DATA.HOLD_OUT
    if not best:
        return None
    tested = [eval_vocabulary(cfg, name) for name in cfg.DATASETS.TEST]
    if selects_on_the_test(best, tested, hold_out):
        logger.warning(
            "ALIGNZEG.CHECKPOINT.BEST %s chooses the checkpoint on unseen classes: that is "
            "selection on the test. Report the last checkpoint, or choose by sem_seg/sIoU or "
            "on classes held out by ALIGNZEG.DATA.HOLD_OUT",
            best,
        )
    return KeepBest(checkpointer, best)


class EvaluationHook(hooks.EvalHook):
    """Evaluates every few steps without a trace in the random numbers of the training.

    An evaluation that a stop or a kill has prevented is made up for when the run goes on. A period
    of 0 evaluates after the last step only. `evaluate` returns results by task, none but in the
    first process.
    """

    def __init__(
        self,
        period: int,
        evaluate: Callable[[], Mapping[str, Any]],
        stop: StopRequest,
        best: KeepBest | None = None,
    ) -> None:
        super().__init__(period, evaluate)
        self._best = best
        self._stop = stop
        self._done = 0

    def before_train(self) -> None:
        """Makes up for the evaluation that the checkpoint was saved before."""
        step = self.trainer.start_iter
        due = self._period > 0 and step % self._period == 0 and self._done != step
        if due and 0 < step < self.trainer.max_iter:
            self.trainer.storage.iter = step - 1
            self._evaluate(step)
            self.trainer.storage.iter = step

    def _do_eval(self) -> None:
        if not self._stop.stopping:
            self._evaluate(min(self.trainer.iter + 1, self.trainer.max_iter))

    def _evaluate(self, step: int) -> None:
        with isolated_rng():
            super()._do_eval()
        self._done = step
        if self._best is not None:
            self._best.consider(self.trainer.storage, step - 1)

    def state_dict(self) -> dict[str, Any]:
        """The last step evaluated, and the best so far."""
        best = self._best
        if best is None:
            return {"done": self._done}
        return {
            **{"done": self._done, "metric": best.metric},
            **{"value": best.value, "of": best.iteration},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self._done = state_dict["done"]
        # The best by another figure is none by this one.
        same = self._best is not None and state_dict.get("metric") == self._best.metric
        if self._best is not None and same:
            self._best.value, self._best.iteration = state_dict["value"], state_dict["of"]


class LossCurve(hooks.HookBase):
    """Adds one line for each step to `losses.jsonl`: the iteration and every loss term.

    `metrics.json` holds medians over 20 iterations; here nothing is smoothed. A resumed run writes
    the iterations after its checkpoint once more; `read_curve` takes the later ones.
    """

    def __init__(self, folder: str) -> None:
        self._path = Path(folder) / CURVE_FILE
        self._file: IO[str] | None = None

    def before_train(self) -> None:
        """Opens the file, and ends a line that a kill has cut short."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        last = b""
        if self._path.exists() and self._path.stat().st_size:
            with self._path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                last = file.read()
        self._file = self._path.open("a", buffering=1, encoding="utf-8")
        if last not in (b"", b"\n"):
            self._file.write("\n")

    def after_step(self) -> None:
        """Writes the losses of the step that was just made."""
        now, latest = self.trainer.iter, self.trainer.storage.latest()
        terms = {k: value for k, (value, at) in latest.items() if "loss" in k and at == now}
        if self._file is not None and terms:
            self._file.write(json.dumps({"iteration": now, **terms}) + "\n")

    def after_train(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
