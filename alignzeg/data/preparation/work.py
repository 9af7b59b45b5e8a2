"""Many independent files in parallel: atomic, skipped if there, safe to interrupt."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import cv2
from tqdm import tqdm

from alignzeg.data.preparation.recipe import Task
from alignzeg.data.worker_registration import Registered
from alignzeg.files import atomic_write, leftovers

_CHUNK = 16


def pending(tasks: Iterable[Task]) -> list[Task]:
    """Tasks whose file is not there yet."""
    return [
        task
        for task in tasks
        if not os.path.exists(task.target) or os.path.getsize(task.target) == 0
    ]


def run_tasks(tasks: Sequence[Task], workers: int, title: str, bar: bool = True) -> int:
    """Writes what is missing and returns the number of files written; one worker is this process.

    Raises:
        ValueError: if a source is wrong; files written until then stay, as they are whole.
        KeyboardInterrupt: likewise.
    """
    todo = pending(tasks)
    for folder in {Path(task.target).parent for task in todo}:
        folder.mkdir(parents=True, exist_ok=True)
        for left in leftovers(folder):
            left.unlink(missing_ok=True)  # of a run that was killed
    for _ in each(_write, todo, workers, title, bar):
        pass
    return len(todo)


def _write(task: Task) -> None:
    try:
        atomic_write(task.target, task.make(*task.arguments))
    except OSError as error:
        raise ValueError(f"cannot make {task.target}: {error}") from error


def each(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    workers: int,
    title: str,
    bar: bool = True,
) -> Iterator[Any]:
    """Results of a module's function on every item, in any order, with a progress bar.

    With more than one worker, few items are under way at any time, so an interrupt ends it soon.
    """
    hidden = None if bar else True  # None: unless on a terminal
    with tqdm(total=len(items), desc=title, disable=hidden, unit="file") as progress:
        if workers <= 1 or len(items) <= _CHUNK:
            for item in items:
                yield function(item)
                progress.update()
            return
        chunks = iter([items[i : i + _CHUNK] for i in range(0, len(items), _CHUNK)])
        # Forked workers start at once; others import the whole package first.
        method = "fork" if "fork" in get_all_start_methods() else "spawn"
        cv2.setNumThreads(1)  # here too: a worker forked beside OpenCV's threads would hang
        with ProcessPoolExecutor(
            workers, get_context(method), _start_worker, (Registered(),)
        ) as pool:

            def submit(count: int) -> set[Future]:
                return {pool.submit(_chunk, function, c) for c in islice(chunks, count)}

            running = submit(2 * workers)
            try:
                while running:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    running |= submit(len(done))
                    for future in done:
                        results = future.result()
                        yield from results
                        progress.update(len(results))
            except BrokenProcessPool as error:
                raise ValueError(
                    "a worker process was killed, perhaps for its memory; try fewer --workers"
                ) from error
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(_: Registered) -> None:
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and ends the pool


def _chunk(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [function(item) for item in items]
