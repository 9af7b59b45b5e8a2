"""The stream of samples: the same order wherever it is taken up, and workers that end with it."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data.samplers import TrainingSampler
from resume_cases import assert_same

from alignzeg.engine.checkpoints.state import (
    isolated_rng,
    plain,
    rng_state,
    set_rng_state,
)
from alignzeg.engine.training.sampling import TrainLoader


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
