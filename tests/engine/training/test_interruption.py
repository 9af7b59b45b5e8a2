"""Signals, kills and evaluations in the middle of a run: what is saved, and what is made up for."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from detectron2.engine import HookBase
from resume_cases import assert_same, config, run

from alignzeg.engine import Trainer, read_checkpoint
from alignzeg.engine.processes.process_exit import EXIT_SAVED


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_and_leaves(zeroshapes: Path, tmp_path: Path, name: str) -> None:
    cfg = config(tmp_path, "SOLVER.CHECKPOINT_PERIOD", "1000")
    handler = signal.getsignal(signal.SIGTERM)

    class Raise(HookBase):
        def before_step(self) -> None:
            if self.trainer.iter == 4:
                signal.raise_signal(getattr(signal, name))

    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.register_hooks([Raise()])
    with pytest.raises(SystemExit) as left:
        trainer.train()
    assert left.value.code == EXIT_SAVED == 75
    assert signal.getsignal(signal.SIGTERM) is handler
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000004.pth"
    assert run(cfg, 1)[0][0] == 5


def test_killed_just_before_the_final_checkpoint(zeroshapes: Path, tmp_path: Path) -> None:
    cfg = config(tmp_path, "SOLVER.MAX_ITER", "2")
    run(cfg, 2)
    final = tmp_path / "model_final.pth"
    expected = read_checkpoint(str(final))
    final.unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    trainer = Trainer(cfg)
    trainer.resume_or_load()
    trainer.train()
    assert_same(read_checkpoint(str(final)), expected)


def test_an_evaluation_leaves_no_trace_and_is_made_up_for(
    zeroshapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated = []
    original = Trainer._test
    monkeypatch.setattr(Trainer, "_test", lambda self: evaluated.append(1) or original(self))
    opts = ["DATASETS.TEST", "zeroshapes_val", "ALIGNZEG.TEST.RECALL", "False"]
    opts += ["TEST.EVAL_PERIOD", "2", "ALIGNZEG.CHECKPOINT.BEST", "sem_seg/sIoU"]
    without = run(config(tmp_path / "without"), 5)
    assert run(config(tmp_path / "with", *opts), 4) == without[:8] and len(evaluated) == 2
    # The last checkpoint was saved before the second evaluation.
    assert run(config(tmp_path / "with", *opts), 1) == without[8:] and len(evaluated) == 3
    states = [
        read_checkpoint(str(tmp_path / name / "model_0000004.pth")) for name in ("without", "with")
    ]
    for key in ("model", "ranks"):
        assert_same(states[0][key], states[1][key])
    assert states[1]["trainer"]["hooks"]["EvaluationHook"]["done"] == 4
    assert (tmp_path / "with" / "model_best.pth").exists()


def test_a_choice_on_unseen_classes_is_warned_of(
    zeroshapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for figure, warned in (("hIoU", True), ("sIoU", False)):
        opts = ["DATASETS.TEST", "zeroshapes_val", "ALIGNZEG.CHECKPOINT.BEST", f"sem_seg/{figure}"]
        caplog.clear()
        Trainer(config(tmp_path / figure, *opts))
        assert ("selection on the test" in caplog.text) == warned
