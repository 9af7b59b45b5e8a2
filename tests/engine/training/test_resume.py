"""A run that is stopped anywhere goes on as if it had never been stopped, to the bit."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from helpers import CONFIGS, TINY_OPTS, TOY_PLUGIN

from alignzeg.commands.train import parse_args
from alignzeg.engine import Trainer, read_checkpoint, setup_config, start_run
from alignzeg.engine.checkpoints.state import (
    config_changes,
    isolated_rng,
    plain,
    rng_state,
    set_rng_state,
)
from alignzeg.engine.processes import supervision
from alignzeg.engine.processes.launch import launch
from alignzeg.engine.processes.signals import EXIT_SAVED
from alignzeg.engine.training.sampling import TrainLoader
from alignzeg.engine.training.trainer import build_parallel_model

ALIGNZEG = CONFIGS / "zeroshapes" / "alignzeg.yaml"
STEPS = 20
# Every augmentation there is, and a batch of two accumulated halves for each process.
VARIED = [
    *("INPUT.MIN_SIZE_TRAIN", "(40, 48, 56)", "ALIGNZEG.DATA.CROP_SIZE", "36"),
    *("ALIGNZEG.DATA.COLOR_JITTER", "True", "ALIGNZEG.SOLVER.ACCUMULATE", "2"),
    *("SOLVER.IMS_PER_BATCH", "4", "SOLVER.WARMUP_ITERS", "5", "SOLVER.BASE_LR", "0.001"),
    *("ALIGNZEG.SOLVER.OPTIMIZER", "AdamW"),
]


def config(output: Path, *opts: str) -> CfgNode:
    toy = ["ALIGNZEG.PLUGINS", str(TOY_PLUGIN), "MODEL.META_ARCHITECTURE", "ToySegmenter"]
    cfg = setup_config(
        ALIGNZEG,
        [*TINY_OPTS, *toy, *VARIED, "OUTPUT_DIR", str(output), "DATASETS.TEST", "()"]
        + ["SOLVER.MAX_ITER", str(STEPS), "SOLVER.CHECKPOINT_PERIOD", "1", *opts],
    )
    output.mkdir(exist_ok=True, parents=True)
    return cfg


def run(cfg: CfgNode, steps: int = STEPS, resume: bool = True) -> list[Any]:
    """Makes so many steps, and is gone as after a kill: nothing is saved or closed at the end.

    Returns, for each batch of this process, what was in it and what was drawn.
    """
    seed_all_rng(cfg.SEED + comm.get_rank())
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    seen: list[Any] = []

    def look(model: torch.nn.Module, batches: tuple) -> None:
        drawn = torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002
        if model.training:
            batch = [
                (x["position"], x["file_name"], zlib.crc32(x["image"].numpy())) for x in batches[0]
            ]
            seen.append((trainer.iter, batch, drawn))

    trainer.model.register_forward_pre_hook(look)
    first = trainer.start_iter
    with EventStorage(first) as trainer.storage:
        trainer.before_train()
        for trainer.iter in range(first, first + steps):
            trainer.before_step()
            trainer.run_step()
            trainer.after_step()
    seed_all_rng(12345)
    return seen


def assert_same(a: Any, b: Any, where: str = "") -> None:
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{where}.{index}")
    else:
        assert a == b, where


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


def pair(args: argparse.Namespace) -> None:
    """What each of two processes does."""
    # Threads do not survive the fork.
    torch.set_num_threads(1)
    whole = run(config(args.output / "whole"))
    pieces = []
    for _ in range(STEPS):
        pieces += run(config(args.output / "pieces"), 1)
        comm.synchronize()
    assert pieces == whole
    positions = comm.all_gather([x[0] for _, batch, _ in whole for x in batch])
    assert not set(positions[0]) & set(positions[1])
    assert sorted(positions[0] + positions[1]) == list(range(STEPS * 4))


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


def test_what_differs_is_said_or_refused(
    zeroshapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(config(tmp_path), 2)
    caplog.set_level("INFO", "alignzeg")
    run(config(tmp_path, "SOLVER.BASE_LR", "0.5"), 1)
    assert "at iteration 2; 1 config keys have changed" in caplog.text
    assert "config changed: SOLVER.BASE_LR: was 0.001, is 0.5" in caplog.text
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


def test_the_seed_decides_and_a_random_one_is_kept(zeroshapes: Path, tmp_path: Path) -> None:
    one, other = (run(config(tmp_path / seed, "SEED", seed), 1) for seed in ("1", "2"))
    assert [x[0] for x in one[0][1]] == [x[0] for x in other[0][1]]
    assert one[0][1] != other[0][1]
    cfg = start_run(config(tmp_path, "SEED", "-1"), parse_args([]))
    run(cfg, 1)
    assert start_run(config(tmp_path, "SEED", "-1"), parse_args(["--resume"])).SEED == cfg.SEED
    assert start_run(config(tmp_path / "new", "SEED", "-1"), parse_args([])).SEED != cfg.SEED


# ---- the stream of samples


def stream(count: int, **kwargs: Any) -> tuple[list[list[int]], TrainLoader]:
    records = [{"id": i, "width": 1 + i % 3, "height": 2} for i in range(7)]
    loader = TrainLoader(records, dict, **{"images": 2, "seed": 5, **kwargs})
    batches = iter(loader)
    return [[x["id"] for x in next(batches)] for _ in range(count)], loader


def test_the_order_is_that_of_detectron2() -> None:
    order = iter(TrainingSampler(7, seed=5))
    expected = [next(order) for _ in range(40)]
    assert [i for batch in stream(20)[0] for i in batch] == expected
    for rank in range(3):
        found, _ = stream(5, rank=rank, world_size=3)
        assert [i for batch in found for i in batch] == expected[rank:30:3]


@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("workers", [0, 3])
def test_the_stream_goes_on_anywhere(group: bool, workers: int) -> None:
    whole, _ = stream(15, group_by_shape=group)
    for stop in (0, 1, 6, 11) if workers else range(15):
        first, loader = stream(stop, group_by_shape=group, workers=workers)
        records = [{"id": i, "width": 1 + i % 3, "height": 2} for i in range(7)]
        again = TrainLoader(records, dict, images=2, seed=0, group_by_shape=group)
        again.load_state_dict(loader.state_dict())
        rest = iter(again)
        assert first + [[x["id"] for x in next(rest)] for _ in range(15 - stop)] == whole
    if group:
        assert all(len({i % 3 == 2 for i in batch}) == 1 for batch in whole)


def test_another_number_of_processes_loses_no_sample() -> None:
    loaders = [stream(3, rank=rank, world_size=2)[1] for rank in range(2)]
    states = [loader.state_dict() for loader in loaders]
    positions = []
    for rank in range(3):
        loader = stream(0, rank=rank, world_size=3)[1]
        loader.rescale(states)
        batches = iter(loader)
        positions += [x["position"] for _ in range(2) for x in next(batches)]
    assert sorted(positions) == list(range(12, 24))
    with pytest.raises(ValueError, match="trained on 9 images, DATASETS.TRAIN now has 7"):
        loaders[0].load_state_dict({**states[0], "size": 9})


def test_a_sample_owes_its_randomness_to_its_place_alone() -> None:
    def draw(record: dict) -> dict:
        return {"x": (torch.rand(1).item(), np.random.rand(), random.random())}  # noqa: NPY002

    def take(**kwargs: Any) -> list[Any]:
        loader = TrainLoader([{}] * 5, draw, **{"images": 4, "seed": 1, **kwargs})
        return [(x["position"], x["x"]) for x in next(iter(loader))]

    before = rng_state()
    plain_draws = take()
    assert_same(before, rng_state())
    assert take(workers=2) == plain_draws and take(seed=2) != plain_draws
    assert take(images=2) == plain_draws[:2]
    halves = sorted(take(images=2, rank=0, world_size=2) + take(images=2, rank=1, world_size=2))
    assert halves == plain_draws and len({x for _, x in halves}) == 4


def test_generators_come_back() -> None:
    random.gauss(0, 1), np.random.randn()  # noqa: NPY002 (both keep a spare number)
    state = rng_state()

    def draw() -> list[float]:
        return [torch.rand(1).item(), np.random.randn(), random.gauss(0, 1)]  # noqa: NPY002

    first = draw()
    with isolated_rng(7):
        inside = draw()
    set_rng_state(plain(state))
    assert draw() == first
    with isolated_rng(7):
        assert draw() == inside
    with pytest.raises(TypeError, match=r"checkpoint\['a'\]\[1\] is a set"):
        plain({"a": [1, {2}]})


def test_workers_outlive_the_signals_that_a_scheduler_sends_to_all() -> None:
    loader = TrainLoader([{}] * 5, dict, images=2, seed=1, workers=1)
    others = set(multiprocessing.active_children())
    batches = iter(loader)
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - others
    for number in (signal.SIGTERM, signal.SIGUSR1):
        os.kill(worker.pid, number)
    assert [next(batches)[0]["position"] for _ in range(5)] == [2, 4, 6, 8, 10]
    assert worker.is_alive()


def leave_a_worker() -> None:
    loader = TrainLoader([{}] * 5, dict, images=2, seed=1, workers=1)
    batches = iter(loader)
    next(batches)
    # Something may still hold the loader when a process ends, such as a traceback.
    leave_a_worker.held = batches


def test_a_process_ends_though_its_workers_heed_no_signal() -> None:
    process = multiprocessing.get_context("fork").Process(target=leave_a_worker)
    process.start()
    process.join(60)
    ended = process.exitcode
    process.kill()
    assert ended == 0
