"""The endless stream of training samples: where it stands can be saved, and it goes on from there.

Sample number p of the stream is the same image with the same augmentation whatever the number of
loading workers, the number of processes and the places where the run was interrupted.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.queues
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import util
from typing import Any

import torch
from detectron2.data import DatasetFromList
from detectron2.data.build import trivial_batch_collator
from torch.utils.data import DataLoader, Dataset

from alignzeg.data.worker_registration import Carrying
from alignzeg.engine.checkpoints.state import isolated_rng
from alignzeg.engine.processes.errors import BUG, explain, is_short_of_shared_memory
from alignzeg.engine.processes.process_exit import SIGNALS


class TrainLoader:
    """Endless batches of mapped records for one of several processes.

    The stream is one random order of all records after another, as Detectron2's TrainingSampler
    makes it; process r of n takes the samples r, r + n, r + 2n, ... Every sample carries its place
    in the stream as "position".
    """

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        mapper: Callable[[Any], dict[str, Any]],
        *,
        images: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        group_by_shape: bool = False,
    ) -> None:
        """Takes the data and this process's share of it.

        Args:
            records: one per image.
            mapper: record -> sample, a dict; may draw from the global CPU generators.
            images: samples in a batch of this process.
            seed: of order and augmentation; the same in all processes.
            rank: rank of this process.
            world_size: processes that share the stream.
            workers: processes that load; 0 loads in this one.
            group_by_shape: batches of landscape or of other images only, by the "width" and
                "height" of the samples, as Detectron2's ASPECT_RATIO_GROUPING.
        """
        self.seed = seed
        self._data = _Samples(DatasetFromList(list(records), copy=False), Carrying(mapper))
        self._images, self._workers, self._group = images, workers, group_by_shape
        self._rank, self._world_size = rank, world_size
        # The next sample to take from the stream, and those taken that wait for their batch.
        self._position = rank
        self._waiting: list[int] = []

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        """Goes on where the state says."""
        self._data.seed = self.seed
        batches: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
        for sample in self._samples():
            batch = batches[self._group and sample["width"] > sample["height"]]
            batch.append(sample)
            self._position = max(self._position, sample["position"] + self._world_size)
            if len(batch) == self._images:
                full, batch[:] = list(batch), []
                self._waiting = sorted(s["position"] for b in batches.values() for s in b)
                yield full

    def _samples(self) -> Iterator[dict[str, Any]]:
        if self._workers:
            # When this process ends, it would wait for workers that do not heed SIGTERM.
            util.Finalize(None, _kill_workers, exitpriority=0)
        loader = DataLoader(
            self._data,
            # With groups, which samples make a batch is known when they are there.
            batch_size=None if self._group else self._images,
            sampler=self._order(),
            collate_fn=trivial_batch_collator,
            num_workers=self._workers,
            worker_init_fn=start_worker,
            # The loader draws a seed for its workers; the run's generators must not notice.
            generator=torch.Generator().manual_seed(self.seed),
        )
        for loaded in loader:
            yield from [loaded] if self._group else loaded

    def _order(self) -> Iterator[tuple[int, int]]:
        """(position, index of the record) of this process's samples, from where it stands on."""
        generator = torch.Generator().manual_seed(self.seed)
        wanted, start, size = set(self._waiting), 0, len(self._data)
        next_own, first = self._position, min(self._waiting, default=self._position)
        while True:
            # Each order follows from the one before, so that none can be left out.
            order = torch.randperm(size, generator=generator)
            if start + size > first:
                for position, index in enumerate(order.tolist(), start):
                    mine = (position - self._rank) % self._world_size == 0
                    if position in wanted or (mine and position >= next_own):
                        yield position, index
            start += size

    def state_dict(self) -> dict[str, Any]:
        """Where this process stands, counted in samples handed out, not in samples loaded ahead."""
        return {
            "seed": self.seed,
            "position": self._position,
            "waiting": list(self._waiting),
            "size": len(self._data),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues after what `state_dict` has counted; takes effect with the next `iter`.

        Raises:
            ValueError: if the state was saved with another number of records.
        """
        if state["size"] != len(self._data):
            raise ValueError(
                f"the checkpoint was trained on {state['size']} images, DATASETS.TRAIN now has "
                f"{len(self._data)}; start a new run with MODEL.WEIGHTS instead of --resume"
            )
        self.seed = state["seed"]
        self._position = state["position"]
        self._waiting = list(state["waiting"])

    def rescale(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Continues a stream that another number of processes has read.

        With `group_by_shape`, samples that waited for their batch are left out and a few others
        may come twice; without, no sample is lost or repeated.

        Raises:
            ValueError: as `load_state_dict`.
        """
        start = min(state["position"] for state in states)
        start += (self._rank - start) % self._world_size
        self.load_state_dict({**states[0], "position": start, "waiting": []})


class _Samples(Dataset):
    """Mapped records, each with random numbers of its own."""

    def __init__(self, records: Dataset, mapper: Callable[[Any], dict[str, Any]]) -> None:
        self._records = records
        self._mapper = mapper
        self.seed = 0

    def __len__(self) -> int:
        return len(self._records)  # type: ignore[arg-type]

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        position, index = place
        with isolated_rng(self.seed, position):
            return {**self._mapper(self._records[index]), "position": position}


def _kill_workers() -> None:
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def start_worker(_: int) -> None:
    """What a loading worker does first: it lets nothing but its training process end it.

    A scheduler signals every process of a job; the training process needs its workers to finish the
    step.
    """
    queue: Any = multiprocessing.queues.Queue
    queue._on_queue_feeder_error = staticmethod(_leave)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _leave(error: BaseException, _: Any) -> None:
    """Ends a worker that cannot hand over its sample, for which the others would wait for ever.

    The training process notices, and says what to do.
    """
    if not is_short_of_shared_memory(error):
        with contextlib.suppress(OSError):
            sys.stderr.write(f"error: a loading worker: {explain(error)}\n")
    os._exit(BUG)
