"""A run that is stopped anywhere goes on as if it had never been stopped, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from resume_cases import STEPS, assert_same, config, pair, run

from alignzeg.commands.train import parse_args
from alignzeg.engine import Trainer, read_checkpoint, setup_config, start_run
from alignzeg.engine.processes import supervision
from alignzeg.engine.processes.launch import launch
from alignzeg.engine.training.resume import config_changes
from alignzeg.engine.training.trainer import build_parallel_model


def assert_same_checkpoints(one: Path, other: Path, step: int) -> None:
    states = [read_checkpoint(str(x / f"model_{step:07d}.pth")) for x in (one, other)]
    configs = [state["alignzeg"].pop("config") for state in states]
    assert all(state["ranks"] and state["trainer"]["_trainer"]["optimizer"] for state in states)
    assert {line.split(":")[0] for line in config_changes(*configs)} <= {
        "OUTPUT_DIR",
        "DATALOADER.NUM_WORKERS",
    }
    assert_same(*states)


@pytest.mark.parametrize(("optimizer", "steps"), [("AdamW", STEPS), ("Muon", 6)])
def test_stopped_after_every_step(
    zeroshapes: Path, tmp_path: Path, optimizer: str, steps: int
) -> None:
    opts = ["ALIGNZEG.SOLVER.OPTIMIZER", optimizer]
    whole = run(config(tmp_path / "whole", *opts), steps)
    assert len(whole) == steps * 2 and len({x[1][0][2] for x in whole}) > steps
    pieces = []
    for step in range(steps):
        # Other numbers of workers, twice, must not matter.
        workers = {7: "2", 8: "1"}.get(step, "0")
        pieces += run(config(tmp_path / "pieces", *opts, "DATALOADER.NUM_WORKERS", workers), 1)
        assert_same_checkpoints(tmp_path / "whole", tmp_path / "pieces", step)
    assert pieces == whole


def test_two_processes_stopped_after_every_step(
    zeroshapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "START_METHOD", "fork")
    args = parse_args(["--num-gpus", "2"])
    args.output = tmp_path
    launch(pair, args, "cpu")
    for step in range(STEPS):
        assert_same_checkpoints(tmp_path / "whole", tmp_path / "pieces", step)
    # Saved by two, resumed by one.
    cfg = config(tmp_path / "pieces", "SOLVER.MAX_ITER", str(STEPS + 1))
    trainer = Trainer(cfg)
    with pytest.raises(ValueError, match="saved by 2 processes, now there are 1.*--allow-rescale"):
        trainer.resume_or_load()
    trainer.resume_or_load(allow_rescale=True)
    assert next(iter(trainer.data_loader))[0]["position"] == STEPS * 4


class Net(torch.nn.Module):
    """Uses its layers in another order than it owns them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(16, 100)
        self.last = torch.nn.Linear(100, 1)
        self.middle = torch.nn.Linear(100, 100)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.middle(torch.tanh(self.first(x)))))


def exchange(rank: int, folder: Path, cfg: CfgNode) -> None:
    """What each of three processes does: six steps, with the model wrapped once or every time."""
    file = f"file://{folder / 'meet'}"
    torch.distributed.init_process_group("gloo", init_method=file, rank=rank, world_size=3)
    models = []
    for wraps in (range(1), range(6)):
        torch.manual_seed(0)
        model = Net()
        for step in range(6):
            if step in wraps:
                parallel = build_parallel_model(cfg, model)
            torch.manual_seed(3 * step + rank)
            model.zero_grad()
            parallel(torch.randn(8, 16)).square().mean().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad
        models.append(model.state_dict())
    assert_same(*models)
    torch.distributed.destroy_process_group()


def test_three_processes_sum_alike_after_a_resume(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(
        exchange, (tmp_path, setup_config("", ["MODEL.DEVICE", "cpu"])), 3, start_method="fork"
    )


def test_the_real_model_goes_on_to_the_bit(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    tiny_cfg.SOLVER.CHECKPOINT_PERIOD = 1
    tiny_cfg.DATASETS.TEST = ()
    tiny_cfg.INPUT.MIN_SIZE_TRAIN = (48, 64)
    tiny_cfg.SOLVER.MAX_ITER = 3
    folders = [tmp_path / "whole", tmp_path / "pieces"]
    seen: dict[Path, list[Any]] = {}
    for folder, steps in zip(folders, (3, 1), strict=True):
        tiny_cfg.OUTPUT_DIR = str(folder)
        folder.mkdir()
        seen[folder] = [x for _ in range(3 // steps) for x in run(tiny_cfg, steps)]
    assert seen[folders[0]] == seen[folders[1]]
    for step in range(3):
        assert_same_checkpoints(*folders, step)


def assert_rates(cfg: CfgNode, base: float, decay: float | None = None) -> None:
    """The steps after a resume are made with the rates of the config, as in a run with no other."""
    resumed, fresh = Trainer(cfg), Trainer(cfg)
    resumed.resume_or_load(resume=True)
    for _ in range(resumed.start_iter):
        fresh.scheduler.step()
    both = [trainer._trainer.optimizer.param_groups for trainer in (resumed, fresh)]
    for now, wanted in zip(*both, strict=True):
        assert now["lr"] == pytest.approx(wanted["lr"], rel=1e-6)
        assert now["initial_lr"] == pytest.approx(wanted["initial_lr"])
        assert now["weight_decay"] == wanted["weight_decay"]
    resumed.scheduler.step()
    fresh.scheduler.step()
    assert both[0][0]["lr"] == pytest.approx(both[1][0]["lr"], rel=1e-6)
    assert max(group["initial_lr"] for group in both[0]) == pytest.approx(base)
    if decay is not None:
        assert decay in {group["weight_decay"] for group in both[0]}


def test_what_differs_is_said_or_refused(
    zeroshapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(config(tmp_path), 2)
    caplog.set_level("INFO", "alignzeg")
    run(config(tmp_path, "SOLVER.BASE_LR", "0.5"), 1)
    assert "at iteration 2; 1 config keys have changed" in caplog.text
    assert "config changed: SOLVER.BASE_LR: was 0.001, is 0.5" in caplog.text
    assert_rates(config(tmp_path, "SOLVER.BASE_LR", "0.5"), 0.5)
    assert_rates(config(tmp_path, "ALIGNZEG.SOLVER.REFERENCE_BATCH", "8"), 0.001 * 4 / 8)
    assert_rates(config(tmp_path, "SOLVER.WEIGHT_DECAY", "0.3"), 0.001, decay=0.3)
    for opts, message in (
        (["ALIGNZEG.DATA.HOLD_OUT", "pseudo_unseen"], "seen classes, the config has"),
        (["ALIGNZEG.SOLVER.OPTIMIZER", "Muon"], "OPTIMIZER: was 'AdamW', is 'Muon'; resume with"),
    ):
        with pytest.raises(ValueError, match=message):
            run(config(tmp_path, *opts), 1)
    changed = sorted((zeroshapes / "zeroshapes" / "annotations" / "train").glob("*.png"))[0]
    before = changed.read_bytes()
    try:
        changed.write_bytes(before + b"x")
        with pytest.raises(ValueError, match="trained on other data"):
            run(config(tmp_path), 1)
    finally:
        changed.write_bytes(before)
    weights = read_checkpoint(
        str(tmp_path / "last_checkpoint").replace("last_checkpoint", "model_0000002.pth")
    )
    torch.save({"model": weights["model"]}, tmp_path / "model_0000002.pth")
    with pytest.raises(ValueError, match="no state of a training; start from it with"):
        run(config(tmp_path), 1)


def test_the_seed_decides_and_a_random_one_is_kept(zeroshapes: Path, tmp_path: Path) -> None:
    one, other = (run(config(tmp_path / seed, "SEED", seed), 1) for seed in ("1", "2"))
    assert [x[0] for x in one[0][1]] == [x[0] for x in other[0][1]]
    assert one[0][1] != other[0][1]
    cfg = start_run(config(tmp_path, "SEED", "-1"), parse_args([]))
    run(cfg, 1)
    assert start_run(config(tmp_path, "SEED", "-1"), parse_args(["--resume"])).SEED == cfg.SEED
    assert start_run(config(tmp_path / "new", "SEED", "-1"), parse_args([])).SEED != cfg.SEED
